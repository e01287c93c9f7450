"""Reader of delimited text: comma, semicolon, tab, | or :: between fields; plain or .gz.

With a header the columns go by its names. A first line of numbers only is no header (MovieLens'
u.data and ratings.dat): the columns are then column_1, column_2, …, and two or four of them are taken
as user, item(, rating, timestamp) unless named otherwise.
"""

from pathlib import Path

import polars as pl

from csrec_dist.data.columns import ROLES, Columns, pick
from csrec_dist.data.readers.peek import fields, first_line, is_number

SEPARATORS = ("\t", ",", ";", "|")
LONG_SEPARATOR = "::"


def matches(path: Path) -> bool:
    """Whether the first line is printable text with a separator in it."""
    line = first_line(path)
    return line.replace("\t", " ").isprintable() and len(fields(line, separator_of(line, path), path)) > 1


def scan(path: Path, columns: Columns) -> pl.LazyFrame:
    """Columns user, item, rating and timestamp as text, in file order."""
    line = first_line(path)
    separator = separator_of(line, path)
    names = fields(line, separator, path)
    if all(is_number(name) for name in names):
        log, columns = without_header(path, separator, len(names)), by_position(columns, len(names))
    elif separator == LONG_SEPARATOR:
        log = _scan_long(path, names).slice(1)
    else:
        log = scan_text(path, separator)
    return pick(log, columns, path)


def separator_of(line: str, path: Path) -> str:
    """The separator that cuts the line of `path` into most fields; "::" wherever it occurs."""
    if LONG_SEPARATOR in line:
        return LONG_SEPARATOR
    return max(SEPARATORS, key=lambda separator: len(fields(line, separator, path)))


def scan_text(path: Path, separator: str, names: list[str] | None = None) -> pl.LazyFrame:
    """All columns as text, under the header's names, or under `names` where there is no header."""
    return pl.scan_csv(
        path,
        separator=separator,
        has_header=names is None,
        new_columns=names,
        quote_char='"' if separator in ",;" else None,
        infer_schema=False,
    )


def without_header(path: Path, separator: str, num_columns: int) -> pl.LazyFrame:
    """All columns as text under the names column_1, column_2, …"""
    names = [f"column_{number}" for number in range(1, num_columns + 1)]
    return _scan_long(path, names) if separator == LONG_SEPARATOR else scan_text(path, separator, names)


def by_position(columns: Columns, num_columns: int) -> Columns:
    """The columns of a file without a header: two or four stand in the order of the roles."""
    if num_columns not in (2, 4):
        return columns
    guessed = {role: f"column_{number}" for number, role in enumerate(ROLES[:num_columns], 1)}
    return Columns(**{**guessed, **columns.model_dump(exclude_none=True)})


def _scan_long(path: Path, names: list[str]) -> pl.LazyFrame:
    """As `scan_text` for the separator "::", which a CSV parser cannot take; blank lines are skipped."""
    line = pl.col("line").str.strip_chars_end("\r")
    parts = line.str.split_exact(LONG_SEPARATOR, len(names) - 1).struct.rename_fields(names)
    return pl.scan_lines(path).filter(line != "").select(parts).unnest("line")
