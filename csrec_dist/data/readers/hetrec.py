"""Reader of the tag assignments of HetRec 2011 Last.FM: who tagged which artist, with which tag, when.

user_taggedartists.dat has day, month and year; user_taggedartists-timestamps.dat has milliseconds. A user may give an
artist several tags, which are ONE interaction: the first in time, or in the file if their times are equal.
"""

from dataclasses import replace
from pathlib import Path

import polars as pl

from csrec_dist.data.columns import Layout, Scan, pick
from csrec_dist.data.parts import Part
from csrec_dist.data.readers.delimited import scan_text
from csrec_dist.data.readers.peek import first_line
from csrec_dist.errors import UserError, listed, quoted

IDS = ["userID", "artistID", "tagID"]
NAMES = {"user": "userID", "item": "artistID"}


def matches(path: Path) -> bool:
    """Whether the header is that of one of the two files."""
    return first_line(path).split("\t")[:3] == IDS


def scan(part: Part, layout: Layout) -> Scan:
    """Columns user and item as text, and timestamp as Int64 (seconds or milliseconds), in file order.

    Raises UserError if the config names a column that the file does not have.
    """
    if not matches(part.text):
        raise UserError(
            f"{part.path}: its first line, {quoted(first_line(part.text))}, does not begin with {listed(IDS)} between "
            "tabs, which this reader needs; leave dataset.format out, or name another reader."
        )
    log = scan_text(part, "\t")
    # What is no time becomes a missing one, which is counted, where rows may be skipped.
    name, strict = "timestamp", not layout.skips_bad_rows
    if "year" in log.collect_schema():
        name = "year, month, day"
        day = pl.concat_str("year", "month", "day", separator="-").str.to_date("%Y-%m-%d", strict=strict)
        log = log.with_columns(day.cast(pl.Datetime("ms")).dt.epoch("s").alias(name))
    else:
        log = log.with_columns(pl.col(name).cast(pl.Int64, strict=strict))
    scanned = pick(log, layout.filled({**NAMES, "timestamp": name}), part)
    return replace(scanned, frame=_first_of_each(scanned.frame))


def _first_of_each(log: pl.LazyFrame) -> pl.LazyFrame:
    """Keep the earliest row of each (user, item), one with a time if there is any; rows stay in the file's order."""
    earliest = log.with_row_index("line").sort("timestamp", "line", nulls_last=True)
    return earliest.unique(["user", "item"], keep="first", maintain_order=True).sort("line").drop("line")
