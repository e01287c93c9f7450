"""Reader of Amazon's ratings-only CSV files, which have no header.

2014 (ratings_Electronics.csv): user, item, rating, timestamp. 2018 (Electronics.csv): item, user, …
Which is which is told from the first lines: a product's id has ten characters of a fixed form.
"""

import re
from pathlib import Path

from csrec_dist.data.columns import Layout, Scan, pick
from csrec_dist.data.readers.delimited import without_header
from csrec_dist.data.readers.peek import fields, first_line, first_lines, is_number
from csrec_dist.errors import UserError, quoted

ASIN = re.compile(r"B[0-9A-Z]{9}|[0-9]{9}[0-9X]")
NUM_LINES = 1000
NUM_FIELDS = 4


def matches(path: Path) -> bool:
    """Whether the first line is two ids (not both numbers), a rating up to 5 and a time in seconds."""
    parts = fields(first_line(path), ",", path)
    if len(parts) != NUM_FIELDS or not (is_number(parts[2]) and is_number(parts[3])):
        return False
    ids_are_numbers = is_number(parts[0]) and is_number(parts[1])
    return not ids_are_numbers and 0 <= float(parts[2]) <= 5 and float(parts[3]) > 1e8


def scan(path: Path, layout: Layout) -> Scan:
    """Columns user, item, rating and timestamp as text, in file order.

    Raises UserError when both or neither of the first two columns look like products, and when a line is too short.
    """
    known = {**_told_from_ids(path), "rating": 3, "timestamp": 4}
    return pick(without_header(path, ",", NUM_FIELDS), layout.columns.filled(known), path)


def _told_from_ids(path: Path) -> dict[str, int]:
    rows = [fields(line, ",", path) for line in first_lines(path, NUM_LINES)]
    short = next((row for row in rows if len(row) < NUM_FIELDS), None)
    if short is not None:
        raise UserError(
            f"{path}: the line {quoted(','.join(short))} has fewer than {NUM_FIELDS} fields (user, item, rating, "
            "timestamp): mend it, or set dataset.format to another reader."
        )
    first, second = (sum(bool(ASIN.fullmatch(row[place])) for row in rows) for place in (0, 1))
    if first == second:
        raise UserError(
            f"{path}: cannot tell users from items by their ids, such as {quoted(rows[0][0])} and "
            f"{quoted(rows[0][1])}; set dataset.header: false and dataset.columns: {{user: 1, item: 2, rating: 3, "
            "timestamp: 4}, or user and item the other way round."
        )
    return {"item": 1, "user": 2} if first > second else {"user": 1, "item": 2}
