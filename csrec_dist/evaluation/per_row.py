"""Values of each test row, stored as Parquet: written by each rank, then put into the order of the rows."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csrec_dist.data.dataset import Dataset
from csrec_dist.data.shards import LEAKED
from csrec_dist.files import atomic_path

ROWS_AT_ONCE = 2**17
PART_GROUP_ROWS = 2**12

Columns = dict[str, np.ndarray]

RANKS_SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "user": pa.int32(),
        "target": pa.int32(),
        "rank": pa.int32(),
        "history_length": pa.int32(),
        "rating": pa.float32(),
        "popularity_decile": pa.int8(),
        "true_target": pa.int32(),
        "true_rank": pa.int32(),
    }
)


def diversity_schema(names: Sequence[str]) -> pa.Schema:
    """Columns of the members' differences: `row`, `user` and one for each name."""
    return pa.schema({"row": pa.int64(), "user": pa.int32(), **{name: pa.float64() for name in names}})


@dataclass(frozen=True)
class TargetFacts:
    """What a log says about the targets of some rows besides their items, in file order.

    `ratings` float32 [rows], NaN for none; `true_targets` int32 [rows], what the users truly preferred: 0 where that
    is not in the catalog, or not known. `leaked` bool [rows]: whether training has the target of the same user.
    """

    ratings: np.ndarray
    true_targets: np.ndarray
    leaked: np.ndarray

    @classmethod
    def read(cls, dataset: Dataset, shard: int) -> Self:
        """The facts of a shard of test."""
        path = dataset.file(dataset.shard_file("test", shard).name)
        table = pq.read_table(path, columns=["rating", LEAKED], page_checksum_verification=True)
        ratings = table["rating"].to_numpy(zero_copy_only=False).astype(np.float32)
        true_targets = np.zeros(len(ratings), np.int32)
        if dataset.has_true_targets:
            true_targets = dataset.open_shard("test", shard).true_targets()[1]
        return cls(ratings, true_targets, table[LEAKED].to_numpy(zero_copy_only=False))

    @classmethod
    def none(cls) -> Self:
        """The facts of no rows."""
        return cls(np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(0, bool))

    def __getitem__(self, rows: slice) -> Self:
        """The facts of some of the rows."""
        return replace(self, ratings=self.ratings[rows], true_targets=self.true_targets[rows], leaked=self.leaked[rows])


def rating_group(ratings: np.ndarray, min_rating: float) -> np.ndarray:
    """0 where the target's rating [N] is at least δ (Recall⁺, NDCG⁺), 1 below (Recall⁻, NDCG⁻), −1 for NaN: [N]."""
    return np.where(np.isnan(ratings), -1, ratings < np.float32(min_rating)).astype(np.int64)


def part_path(path: Path, rank: int) -> Path:
    """The file of one rank's rows, until those of all ranks are joined."""
    return path.with_name(f".{path.stem}.parts") / f"{rank:05d}.parquet"


def write_part(path: Path, rank: int, schema: pa.Schema, shards: Iterable[Iterable[Columns]]) -> None:
    """Write the rows of a rank's shards, those of each sorted, into one file beside `path`. Memory holds a shard."""
    with (
        atomic_path(part_path(path, rank)) as temporary,
        pq.ParquetWriter(temporary, schema, write_page_checksum=True) as writer,
    ):
        for blocks in shards:
            table = pa.concat_tables([schema.empty_table(), *(_table(block, schema) for block in blocks)])
            writer.write_table(table.sort_by("row"), row_group_size=PART_GROUP_ROWS)


def join_parts(path: Path, num_ranks: int, num_rows: int, schema: pa.Schema) -> None:
    """Put the ranks' parts into one file in the order of the rows, `ROWS_AT_ONCE` in memory; then remove them.

    The rows are numbered 0 … num_rows − 1. What a start that was killed has left beside the parts is not read.
    """
    parts = [part_path(path, rank) for rank in range(num_ranks)]
    options: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
        for start in range(0, num_rows, ROWS_AT_ONCE):
            in_range = [("row", ">=", start), ("row", "<", start + ROWS_AT_ONCE)]
            table = pq.read_table(parts, schema=schema, filters=in_range, page_checksum_verification=True)
            assert len(table) == min(ROWS_AT_ONCE, num_rows - start), "a rank's rows are missing"
            writer.write_table(table.sort_by("row"))
    shutil.rmtree(part_path(path, 0).parent)


def _table(block: Columns, schema: pa.Schema) -> pa.Table:
    """Columns as a table; NaN in a float32 column is a missing value."""
    columns = [pa.array(block[field.name], field.type, from_pandas=field.type == pa.float32()) for field in schema]
    return pa.table(columns, schema=schema)
