"""Shards: rows dealt out and written, one Parquet file each, and read by row group; examples run shard by shard."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from csrec_dist.data.arrow import arrow
from csrec_dist.data.windows import Spans
from csrec_dist.errors import UserError

COLUMNS = ["row", "user", "items", "example_offset"]
TRUE_TARGET = "true_target"
LEAKED = "leaked"
WEIGHTS = "weights"
ROWS_A_GROUP = 64  # a reader holds one row group of each of its shards
FEWEST_SHARDS, MOST_ROWS = 64, 2**14  # of a log whose number of shards is not given
USERS_A_GROUP = 1024  # a reader of whole sequences holds one row group


@dataclass(frozen=True)
class Flat:
    """The kept interactions by user and time; all arrays [interactions]."""

    users: np.ndarray  # int32, 1…num_users, ascending
    items: np.ndarray  # int32, 1…num_items
    ratings: pa.Array  # float32, null where the log has none
    times: np.ndarray | None  # int64 or float64
    training_items: np.ndarray  # int32: what training rows show, which is `items` unless noise was put in
    num_replaced: int | None = None  # interactions at which the two differ; None: no noise was put in
    true_items: np.ndarray | None = None  # int32: what the user preferred before any noise, 0 for none of the items
    periods: np.ndarray | None = None  # int8: 0 in training, 1 in validation, 2 in test, where the split is given
    weights: np.ndarray | None = None  # float32: how much training on each interaction weighs; None: all alike


def shard_path(folder: Path, split: str, shard: int, num_shards: int) -> Path:
    """The Parquet file of one shard."""
    return folder / f"{split}-{shard:05d}-of-{num_shards:05d}.parquet"


def deal(num_rows: int, num_shards: int, seed: int) -> list[np.ndarray]:
    """The rows 0…num_rows − 1 of each shard: a seeded permutation, dealt out in turn.

    Shards differ by at most one row. RandomState's stream is frozen, so the same seed deals alike everywhere.
    """
    order = np.random.RandomState(seed).permutation(num_rows)
    return [order[shard::num_shards] for shard in range(num_shards)]


def automatic_shards(num_rows: int) -> int:
    """Shards of so many training rows: 64, or as many times the double as leave at most `MOST_ROWS` to each."""
    return FEWEST_SHARDS << max(0, math.ceil(math.log2(max(1, num_rows) / (FEWEST_SHARDS * MOST_ROWS))))


@dataclass(frozen=True)
class SplitRows:
    """The rows of a split that is to be written: their lengths [rows], and the files' columns of some of them.

    Noise is in training rows only. A row's number is its place by user and time, whatever the shards. `rating`,
    `leaked`, whether training has it as a target of the same user (false in train), and `true_target` where true items
    are known, are those of the row's last item, in all splits, so that they have the same columns. `weights`, where
    interactions have them, is a list of those of all items but the first.
    """

    lengths: np.ndarray
    columns: Callable[[np.ndarray], dict[str, pa.Array]]

    @classmethod
    def of(cls, split: str, spans: Spans, flat: Flat, leaked: np.ndarray) -> Self:
        """Those of spans of the interactions; `leaked` bool [rows]."""
        items = flat.training_items if split == "train" else flat.items

        def columns(rows: np.ndarray) -> dict[str, pa.Array]:
            return _columns(spans.where(rows), rows, items, flat) | {LEAKED: arrow(leaked[rows])}

        return cls(spans.lengths, columns)

    @classmethod
    def read(cls, files: Sequence[Path]) -> Self:
        """Those of a split that was written, which are in memory then."""
        with readable(files[0].parent):
            table = (
                pq.read_table(list(files), page_checksum_verification=True)
                .drop_columns("example_offset")
                .sort_by("row")
                .combine_chunks()
            )
        lengths = pc.list_value_length(table["items"]).to_numpy().astype(np.int64)
        return cls(lengths, lambda rows: dict(zip(table.column_names, table.take(arrow(rows)).columns, strict=True)))


def write_split(folder: Path, split: str, rows: SplitRows, num_shards: int, seed: int) -> dict[str, Any]:
    """Write one split's files and return its entry in dataset.json.

    In train a row of n items holds n − 1 examples, in valid and test one.
    """
    examples = rows.lengths - 1 if split == "train" else np.ones(len(rows.lengths), np.int64)
    shards = deal(len(examples), num_shards, seed)
    shard_examples = [int(examples[dealt].sum()) for dealt in shards]
    firsts = np.cumsum([0, *shard_examples])
    for shard, dealt in enumerate(shards):
        offsets = firsts[shard] + np.cumsum(examples[dealt]) - examples[dealt]
        columns = rows.columns(dealt) | {"example_offset": arrow(offsets, np.int64)}
        file = shard_path(folder, split, shard, num_shards)
        table = pa.table(
            {name: columns[name] for name in [*COLUMNS, *(name for name in columns if name not in COLUMNS)]}
        )
        # Without Arrow's own schema, whose names of list elements depend on where the rows come from.
        pq.write_table(table, file, ROWS_A_GROUP, compression="zstd", store_schema=False, write_page_checksum=True)
    return {
        "num_rows": len(examples),
        "num_examples": int(firsts[-1]),
        "shard_rows": [len(dealt) for dealt in shards],
        "shard_examples": shard_examples,
    }


def write_sequences(path: Path, flat: Flat) -> None:
    """Write all that each user ever had, oldest first and before any noise: one row per user, in the order of users."""
    lengths = np.bincount(flat.users)[1:]
    ends = np.cumsum(lengths)
    schema = pa.schema({"user": pa.int32(), "items": pa.list_(pa.int32())})
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for first in range(0, len(lengths), USERS_A_GROUP):
            users = slice(first, first + USERS_A_GROUP)
            start, stop = ends[first] - lengths[first], ends[users][-1]
            offsets = np.concatenate([[start], ends[users]]) - start
            items = pa.ListArray.from_arrays(arrow(offsets, np.int32), arrow(flat.items[start:stop]))
            numbers = arrow(np.arange(first, first + len(items)) + 1, np.int32)
            writer.write_table(pa.table([numbers, items], schema=schema))


def covered(spans: Spans, num_interactions: int) -> np.ndarray:
    """Which interactions lie in at least one of the rows: bool [num_interactions]."""
    depth = np.bincount(spans.starts, minlength=num_interactions + 1)
    depth -= np.bincount(spans.stops, minlength=num_interactions + 1)
    return np.cumsum(depth)[:-1] > 0


def indices(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """start, start + 1, …, stop − 1 of each span, one span after the other."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    return np.repeat(stops - ends, lengths) + np.arange(ends[-1] if len(ends) else 0)


