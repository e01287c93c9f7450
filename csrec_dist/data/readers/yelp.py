"""Reader of Yelp's yelp_academic_dataset_review.json: user_id, business_id, stars, date."""

from pathlib import Path

from csrec_dist.data.columns import Layout, Scan
from csrec_dist.data.parts import Part
from csrec_dist.data.readers import json_lines
from csrec_dist.data.readers.peek import first_record

NAMES = {"user": "user_id", "item": "business_id", "rating": "stars", "timestamp": "date"}


def matches(path: Path) -> bool:
    """Whether the first object has the four fields of a review."""
    return set(NAMES.values()) <= (first_record(path) or {}).keys()


def scan(part: Part, layout: Layout) -> Scan:
    """Columns user, item, rating and timestamp as text, in file order."""
    return json_lines.scan(part, layout, NAMES)
