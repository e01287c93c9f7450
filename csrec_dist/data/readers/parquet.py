"""Reader of Parquet files with one row per interaction."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import polars as pl

from csrec_dist.data.bad_rows import MOST_KEPT
from csrec_dist.data.columns import Layout, Scan, pick
from csrec_dist.data.compressed import opened
from csrec_dist.data.parts import Part


def matches(path: Path) -> bool:
    """Whether the file begins with Parquet's magic bytes."""
    with opened(path) as file:
        return file.read(4) == b"PAR1"


def scan(part: Part, layout: Layout) -> Scan:
    """Columns user, item, rating and timestamp, with the types of the file, in file order."""
    log = pl.scan_parquet(part.text, hive_partitioning=False)
    return pick(log, layout, part, typed=True, lines_of=partial(_rows_of, log))


def _rows_of(log: pl.LazyFrame, name: str, value: str) -> Iterator[int]:
    """The numbers, from 1, of the first rows with this value."""
    if name in log.collect_schema():
        rows = log.select(pl.col(name).cast(pl.String)).with_row_index("number", offset=1)
        numbers = rows.filter(pl.col(name) == value).select("number").head(MOST_KEPT).collect(engine="streaming")
        yield from numbers["number"].to_list()
