"""An export's folder: a format's files, the raw ids of items, and export.json, which tells what they are."""

import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from csrec_dist import __version__
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.ids import RawIds
from csrec_dist.errors import UserError, did_you_mean, listed, quoted
from csrec_dist.export import FORMATS
from csrec_dist.export.formats import EXACT_INDEX, WRITERS
from csrec_dist.export.parity import compare
from csrec_dist.export.programs import portable
from csrec_dist.files import new_folder, read_json, write_json
from csrec_dist.models import SequentialModel

DESCRIPTION_FILE = "export.json"
NUM_CHECKED = 256
"""Histories of a dataset that an export is checked with."""


def export_model(
    model: SequentialModel,
    items: RawIds,
    folder: Path,
    format: str,
    histories: Sequence[Sequence[int]],
    *,
    top_n: int = 100,
    index: str = EXACT_INDEX,
) -> dict[str, Any]:
    """Write the model in a format of `FORMATS` into a folder, and return what its export.json says.

    The files' lists after `histories` (item numbers, oldest first) are compared with the model's, and have to be equal;
    of an approximate index the recall is measured instead. The folder appears whole, once that is done; it
    replaces an earlier export, and nothing else.

    Args:
        top_n: items of the lists in the graphs of onnx and pt2, at most V; a shorter list is their beginning.
        index: faiss's name of the index (its factory string).

    Raises:
        UserError: there is no such format or no such export of this model, a package is missing, the folder has other
            content, or the lists differ.
    """
    if format not in FORMATS:
        raise UserError(
            f"There is no format {quoted(format)}{did_you_mean(format, FORMATS)}; choose one of {listed(FORMATS)}."
        )
    if index != EXACT_INDEX and format != "faiss":
        raise UserError(f"Only the format faiss has an index such as {quoted(index)}; {format} has none.")
    if top_n < 1:
        raise UserError(f"The lists of an export have at least 1 item, not {top_n}.")
    _require_export(folder)
    exported, top_n = portable(model), min(top_n, model.num_items)
    with new_folder(folder) as new:
        written = WRITERS[format](exported, new, top_n, index)
        check = compare(exported, written.search, histories, top_n, exact=written.is_exact)
        shutil.copyfile(items.path, new / "items.parquet")
        description = {
            "format": format,
            "files": written.files | {"items.parquet": "`raw` is the id that the log has for the number `item`"},
            "model": {"name": model.config.name, "num_items": model.num_items, "max_length": model.max_length},
            "top_n": top_n,
            "check": check.exact() if written.is_exact else check.approximate(top_n),
            "versions": {"csrec_dist": __version__} | {name: version(name) for name in ("torch", *written.packages)},
        }
        write_json(new / DESCRIPTION_FILE, description)
        if folder.exists():
            shutil.rmtree(folder)
    return description


def histories_to_check(dataset: Dataset) -> list[list[int]]:
    """Histories of users from all over the dataset, whole, and every other one cut to a beginning of any length."""
    users = np.unique(np.linspace(1, dataset.num_users, NUM_CHECKED).astype(np.int64))
    histories = [items.tolist() for _, items in dataset.sequences(users)]
    return [items[: 1 + k % len(items)] if k % 2 else items for k, items in enumerate(histories)]


def _require_export(folder: Path) -> None:
    """UserError for a folder that holds anything but an export."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    path = folder / DESCRIPTION_FILE
    described = read_json(path) if path.is_file() else None
    if not isinstance(described, dict) or not described.keys() >= {"format", "files", "check"}:
        raise UserError(f"{folder} exists and holds no export; give another folder, or move it away.")
    names = (*described["files"], DESCRIPTION_FILE)  # as prefixes: ONNX has the tensors of a large model in NAME.data
    if others := sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(names)):
        raise UserError(
            f"{folder} holds an export, and {listed(others)} besides; move that away, or give another folder."
        )
