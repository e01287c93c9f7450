"""Reader of Parquet files with one row per interaction."""

from pathlib import Path

import polars as pl

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
    return pick(log, layout, part, typed=True)