def _columns(spans: Spans, rows: np.ndarray, items: np.ndarray, flat: Flat) -> dict[str, pa.Array]:
    list_offsets = np.concatenate([[0], np.cumsum(spans.lengths)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(arrow(list_offsets), arrow(items[indices(spans.starts, spans.stops)]))
    columns = {
        "row": arrow(rows, np.int64),
        "user": arrow(spans.users, np.int32),
        "items": lists,
        "rating": flat.ratings.take(arrow(spans.stops - 1)),
    }
    if flat.weights is not None:
        offsets = arrow(list_offsets - np.arange(len(list_offsets)), np.int32)
        weights = arrow(flat.weights[indices(spans.starts + 1, spans.stops)], np.float32)
        columns[WEIGHTS] = pa.ListArray.from_arrays(offsets, weights)
    if flat.true_items is not None:
        columns[TRUE_TARGET] = arrow(flat.true_items[spans.stops - 1], np.int32)
    return columns


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows of a shard: the items of row i are values[starts[i]:starts[i + 1]]."""

    values: np.ndarray  # int32 [sum of lengths]
    starts: np.ndarray  # int64 [rows + 1]
    rows: np.ndarray  # int64 [rows]
    users: np.ndarray  # int32 [rows]
    example_offsets: np.ndarray  # int64 [rows]

    def __len__(self) -> int:
        return len(self.rows)

    def items_of(self, row: int) -> np.ndarray:
        """The items of one row."""
        return self.values[self.starts[row] : self.starts[row + 1]]

    def padded(self, rows: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """The columns of some rows, int64, their items padded with 0 to [rows, length]."""
        starts, lengths = self.starts[rows], np.diff(self.starts)[rows]
        positions = np.arange(length)
        inside = positions < lengths[:, None]
        items = np.zeros((len(rows), length), np.int64)
        items[inside] = self.values[(starts[:, None] + positions)[inside]]
        columns = {"rows": self.rows, "users": self.users, "example_offsets": self.example_offsets}
        picked = {name: column[rows].astype(np.int64) for name, column in columns.items()}
        return {"items": items, "lengths": lengths, **picked}


class Shard:
    """One shard's Parquet file; memory holds one row group at a time. UserError where it is damaged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with readable(path):
            # The file's checksum was compared when it was opened first, those of its pages are at every read: hours may
            # lie in between. Reading ahead costs more than it saves with so few rows.
            self._file = pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)
        metadata = self._file.metadata
        self.group_rows = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))

    def read_group(self, group: int) -> RowBlock:
        """The rows of one row group, in file order."""
        with readable(self._path):
            # One thread: for so few rows more cost more than they save, and the ranks need the cores.
            read = self._file.read_row_group(group, columns=COLUMNS, use_threads=False)
            table = read.select(COLUMNS).combine_chunks()
        items = table["items"].combine_chunks() if table.num_rows else None
        if items is None:
            empty = np.zeros(0, np.int64)
            return RowBlock(empty.astype(np.int32), np.zeros(1, np.int64), empty, empty.astype(np.int32), empty)
        starts = items.offsets.to_numpy().astype(np.int64)
        return RowBlock(
            values=items.values.to_numpy(),
            starts=starts,
            rows=table["row"].to_numpy(),
            users=table["user"].to_numpy(),
            example_offsets=table["example_offset"].to_numpy(),
        )

    @property
    def has_true_targets(self) -> bool:
        """Whether the file has the column of true targets."""
        return TRUE_TARGET in self._file.schema_arrow.names

    def true_targets(self) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers [rows] int64 and the true item in place of each row's last, [rows] int32, in file order."""
        with readable(self._path):
            table = self._file.read(columns=["row", TRUE_TARGET])
        return table["row"].to_numpy(), table[TRUE_TARGET].to_numpy()

    def weights(self) -> np.ndarray:
        """How much each item but the first of each row weighs: [items − rows] float32, in file order."""
        with readable(self._path):
            lists = self._file.read(columns=[WEIGHTS])[WEIGHTS].combine_chunks()
        weights: np.ndarray = lists.flatten().to_numpy()
        return weights

    def blocks(self) -> Iterator[RowBlock]:
        """All row groups in file order."""
        for group in range(len(self.group_rows)):
            yield self.read_group(group)


