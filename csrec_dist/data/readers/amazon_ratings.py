"""Reader of Amazon's ratings-only CSV files, which have no header.

2014 (ratings_Electronics.csv): user, item, rating, timestamp. 2018 (Electronics.csv): item, user, …
The first lines tell which is which, because a product's id has ten characters of a fixed format.
"""

import re
from pathlib import Path

from csrec_dist.data.columns import Layout, Scan, pick
from csrec_dist.data.parts import Part
from csrec_dist.data.readers.delimited import field_lines, without_header
from csrec_dist.data.readers.peek import fields, first_line, first_lines, is_number
from csrec_dist.errors import UserError, quoted

ASIN = re.compile(r"B[0-9A-Z]{9}")
ISBN = re.compile(r"[0-9]{9}[0-9X]")
USER = re.compile(r"A[0-9A-Z]{8,}")
NUM_LINES = 1000
NUM_FIELDS = 4


def matches(path: Path) -> bool:
    """Whether the first line has two ids (not both numbers), a rating up to 5 and a time in seconds."""
    values = fields(first_line(path), ",", path)
    if len(values) != NUM_FIELDS or not (is_number(values[2]) and is_number(values[3])):
        return False
    ids_are_numbers = is_number(values[0]) and is_number(values[1])
    return not ids_are_numbers and 0 <= float(values[2]) <= 5 and float(values[3]) > 1e8


def scan(part: Part, layout: Layout) -> Scan:
    """Columns user, item, rating and timestamp as text, in file order.

    Raises UserError if both or neither of the first two columns look like products, or if a line is too short.
    """
    known = {**_ids_by_position(part), "rating": 3, "timestamp": 4}
    log = without_header(part, ",", NUM_FIELDS)
    return pick(log, layout.filled(known), part, lines_of=field_lines(part, ","))


def _ids_by_position(part: Part) -> dict[str, int]:
    """The positions of user and item: the column with more ids of products is the item."""
    path = part.path
    rows = [fields(line, ",", path) for line in first_lines(part.text, NUM_LINES)]
    number, short = next(((n, row) for n, row in enumerate(rows, 1) if len(row) < NUM_FIELDS), (0, None))
    if short is not None:
        raise UserError(
            f"{path}: line {number}, {quoted(','.join(short))}, has fewer than {NUM_FIELDS} fields (user, item, "
            "rating, timestamp): mend it, or set dataset.format to another reader."
        )
    ids = [[row[column] for row in rows] for column in (0, 1)]
    first, second = (sum(map(bool, map(ASIN.fullmatch, column))) for column in ids)
    if first == second:  # perhaps books, whose ids are no other than numbers
        first, second = (
            sum(bool(ISBN.fullmatch(item) and USER.fullmatch(user)) for item, user in zip(items, users, strict=True))
            for items, users in (ids, ids[::-1])
        )
    if first == second:
        raise UserError(
            f"{path}: cannot tell users from items by their ids, such as {quoted(rows[0][0])} and "
            f"{quoted(rows[0][1])}; set dataset.header: false and dataset.columns: {{user: 1, item: 2, rating: 3, "
            "timestamp: 4}, or user and item the other way round."
        )
    return {"item": 1, "user": 2} if first > second else {"user": 1, "item": 2}
