"""Files of one value for each row: joined from those of ranks in the order of the rows, a part of them in memory."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from csrec_dist.evaluation import per_row as per_example
from csrec_dist.evaluation.per_row import Columns, join_parts, part_path, write_part
from csrec_dist.writers import temporary_sibling

SCHEMA = pa.schema({"row": pa.int64(), "value": pa.int32(), "rating": pa.float32()})


def block(rows: list[int]) -> Columns:
    ratings = np.array([row % 5 if row % 3 else np.nan for row in rows], np.float32)
    return {"row": np.array(rows), "value": np.array(rows) * 7, "rating": ratings}


def write(path: Path, *ranks: list[list[int]], size: int = 4) -> None:
    """Each rank's part: the rows of each of its shards, a block of `size` rows at a time."""
    for rank, shards in enumerate(ranks):
        blocks = [[block(rows[start : start + size]) for start in range(0, len(rows), size)] for rows in shards]
        write_part(path, rank, SCHEMA, blocks)


@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_shards_become_one_file_in_the_order_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    monkeypatch.setattr(per_example, "ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr(per_example, "PART_GROUP_ROWS", 3)
    order = np.random.default_rng(0).permutation(50).tolist()
    path = tmp_path / "ranks" / "student-test.parquet"
    write(path, [order[:20], []], [], [order[20:37], order[37:]])
    join_parts(path, 3, 50, SCHEMA)
    frame = pl.read_parquet(path)
    assert frame["row"].to_list() == list(range(50))
    assert frame["value"].to_list() == [7 * row for row in range(50)]
    assert frame["rating"].to_list() == [row % 5 if row % 3 else None for row in range(50)]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_file_does_not_depend_on_how_rows_came_in(tmp_path: Path) -> None:
    for name, ranks, size in (("a", [[[3, 1]], [[0], [2]]], 1), ("b", [[[2, 3, 1, 0]]], 4)):
        write(tmp_path / f"{name}.parquet", *ranks, size=size)
        join_parts(tmp_path / f"{name}.parquet", len(ranks), 4, SCHEMA)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_missing_rows_are_noticed(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [[0, 1]], [[]])
    with pytest.raises(AssertionError, match="rows are missing"):
        join_parts(tmp_path / "a.parquet", 2, 3, SCHEMA)
    assert not (tmp_path / "a.parquet").exists()


def test_what_a_killed_start_has_left_beside_the_parts_is_not_read(tmp_path: Path) -> None:
    """A part that was whole but had no name yet, and that of a rank that there is no more."""
    path = tmp_path / "a.parquet"
    write(path, [[0, 2]], [[1]], [[3]])
    shutil.copy(part_path(path, 1), temporary_sibling(part_path(path, 1)))
    join_parts(path, 2, 3, SCHEMA)
    assert pl.read_parquet(path)["row"].to_list() == [0, 1, 2]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_no_row_at_all_gives_an_empty_file(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [[], []], [])
    join_parts(tmp_path / "a.parquet", 2, 0, SCHEMA)
    assert pl.read_parquet(tmp_path / "a.parquet").columns == SCHEMA.names
