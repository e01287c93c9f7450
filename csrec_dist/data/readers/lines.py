"""The lines of a text file, for readers that take them apart themselves."""

import polars as pl

from csrec_dist.data.parts import Part


def scan_lines(part: Part) -> pl.LazyFrame:
    """The column `line`, without the byte order mark that a file of Windows may begin with."""
    return pl.scan_lines(part.text).with_columns(pl.col("line").str.strip_prefix("\ufeff"))
