"""A prepared dataset on disk, opened for reading: what it holds, and its shards as blocks of rows."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, NonNegativeInt, PositiveInt, ValidationError

from csrec_dist.errors import UserError
from csrec_dist.files import read_json, sha256_file

FORMAT_VERSION = 1
COLUMNS = ["row", "user", "items", "example_offset"]
TRUE_TARGET = "true_target"
SEQUENCES = "sequences.parquet"


@dataclass(frozen=True)
class Split:
    """One of train, valid and test: how many rows and examples each shard holds."""

    name: str
    shard_rows: tuple[int, ...]
    shard_examples: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Rows over all shards."""
        return sum(self.shard_rows)

    @property
    def num_examples(self) -> int:
        """Examples over all shards."""
        return sum(self.shard_examples)

    @cached_property
    def first_examples(self) -> tuple[int, ...]:
        """Id of each shard's first example, and at the end the number of examples."""
        return tuple(accumulate(self.shard_examples, initial=0))


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

    @cached_property
    def bounds(self) -> list[int]:
        """`starts` as Python's numbers, which are cheaper to take one by one."""
        return self.starts.tolist()


class _StoredSplit(BaseModel):
    shard_rows: tuple[NonNegativeInt, ...]
    shard_examples: tuple[NonNegativeInt, ...]


class _StoredInfo(BaseModel):
    """What a reader needs of dataset.json."""

    num_items: PositiveInt
    num_users: PositiveInt
    num_shards: PositiveInt
    window: PositiveInt
    fingerprint: str
    statistics: dict[str, Any]
    splits: dict[str, _StoredSplit]


class Dataset:
    """A prepared dataset folder (dataset.json and one Parquet file per split and shard)."""

    def __init__(self, folder: Path | str) -> None:
        """Read dataset.json; UserError when it is missing, damaged or of another version."""
        self.folder = Path(folder)
        if not (self.folder / "dataset.json").exists():
            raise UserError(f"{self.folder} is not a prepared dataset: it has no dataset.json. Run `prepare` first.")
        self.info: dict[str, Any] = read_json(self.folder / "dataset.json")
        stored = _check(self.info, self.folder)
        self.num_items, self.num_users = stored.num_items, stored.num_users
        self.num_shards, self.window = stored.num_shards, stored.window
        self.fingerprint, self.statistics = stored.fingerprint, stored.statistics
        self.splits = {
            name: Split(name, split.shard_rows, split.shard_examples) for name, split in stored.splits.items()
        }

    @cached_property
    def id_map_fingerprint(self) -> str:
        """16 hexadecimal digits that name the item ids: models of equal ones agree on what item 1, 2, … is."""
        path = self.folder / "items.parquet"
        if not path.exists():
            raise UserError(f"{path} is missing: the dataset folder is not whole. Prepare it again.")
        return sha256_file(path)[:16]

    def shard_file(self, split: str, shard: int) -> Path:
        """The Parquet file of one shard."""
        return self.folder / f"{split}-{shard:05d}-of-{self.num_shards:05d}.parquet"

    def open_shard(self, split: str, shard: int) -> "Shard":
        """Open one shard for reading by row group; UserError when its file is missing or damaged."""
        path = self.shard_file(split, shard)
        if not path.exists():
            raise UserError(f"{path} is missing: the dataset folder is not whole. Prepare it again.")
        return Shard(path)

    def sequences(self) -> Iterator[tuple[int, np.ndarray]]:
        """Each user with all that this user ever had in the kept log, oldest first [length], one row group in memory.

        Rows of the splits hold less: windows of limited length, and of a temporal split nothing after the targets.
        """
        path = self.folder / SEQUENCES
        if not path.exists():
            raise UserError(f"{path} is missing: the dataset folder is not whole. Prepare it again.")
        with _readable(path):
            file = pq.ParquetFile(path)
        for group in range(file.metadata.num_row_groups):
            with _readable(path):
                table = file.read_row_group(group, columns=["user", "items"]).combine_chunks()
            items = table["items"].combine_chunks()
            values, bounds = items.values.to_numpy(), items.offsets.to_numpy()
            for place, user in enumerate(table["user"].to_pylist()):
                yield user, values[bounds[place] : bounds[place + 1]]

    @cached_property
    def leaked_rows(self) -> np.ndarray:
        """Whether each test row's target is a training target of the same user, in whatever window: bool [test rows].

        Row r is at place r. The training split is read, streamed, unless `prepare` found none to leak.
        """
        leaked = np.zeros(self.splits["test"].num_rows, bool)
        if self.statistics.get("leaked_test_targets") == 0:
            return leaked
        items = pl.col("items").list
        trained = self._scan("train").select("user", target=items.slice(1)).explode("target")
        test = self._scan("test").select("row", "user", target=items.last())
        found = test.join(trained, on=["user", "target"], how="semi").collect(engine="streaming")
        leaked[found["row"].to_numpy()] = True
        return leaked

    def _scan(self, split: str) -> pl.LazyFrame:
        return pl.scan_parquet([self.shard_file(split, shard) for shard in range(self.num_shards)])

    @cached_property
    def has_true_targets(self) -> bool:
        """Whether the log said which items users truly preferred, so that `true_targets` can be read."""
        return self.open_shard("test", 0).has_true_targets

    def true_targets(self, split: str, shards: Iterable[int] | None = None) -> np.ndarray:
        """The item that the user of each row of valid or test truly preferred where the target stands, before noise.

        Args:
            shards: the shards to read; all by default.

        Returns:
            [rows of the split] int32, indexed by row number (`batch.rows`); 0 in rows of other shards, and where the
            preferred item is not among the dataset's.

        Raises:
            UserError: the log did not say.
        """
        if not self.has_true_targets:
            raise UserError(
                f"{self.folder} knows no true targets: prepare a log that has a column for them, and name it with "
                "dataset.columns.true_item."
            )
        found = np.zeros(self.splits[split].num_rows, np.int32)
        for shard in range(self.num_shards) if shards is None else shards:
            rows, targets = self.open_shard(split, shard).true_targets()
            found[rows] = targets
        return found


class Shard:
    """One shard's Parquet file; memory holds one row group at a time. UserError where it is damaged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _readable(path):
            self._file = pq.ParquetFile(path)
        metadata = self._file.metadata
        self.group_rows = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))

    def read_group(self, group: int) -> RowBlock:
        """The rows of one row group, in file order."""
        with _readable(self._path):
            # One thread: for so few rows more cost more than they save, and the ranks need the cores.
            found = self._file.read_row_group(group, columns=COLUMNS, use_threads=False)
            table = found.select(COLUMNS).combine_chunks()
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
        with _readable(self._path):
            table = self._file.read(columns=["row", TRUE_TARGET])
        return table["row"].to_numpy(), table[TRUE_TARGET].to_numpy()

    def blocks(self) -> Iterator[RowBlock]:
        """All row groups in file order."""
        for group in range(len(self.group_rows)):
            yield self.read_group(group)


def _check(info: Any, folder: Path) -> _StoredInfo:
    """The content of dataset.json in its form; UserError when it is of another version or damaged."""
    version = info.get("format_version") if isinstance(info, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{folder} has dataset format {version}; this version reads {FORMAT_VERSION}. Prepare it again."
        )
    try:
        return _StoredInfo.model_validate(info)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{folder / 'dataset.json'} is damaged: {place}: {first['msg']}. Prepare the dataset again."
        ) from None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Arrow's complaints about a file, which it raises as several kinds of errors, as a UserError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path} cannot be read ({reason}): if it is damaged, remove the dataset folder and prepare it again."
        ) from None
