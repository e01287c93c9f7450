"""Reader of S3-Rec's files (Beauty.txt): one user a line, "user item item …", the items in order of time."""

from pathlib import Path

import polars as pl

from csrec_dist.data.columns import NONE, Layout, Scan, pick
from csrec_dist.data.readers.peek import first_lines

NUM_LINES = 1000


def matches(path: Path) -> bool:
    """Whether the first lines are whole numbers with spaces between them, each of another user, of several lengths."""
    lines = [line.split() for line in first_lines(path, NUM_LINES)]
    if not all(len(parts) > 1 and all(part.isdecimal() for part in parts) for parts in lines):
        return False
    users = {parts[0] for parts in lines}
    return len(users) == len(lines) and len({len(parts) for parts in lines}) > 1


def scan(path: Path, layout: Layout) -> Scan:
    """Columns user and item as text; the order of the items of a line is that of time."""
    parts = pl.col("line").str.extract_all(r"\S+")
    lines = pl.scan_lines(path).filter(pl.col("line").str.strip_chars() != "")
    log = lines.select(user=parts.list.first(), item=parts.list.slice(1)).explode("item")
    return pick(log, layout.columns.filled({"timestamp": NONE}), path)
