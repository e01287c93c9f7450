"""Top-n lists of a run's student as Parquet, with the raw ids of users and items."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from csrec_dist import models
from csrec_dist.data.dataset import Dataset
from csrec_dist.errors import UserError
from csrec_dist.evaluation import top_items
from csrec_dist.files import atomic_path, parse_json, require_replaceable
from csrec_dist.models import SequentialModel
from csrec_dist.models.histories import pad_histories
from csrec_dist.runs.run import Run

History = tuple[Any, list[int]]  # a user's raw id, and item numbers, oldest first


def recommend(
    run_folder: Path | str,
    n: int = 10,
    output: Path | None = None,
    histories: Path | None = None,
    exclude_seen: bool = False,
    batch_size: int = 256,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the n items that the run's student scores highest for every history; return the path of the Parquet file.

    Its columns are user, items (best first) and scores (logits). The histories come from `histories`, a
    file of JSON lines {"user": …, "items": [raw ids, oldest first]}; by default they are everything each user of the
    dataset ever had, including validation and test targets and what followed them. Of a long history the model reads
    the latest items. Raw ids that the dataset does not know are skipped and counted. Memory holds one batch and the
    id maps.

    Args:
        output: default recommendations.parquet in the run's folder.
        exclude_seen: leave out all items of the history, including those older than what the model reads.
        say: receives one line about what was written and what was skipped.

    Raises:
        UserError: the run has no student, a line is not a history, no item is known, n is not in 1…V, or `output`
            is not a file, or a file with other content.
    """
    if batch_size < 1:
        raise UserError(f"The batch size must be at least 1, not {batch_size}.")
    run = Run.open(run_folder)
    output = output or run.folder / "recommendations.parquet"
    require_replaceable(output)
    _refuse_foreign(output)
    run.require("distill")
    dataset = run.dataset
    model = _load_student(run.folder / "student", dataset)
    source = _FileHistories(histories, dataset) if histories else _DatasetHistories(dataset)
    item_ids = _raw_ids(dataset, "item")
    num_lists = 0
    with atomic_path(output) as temporary, pq.ParquetWriter(temporary, _schema(source, item_ids)) as writer:
        for batch in _batches(source, batch_size):
            users, items = zip(*batch, strict=True)
            writer.write_table(_table(users, _top(model, items, n, exclude_seen), item_ids, writer.schema))
            num_lists += len(batch)
        if num_lists == 0:
            raise UserError(
                f"There is nothing to recommend: {source.skipped or 'there is no history'}. Name items by the ids of "
                "the raw log, as in the dataset's items.parquet."
            )
    say(f"wrote {num_lists:,} lists of {n} items" + (f"; {source.skipped}" if source.skipped else ""))
    return output


def _refuse_foreign(output: Path) -> None:
    """UserError for an existing file that holds no lists."""
    if not output.exists():
        return
    try:
        names = pq.read_schema(output).names
    except (pa.ArrowException, OSError):
        names = []
    if not {"items", "scores"} <= set(names):
        raise UserError(
            f"{output} exists and does not hold recommendations. Give another --output, or move the file away."
        )


