"""A prepared dataset on disk, opened for reading: what it holds, and its lanes as blocks of rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from csrec_dist.errors import UserError
from csrec_dist.files import read_json

FORMAT_VERSION = 1
COLUMNS = ["row", "user", "items", "example_offset"]


@dataclass(frozen=True)
class Split:
    """One of train, valid and test: how many rows and examples each lane holds."""

    name: str
    lane_rows: tuple[int, ...]
    lane_examples: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Rows over all lanes."""
        return sum(self.lane_rows)

    @property
    def num_examples(self) -> int:
        """Examples over all lanes."""
        return sum(self.lane_examples)

    @cached_property
    def first_examples(self) -> tuple[int, ...]:
        """Id of each lane's first example, and at the end the number of examples."""
        return tuple(accumulate(self.lane_examples, initial=0))


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows of a lane: the items of row i are values[starts[i]:starts[i + 1]]."""

    values: np.ndarray  # int32 [sum of lengths]
    starts: np.ndarray  # int64 [rows + 1]
    rows: np.ndarray  # int64 [rows]
    users: np.ndarray  # int32 [rows]
    example_offsets: np.ndarray  # int64 [rows]

    def __len__(self) -> int:
        return len(self.rows)


class Dataset:
    """A prepared dataset folder (dataset.json and one Parquet file per split and lane)."""

    def __init__(self, folder: Path | str) -> None:
        """Read dataset.json; UserError when the folder is not a prepared dataset of this version."""
        self.folder = Path(folder)
        if not (self.folder / "dataset.json").exists():
            raise UserError(f"{self.folder} is not a prepared dataset: it has no dataset.json. Run `prepare` first.")
        self.info: dict[str, Any] = read_json(self.folder / "dataset.json")
        if self.info.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"{self.folder} has dataset format {self.info.get('format_version')}; this version reads "
                f"{FORMAT_VERSION}. Prepare it again."
            )
        self.num_items: int = self.info["num_items"]
        self.num_users: int = self.info["num_users"]
        self.num_lanes: int = self.info["num_lanes"]
        self.window: int = self.info["window"]
        self.fingerprint: str = self.info["fingerprint"]
        self.statistics: dict[str, Any] = self.info["statistics"]
        self.splits = {
            name: Split(name, tuple(split["lane_rows"]), tuple(split["lane_examples"]))
            for name, split in self.info["splits"].items()
        }

    def lane_file(self, split: str, lane: int) -> Path:
        """The Parquet file of one lane."""
        return self.folder / f"{split}-{lane:05d}-of-{self.num_lanes:05d}.parquet"

    def open_lane(self, split: str, lane: int) -> "Lane":
        """Open one lane for reading by row group; UserError when its file is missing."""
        path = self.lane_file(split, lane)
        if not path.exists():
            raise UserError(f"{path} is missing: the dataset folder is not whole. Prepare it again.")
        return Lane(path)


class Lane:
    """One lane's Parquet file; memory holds one row group at a time."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        metadata = self._file.metadata
        self.group_rows = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))

    def read_group(self, group: int) -> RowBlock:
        """The rows of one row group, in file order."""
        table = self._file.read_row_group(group, columns=COLUMNS).combine_chunks()
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

    def blocks(self) -> Iterator[RowBlock]:
        """All row groups in file order."""
        for group in range(len(self.group_rows)):
            yield self.read_group(group)
