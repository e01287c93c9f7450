"""Reader of MIND's behaviors.tsv: impression, user, time, history in a cell, and what was shown, clicked (-1) or not.

A user's interactions are the history of the first impression, in its order, and the clicks. A history has no times:
its items have the time of the impression that shows them, and come before its clicks.
"""

import re
from pathlib import Path

import polars as pl

from csrec_dist.data.columns import Layout, Scan, pick
from csrec_dist.data.parts import Part
from csrec_dist.data.readers.delimited import scan_text
from csrec_dist.data.readers.peek import first_line

NAMES = ["impression", "user", "timestamp", "history", "shown"]
SHOWN = re.compile(r"\S+-[01]( \S+-[01])*")
TIME_FORMAT = "%m/%d/%Y %I:%M:%S %p"


def matches(path: Path) -> bool:
    """Whether the first line has five fields between tabs, the last with clicks."""
    values = first_line(path).split("\t")
    return len(values) == len(NAMES) and SHOWN.fullmatch(values[-1]) is not None


def scan(part: Part, layout: Layout) -> Scan:
    """Columns user, item and timestamp as text: first what histories have, then the clicks, in file order."""
    log = scan_text(part, "\t", NAMES)
    clicked = (
        pl.col("shown")
        .str.split(" ")
        .list.eval(pl.element().filter(pl.element().str.ends_with("-1")).str.strip_suffix("-1"))
    )
    time = pl.col("timestamp").str.to_datetime(TIME_FORMAT, strict=False)
    first = log.group_by("user", maintain_order=True).agg(pl.all().sort_by(time, nulls_last=True).first())
    histories = first.select("user", "timestamp", item=pl.col("history").str.split(" "))
    clicks = log.select("user", "timestamp", item=clicked)
    interactions = [each.explode("item").filter(pl.col("item").str.len_chars() > 0) for each in (histories, clicks)]
    return pick(pl.concat(interactions), layout, part)
