"""Reader of delimited text: comma, semicolon, tab, |, :: or a space between fields; plain or .gz.

Columns are named by the header, or by position if there is none (`dataset.header: false`). A first line that reads
as data is never taken as a header, because it would be lost.
"""

from pathlib import Path

import polars as pl

from csrec_dist.data.columns import Layout, Scan, UnclearHeaderError, guesses, pick
from csrec_dist.data.readers.peek import fields, first_line, in_utf8, is_date, is_number
from csrec_dist.errors import listed, quoted

SEPARATORS = ("\t", ",", ";", "|")
LONG_SEPARATOR = "::"
BY_POSITION = (
    "set dataset.header: false and give the columns by position, such as dataset.columns: {user: 1, item: 2, "
    "timestamp: 3} (timestamp: none where the rows are in order already)"
)


def matches(path: Path) -> bool:
    """Whether the first line is printable text with a separator; a space is one only in a header of usual names."""
    line = first_line(path)
    separator = separator_of(line, path)
    return line.replace("\t", " ").isprintable() and (separator != " " or _has_usual_names(line.split(" ")))


def scan(path: Path, layout: Layout) -> Scan:
    """Columns user, item, rating and timestamp as text, in file order.

    Raises UserError if the first line may be data and `layout.header` does not say what it is.
    """
    text = in_utf8(path, layout.encoding)
    line = first_line(path) if isinstance(text, Path) else next(filter(str.strip, text.decode().splitlines()), "")
    separator = separator_of(line, path)
    names = fields(line, separator, path)
    if layout.header is False:
        return pick(without_header(text, separator, len(names)), layout.columns, path)
    if layout.header is None and not _is_header(names):
        numbered = listed(f"{position}: {quoted(name)}" for position, name in enumerate(names, 1))
        raise UnclearHeaderError(
            f"{path}: its first line reads as data, not as the names of columns: {numbered}. If it is an "
            f"interaction, {BY_POSITION}; if it is the header, set dataset.header: true.",
            names,
        )
    log = _scan_long(text, names).slice(1) if separator == LONG_SEPARATOR else scan_text(text, separator)
    return pick(log, layout.columns, path, f"; or, if this line is no header, {BY_POSITION}")


def separator_of(line: str, path: Path) -> str:
    """The separator with the most fields in the line of `path`; "::" if it occurs, and a space if no other does."""
    if LONG_SEPARATOR in line:
        return LONG_SEPARATOR
    best = max(SEPARATORS, key=lambda separator: len(fields(line, separator, path)))
    return best if len(fields(line, best, path)) > 1 else " "


def scan_text(text: Path | bytes, separator: str, names: list[str] | None = None) -> pl.LazyFrame:
    """All columns as text, named by the header, or by `names` if there is no header."""
    return pl.scan_csv(
        text,
        separator=separator,
        has_header=names is None,
        new_columns=names,
        quote_char='"' if separator in ",;" else None,
        infer_schema=False,
    )


def without_header(text: Path | bytes, separator: str, num_columns: int) -> pl.LazyFrame:
    """All columns as text, named "column 1", "column 2", …"""
    names = [f"column {number}" for number in range(1, num_columns + 1)]
    return _scan_long(text, names) if separator == LONG_SEPARATOR else scan_text(text, separator, names)


def _is_header(names: list[str]) -> bool:
    """Whether the fields are names: none is a number or a date, or usual names of user and item are among them."""
    has_values = any(is_number(name) or is_date(name) for name in names)
    return not has_values or _has_usual_names(names)


def _has_usual_names(names: list[str]) -> bool:
    return bool(guesses("user", names) and guesses("item", names))


def _scan_long(text: Path | bytes, names: list[str]) -> pl.LazyFrame:
    """The same as `scan_text` for the separator "::", of which Polars' CSV parser is not capable; skips blank lines."""
    line = pl.col("line").str.strip_chars_end("\r")
    columns = line.str.split_exact(LONG_SEPARATOR, len(names) - 1).struct.rename_fields(names)
    return pl.scan_lines(text).filter(line != "").select(columns).unnest("line")
