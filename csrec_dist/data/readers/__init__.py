"""Readers of raw logs: one file each, one line each in READERS.

A reader tells from a file's beginning whether it `matches`, and scans it lazily into the columns user,
item, rating, timestamp and true_item (null where the log has none), one row an interaction, in file order. Types may
be raw (text files give text): `csrec_dist.data.log` settles them.
"""

from pathlib import Path
from typing import Protocol

import polars as pl

from csrec_dist.data.columns import Columns
from csrec_dist.data.readers import (
    amazon_ratings,
    amazon_reviews,
    delimited,
    hetrec,
    inter,
    json_lines,
    parquet,
    yelp,
)
from csrec_dist.data.wording import listed
from csrec_dist.errors import UserError


class Reader(Protocol):
    """What a reader's module offers; called by `detect` and by `csrec_dist.data.log.read_log`."""

    def matches(self, path: Path) -> bool: ...

    def scan(self, path: Path, columns: Columns) -> pl.LazyFrame: ...


# The first that matches reads a file: special forms before general ones.
READERS: dict[str, Reader] = {
    "parquet": parquet,
    "inter": inter,
    "hetrec": hetrec,
    "yelp": yelp,
    "amazon_reviews": amazon_reviews,
    "json_lines": json_lines,
    "amazon_ratings": amazon_ratings,
    "delimited": delimited,
}


def detect(path: Path) -> str:
    """The name of the reader for a file. UserError when no reader knows it."""
    found = next((name for name, reader in READERS.items() if reader.matches(path)), None)
    if found is None:
        raise UserError(
            f"{path}: no reader knows this file by its beginning; set dataset.format to one of {listed(READERS)}."
        )
    return found
