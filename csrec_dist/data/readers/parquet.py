"""Reader of Parquet files with one row per interaction."""

from pathlib import Path

import polars as pl

from csrec_dist.data.columns import Layout, Scan, pick


def matches(path: Path) -> bool:
    """Whether the file begins with Parquet's magic bytes."""
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


def scan(path: Path, layout: Layout) -> Scan:
    """Columns user, item, rating and timestamp, with the types of the file, in file order."""
    return pick(pl.scan_parquet(path), layout.columns, path, typed=True)
