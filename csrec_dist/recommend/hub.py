"""Saved recommenders on the Hugging Face Hub, or on a server that HF_ENDPOINT names."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csrec_dist.errors import UserError, shortened

NAME = re.compile(r"[\w.-]+/[\w.-]+")
LONGEST_REASON = 300


def is_hub_name(source: str) -> bool:
    """Whether a text may be the name of a repository, OWNER/NAME."""
    return NAME.fullmatch(source) is not None


def download(name: str) -> Path:
    """The folder of a repository's newest files, in the Hub's cache; UserError when it cannot be had."""
    from huggingface_hub import snapshot_download

    with _explained(f"{name} is neither a folder here nor could it be downloaded"):
        return Path(snapshot_download(name))


def upload(folder: Path, name: str, private: bool, token: str | None) -> str:
    """Put a folder's files into a repository, made if need be; its address. UserError when that fails."""
    from huggingface_hub import HfApi

    with _explained(f"{name} could not be pushed"):
        api = HfApi(token=token)
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload a recommender of csrec_dist")
        return str(address)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """In the block what goes wrong on the way to the Hub is the user's to mend."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, LocalTokenNotFoundError

    try:
        yield
    except (httpx2.HTTPError, HFValidationError, LocalEntryNotFoundError, LocalTokenNotFoundError) as error:
        reason = shortened(" ".join(str(error).split()), LONGEST_REASON).rstrip(".")
        raise UserError(
            f"{what} ({constants.ENDPOINT}): {reason or type(error).__name__}. Check the name and the network; where "
            "the repository asks who you are, log in with `hf auth login` or give a token."
        ) from None
