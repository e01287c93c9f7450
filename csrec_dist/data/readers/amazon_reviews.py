"""Reader of Amazon's review files of 2014, 2018 and 2023: JSON lines, plain or compressed.

2014 and 2018: reviewerID, asin, overall, unixReviewTime (seconds).
2023: user_id, parent_asin (variants of a product are one item), rating, timestamp (milliseconds).
"""

from pathlib import Path

from csrec_dist.data.columns import Layout, Scan
from csrec_dist.data.parts import Part
from csrec_dist.data.readers import json_lines
from csrec_dist.data.readers.peek import first_record

OLD = {"user": "reviewerID", "item": "asin", "rating": "overall", "timestamp": "unixReviewTime"}
NEW = {"user": "user_id", "item": "parent_asin", "rating": "rating", "timestamp": "timestamp"}


def matches(path: Path) -> bool:
    """Whether the first object has the reviewer and the product under one of the two sets of names."""
    record = first_record(path) or {}
    return any({names["user"], names["item"]} <= record.keys() for names in (OLD, NEW))


def scan(part: Part, layout: Layout) -> Scan:
    """Columns user, item, rating and timestamp as text, in file order."""
    return json_lines.scan(part, layout, OLD if "reviewerID" in (first_record(part.text) or {}) else NEW)
