"""Reader of SASRec's files (Video.txt, ml-1m.txt): one "user item" per line, a user's lines together in time order."""

from pathlib import Path

from csrec_dist.data.columns import NONE, Layout, Scan, pick
from csrec_dist.data.parts import Part
from csrec_dist.data.readers.delimited import scan_text
from csrec_dist.data.readers.peek import first_lines

NUM_LINES = 1000


def matches(path: Path) -> bool:
    """Whether the first lines are pairs of whole numbers separated by a space, with ascending users."""
    pairs = [line.split(" ") for line in first_lines(path, NUM_LINES)]
    if not pairs or not all(len(pair) == 2 and pair[0].isdecimal() and pair[1].isdecimal() for pair in pairs):
        return False
    users = [int(user) for user, _ in pairs]
    return users == sorted(users)


def scan(part: Part, layout: Layout) -> Scan:
    """Columns user and item as text; the lines are in time order."""
    return pick(scan_text(part, " ", ["user", "item"]), layout.filled({"timestamp": NONE}), part)
