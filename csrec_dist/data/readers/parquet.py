"""Reader of Parquet files with one row an interaction."""

from pathlib import Path

import polars as pl

from csrec_dist.data.columns import Layout, Scan, pick


def matches(path: Path) -> bool:
    """Whether the file begins as Parquet does."""
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


def scan(path: Path, layout: Layout) -> Scan:
    """Columns user, item, rating and timestamp, of the file's own types, in file order."""
    return pick(pl.scan_parquet(path), layout.columns, path)
