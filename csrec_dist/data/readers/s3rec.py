"""Reader of S3-Rec's files (Beauty.txt): one user per line, "user item item …", with the items in time order."""

from pathlib import Path

import polars as pl

from csrec_dist.data.columns import NONE, Layout, Scan, pick
from csrec_dist.data.parts import Part
from csrec_dist.data.readers.delimited import scan_lines
from csrec_dist.data.readers.peek import first_lines

NUM_LINES = 1000


def matches(path: Path) -> bool:
    """Whether the first lines are whole numbers separated by spaces, with distinct users and different lengths.

    Lines of equal length could as well be the rows of a table.
    """
    lines = [line.split() for line in first_lines(path, NUM_LINES)]
    if not all(len(numbers) > 1 and all(map(str.isdecimal, numbers)) for numbers in lines):
        return False
    users, lengths = {numbers[0] for numbers in lines}, {len(numbers) for numbers in lines}
    return len(users) == len(lines) and len(lengths) > 1


def scan(part: Part, layout: Layout) -> Scan:
    """Columns user and item as text; the items of a line are in time order."""
    words = pl.col("line").str.extract_all(r"\S+")
    lines = scan_lines(part).filter(pl.col("line").str.strip_chars() != "")
    log = lines.select(user=words.list.first(), item=words.list.slice(1)).explode("item")
    return pick(log, layout.filled({"timestamp": NONE}), part)
