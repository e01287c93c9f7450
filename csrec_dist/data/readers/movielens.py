"""Reader of MovieLens' u.data (tabs) and ratings.dat (::): user, item, rating, time in seconds; no header."""

from pathlib import Path

from csrec_dist.data.columns import Layout, Scan, pick
from csrec_dist.data.parts import Part
from csrec_dist.data.readers.delimited import LONG_SEPARATOR, field_lines, without_header
from csrec_dist.data.readers.peek import first_lines, is_number

NUM_LINES = 1000
FIRST_TIME = 1e8  # seconds: 1973; with smaller numbers the file is not MovieLens'


def matches(path: Path) -> bool:
    """Whether the first lines have four numbers, the third a rating up to 5 and the last a time in seconds."""
    lines = first_lines(path, NUM_LINES)
    return bool(lines) and all(_is_rating(line.split(_separator(line))) for line in lines)


def scan(part: Part, layout: Layout) -> Scan:
    """Columns user, item, rating and timestamp as text, in file order."""
    layout = layout.filled({"user": 1, "item": 2, "rating": 3, "timestamp": 4})
    separator = _separator(first_lines(part.text)[0])
    return pick(without_header(part, separator, 4), layout, part, lines_of=field_lines(part, separator))


def _separator(line: str) -> str:
    return LONG_SEPARATOR if LONG_SEPARATOR in line else "\t"


def _is_rating(values: list[str]) -> bool:
    return (
        len(values) == 4
        and all(map(is_number, values))
        and 0 < float(values[2]) <= 5
        and FIRST_TIME < float(values[3]) < 1000 * FIRST_TIME
    )