def _load_student(folder: Path, dataset: Dataset) -> SequentialModel:
    """The student on its device; UserError if it was not trained on this dataset."""
    model = models.load(folder)
    if (model.num_items, model.max_length) != (dataset.num_items, dataset.window - 1):
        raise UserError(
            f"{folder} knows {model.num_items} items and reads histories of {model.max_length}, but {dataset.folder} "
            f"has {dataset.num_items} items in windows of {dataset.window}: they do not belong to the same run."
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _raw_ids(dataset: Dataset, name: str) -> pa.Array:
    """Raw ids of the users or items 1, 2, …, at indices 0, 1, …"""
    return pq.read_table(dataset.folder / f"{name}s.parquet", columns=["raw"])["raw"].combine_chunks()


class _DatasetHistories:
    """Everything each user of the dataset ever had, by user."""

    skipped = ""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._user_ids = _raw_ids(dataset, "user")
        self.user_type = self._user_ids.type

    def __iter__(self) -> Iterator[History]:
        for user, items in self._dataset.sequences():
            yield self._user_ids[user - 1].as_py(), items.tolist()


class _FileHistories:
    """Histories from a file of JSON lines. An id is an integer or a string; 7 and "7" are the same item."""

    def __init__(self, path: Path, dataset: Dataset) -> None:
        self._path = path
        self._numbers = {str(raw): number for number, raw in enumerate(_raw_ids(dataset, "item").to_pylist(), 1)}
        self._num_unknown = self._num_skipped = 0
        all_integers = all(isinstance(user, int) and -(2**63) <= user < 2**63 for user, _ in self._lines())
        self.user_type = pa.int64() if all_integers else pa.string()

    @property
    def skipped(self) -> str:
        """How many items are unknown, and how many histories have no known item."""
        if not self._num_unknown and not self._num_skipped:
            return ""
        return (
            f"{self._num_unknown:,} items of {self._path} are not in the dataset, and {self._num_skipped:,} "
            "histories without a known item were skipped"
        )

    def __iter__(self) -> Iterator[History]:
        self._num_unknown = self._num_skipped = 0
        for user, items in self._lines():
            known = [number for item in items if (number := self._numbers.get(str(item)))]
            self._num_unknown += len(items) - len(known)
            if known:
                yield (user if self.user_type == pa.int64() else str(user)), known
            else:
                self._num_skipped += 1

    def _lines(self) -> Iterator[tuple[int | str, list[int | str]]]:
        if not self._path.is_file():
            raise UserError(f"{self._path} is not a file; give a file of JSON lines, each with a user and items.")
        with open(self._path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _parse_history(line, f"{self._path}, line {number}")


def _parse_history(line: bytes, place: str) -> tuple[int | str, list[int | str]]:
    try:
        value = parse_json(line)
    except ValueError:
        raise UserError(f"{place} is not JSON; each line needs a user and a list of items.") from None
    fits = isinstance(value, dict) and _is_id(value.get("user")) and isinstance(value.get("items"), list)
    if not fits or not all(map(_is_id, value["items"])):
        raise UserError(
            f"{place} is not a history: each line needs a user and a list of items, all integers or strings, "
            'such as {"user": 7, "items": [12, 5]}.'
        )
    return value["user"], value["items"]


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _batches(source: Iterable[History], size: int) -> Iterator[list[History]]:
    histories = iter(source)
    while batch := list(islice(histories, size)):
        yield batch


@torch.no_grad()
def _top(model: SequentialModel, histories: tuple[list[int], ...], n: int, exclude_seen: bool) -> tuple[Tensor, Tensor]:
    """The n best items of each history and their scores, [B, n] each; the model reads the latest items only."""
    device = model.item_table.weight.device
    latest = [items[-model.max_length :] for items in histories]
    items, _ = pad_histories(latest, model.num_items, model.max_length)
    states = model.encode_last(items.to(device))
    table, seen = model.item_table, _distinct(histories).to(device) if exclude_seen else None
    return top_items(states, table, n, seen=seen)


def _distinct(histories: tuple[list[int], ...]) -> Tensor:
    """The distinct items of each history, [B, longest], padded with 0."""
    return pad_sequence([torch.tensor(list(set(items))) for items in histories], batch_first=True)


def _schema(source: _DatasetHistories | _FileHistories, item_ids: pa.Array) -> pa.Schema:
    lists = {"items": pa.list_(item_ids.type), "scores": pa.list_(pa.float32())}
    return pa.schema({"user": source.user_type, **lists})


def _table(users: tuple, top: tuple[Tensor, Tensor], item_ids: pa.Array, schema: pa.Schema) -> pa.Table:
    """One batch of lists, without excluded items (score −inf)."""
    items, scores = (tensor.cpu() for tensor in top)
    mask = scores > -torch.inf
    offsets = pa.array(np.concatenate([[0], mask.sum(1).cumsum(0).numpy()]), pa.int32())
    raw = item_ids.take(pa.array(items[mask].numpy() - 1))
    columns = [
        pa.array(users, schema.field("user").type),
        pa.ListArray.from_arrays(offsets, raw),
        pa.ListArray.from_arrays(offsets, pa.array(scores[mask].float().numpy())),
    ]
    return pa.table(columns, schema=schema)
