"""The Hugging Face Hub, or the server that HF_ENDPOINT names: repositories of models and datasets, and their cards."""

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import yaml

from csrec_dist.errors import UserError, quoted, shortened

NAME = re.compile(r"[\w.-]+/[\w.-]+")
AT_REVISION = re.compile(rf"({NAME.pattern})(?:@([\w./-]+))?")
OF_SHARDS = re.compile(r"-\d+-of-\d+")
LONGEST_REASON = 300
CARD_FILE = "README.md"
DOWNLOADED = (
    "*.safetensors",
    "config.json",
    "model.safetensors.index.json",
    "items.parquet",
    "metrics.json",
    CARD_FILE,
)
"""What a recommender consists of: whatever else is in a repository, such as code or pickled weights, stays there."""
Kind = Literal["model", "dataset"]
"""What the Hub takes a repository for; prepared datasets and soft labels are datasets."""


def is_hub_name(source: str) -> bool:
    """Whether a text may be the name of a repository, OWNER/NAME, or OWNER/NAME@REVISION."""
    return AT_REVISION.fullmatch(source) is not None


def check_hub_name(name: str) -> None:
    """UserError unless a text may be the name of a repository."""
    if NAME.fullmatch(name) is None:
        raise UserError(f"A repository of the Hub is named OWNER/NAME, not {quoted(name)}.")


def download(source: str) -> Path:
    """The folder of a model's files in the Hub's cache: all of one commit, the newest one unless `source` names it.

    Raises UserError when it cannot be had.
    """
    from huggingface_hub import snapshot_download

    match = AT_REVISION.fullmatch(source)
    assert match is not None, "the name was looked at before"
    name, revision = match.groups()
    with _explained(f"{source} is neither a folder here nor could it be downloaded"):
        return Path(snapshot_download(name, revision=revision or "main", allow_patterns=list(DOWNLOADED)))


def upload(folder: Path, name: str, private: bool, token: str | None, kind: Kind = "model") -> str:
    """Put a folder's files into a repository, made if need be; its address. UserError when that fails.

    What an earlier push left there goes, where it would be read beside the new files or instead of them: of a model
    all that is downloaded, else numbered files of the same names (train-00003-of-00004.parquet).
    """
    from huggingface_hub import HfApi

    with _explained(f"{name} could not be pushed"):
        api = HfApi(token=token)
        address = api.create_repo(name, private=private, exist_ok=True, repo_type=kind)
        message = f"Upload a {kind} of csrec_dist"
        numbered = {OF_SHARDS.sub("-*-of-*", file.name) for file in folder.iterdir() if OF_SHARDS.search(file.name)}
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            repo_type=kind,
            commit_message=message,
            delete_patterns=[*(DOWNLOADED if kind == "model" else ()), *sorted(numbered)],
        )
        return str(address)


def upload_with_card(files: Iterable[Path], card: str, name: str, private: bool, token: str | None) -> str:
    """Put files of one folder and a card into a repository of a dataset; its address.

    Nothing else of their folder is sent. Raises UserError when the name is none, or the push fails.
    """
    check_hub_name(name)
    with TemporaryDirectory() as folder:
        for file in files:
            (Path(folder) / file.name).symlink_to(file.resolve())
        (Path(folder) / CARD_FILE).write_text(card, encoding="utf-8")
        return upload(Path(folder), name, private, token, "dataset")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """In the block what goes wrong on the way to the Hub is the user's to mend."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        FileMetadataError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    refusals = FileMetadataError, HFValidationError, LocalEntryNotFoundError, LocalTokenNotFoundError
    try:
        yield
    except (httpx2.HTTPError, OfflineModeIsEnabled, *refusals) as error:
        reason = shortened(" ".join(str(error).split()), LONGEST_REASON).rstrip(".")
        raise UserError(
            f"{what} ({constants.ENDPOINT}): {reason or type(error).__name__}. Check the name and the network; where "
            "the repository asks who you are, log in with `hf auth login` or give a token."
        ) from None


def card(head: Mapping[str, Any], sections: Iterable[str]) -> str:
    """A card: its head as YAML between lines of dashes, then its sections, a blank line between them."""
    opening = f"---\n{yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True)}---"
    return "\n\n".join([opening, *sections]) + "\n"


def table(header: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; the cells of its rows are plain text."""
    lines = [list(header), ["---"] * len(header), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text in one line that Markdown shows as it is. An underscore within a word means nothing to it."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    for sign in "\\`*[]|":
        escaped = escaped.replace(sign, f"\\{sign}")
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)


def code(text: str) -> str:
    """A block of Python."""
    return f"```python\n{text}\n```"


def bullets(lines: Iterable[str]) -> str:
    """A list, an item a line."""
    return "\n".join(f"- {line}" for line in lines)
