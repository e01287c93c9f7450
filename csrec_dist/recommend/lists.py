"""Top-n lists of a run's student as Parquet, with the raw ids of users and items."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csrec_dist.data.dataset import Dataset
from csrec_dist.data.ids import RawIds
from csrec_dist.errors import UserError
from csrec_dist.files import atomic_path, parse_json, require_replaceable
from csrec_dist.recommend.ranked import BATCH_SIZE, History, Ranked, rank
from csrec_dist.recommend.raw_histories import KnownItems
from csrec_dist.recommend.recommender import Recommender


def recommend(
    run_folder: Path | str,
    n: int = 10,
    output: Path | None = None,
    histories: Path | None = None,
    exclude_seen: bool = False,
    batch_size: int = BATCH_SIZE,
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
    output = output or Path(run_folder) / "recommendations.parquet"
    require_replaceable(output)
    _refuse_foreign(output)
    recommender = Recommender.of_run(run_folder)
    dataset, items = recommender.dataset, recommender.items
    assert dataset is not None, "a run has a dataset"
    source = _FileHistories(histories, items) if histories else _DatasetHistories(dataset)
    lists = rank(recommender.model, source, n, exclude_seen=exclude_seen, batch_size=batch_size)
    num_lists = 0
    with atomic_path(output) as temporary, pq.ParquetWriter(temporary, _schema(source, items)) as writer:
        for ranked in lists:
            writer.write_table(_table(ranked, items, writer.schema))
            num_lists += len(ranked.users)
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


class _DatasetHistories:
    """Everything each user of the dataset ever had, by user."""

    skipped = ""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset, self._users = dataset, RawIds(dataset.file("users.parquet"))
        self.user_type = self._users.values.type

    def __iter__(self) -> Iterator[History]:
        for user, items in self._dataset.sequences():
            yield self._users.values[user - 1].as_py(), items.tolist()


class _FileHistories:
    """Histories from a file of JSON lines. An id is an integer or a string; 7 and "7" are the same item."""

    def __init__(self, path: Path, items: RawIds) -> None:
        self._path, self._items = path, items
        self._known = KnownItems(items, str(path))
        all_integers = all(isinstance(user, int) and -(2**63) <= user < 2**63 for user, _ in self._lines())
        self.user_type = pa.int64() if all_integers else pa.string()

    @property
    def skipped(self) -> str:
        """How many items are unknown, and how many histories have no known item."""
        return str(self._known)

    def __iter__(self) -> Iterator[History]:
        self._known = KnownItems(self._items, str(self._path))
        for user, items in self._lines():
            if known := self._known.of(items):
                yield (user if self.user_type == pa.int64() else str(user)), known

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


def _schema(source: _DatasetHistories | _FileHistories, items: RawIds) -> pa.Schema:
    lists = {"items": pa.list_(items.values.type), "scores": pa.list_(pa.float32())}
    return pa.schema({"user": source.user_type, **lists})


def _table(ranked: Ranked, items: RawIds, schema: pa.Schema) -> pa.Table:
    """One batch of lists."""
    offsets = pa.array(np.concatenate([[0], ranked.lengths.cumsum()]), pa.int32())
    columns = [
        pa.array(ranked.users, schema.field("user").type),
        pa.ListArray.from_arrays(offsets, items.of(ranked.items)),
        pa.ListArray.from_arrays(offsets, pa.array(ranked.scores)),
    ]
    return pa.table(columns, schema=schema)