class KeptGroups:
    """Row groups of a split, padded to the window, of which the first that are read stay in memory for later epochs.

    Decoding them takes longer than all else that makes a batch. They take `most_bytes` at most; all others are read
    again each time.
    """

    def __init__(self, window: int, most_bytes: int) -> None:
        self._window, self._left = window, most_bytes
        self._sizes: dict[int, tuple[int, ...]] = {}
        self._groups: dict[tuple[int, int], dict[str, np.ndarray]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "KeptGroups":
        """Itself: what is kept is not written to."""
        return self

    def sizes(self, shard: int, opened: Callable[[], Shard]) -> tuple[int, ...]:
        """How many rows each row group of a shard has; `opened` gives the shard, where it has to be asked."""
        if shard not in self._sizes:
            self._sizes[shard] = opened().group_rows
        return self._sizes[shard]

    def group(self, shard: int, number: int, opened: Callable[[], Shard]) -> dict[str, np.ndarray]:
        """The columns of a row group, as `RowBlock.padded` gives them."""
        columns = self._groups.get((shard, number))
        if columns is None:
            block = opened().read_group(number)
            columns = block.padded(np.arange(len(block)), self._window)
            num_bytes = sum(column.nbytes for column in columns.values())
            if num_bytes <= self._left:
                self._left -= num_bytes
                self._groups[shard, number] = columns
        return columns


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Arrow's complaints about a file, which it raises as several kinds of errors, as a UserError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path} cannot be read ({reason}): if it is damaged, remove the dataset folder and prepare it again."
        ) from None
