"""Reader of delimited text: comma, semicolon, tab, |, ::, # or a space between fields.

Columns are named by the header, or by position if there is none (`dataset.header: false`). A first line that reads
as data is never taken as a header, because it would be lost.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from csrec_dist.data.columns import FindLine, Layout, Scan, UnclearHeaderError, guesses, pick
from csrec_dist.data.compressed import opened
from csrec_dist.data.parts import Part
from csrec_dist.data.readers.peek import fields, first_line, is_date, is_number
from csrec_dist.errors import listed, quoted

SEPARATORS = ("\t", ",", ";", "|")
RARE_SEPARATORS = ("#", " ")  # text has them too, so that they count where none of the others occurs
LONG_SEPARATOR = "::"
BY_POSITION = (
    "set dataset.header: false and give the columns by position, such as dataset.columns: {user: 1, item: 2, "
    "timestamp: 3} (timestamp: none where the rows are in order already)"
)


def matches(path: Path) -> bool:
    """Whether the first line is printable text with a separator; # and space are some in a header of usual names."""
    line = first_line(path)
    separator = separator_of(line, path)
    is_sure = separator not in RARE_SEPARATORS or _has_usual_names(line.split(separator))
    return line.replace("\t", " ").isprintable() and is_sure


def scan(part: Part, layout: Layout) -> Scan:
    """Columns user, item, rating and timestamp as text, in file order.

    Raises UserError if the first line may be data and `layout.header` does not say what it is.
    """
    line = first_line(part.text)
    separator = layout.separator or separator_of(line, part.path)
    names = fields(line, separator, part.path)
    line_of = field_lines(part, separator)
    if layout.header is False:
        return pick(without_header(part, separator, len(names)), layout, part, line_of=line_of)
    if layout.header is None and not _is_header(names):
        numbered = listed(f"{position}: {quoted(name)}" for position, name in enumerate(names, 1))
        raise UnclearHeaderError(
            f"{part.path}: its first line reads as data, not as the names of columns: {numbered}. If it is an "
            f"interaction, {BY_POSITION}; if it is the header, set dataset.header: true.",
            names,
        )
    log = _scan_long(part, separator, names).slice(1) if len(separator) > 1 else scan_text(part, separator)
    return pick(log, layout, part, hint=f"; or, if this line is no header, {BY_POSITION}", line_of=line_of)


def separator_of(line: str, path: Path) -> str:
    """The separator with the most fields in the line of `path`; "::" if it occurs; # or a space if no other does."""
    if LONG_SEPARATOR in line:
        return LONG_SEPARATOR
    best = max(SEPARATORS, key=lambda separator: len(fields(line, separator, path)))
    if len(fields(line, best, path)) > 1:
        return best
    return next((separator for separator in RARE_SEPARATORS if separator in line), " ")


def scan_text(part: Part, separator: str, names: list[str] | None = None) -> pl.LazyFrame:
    """All columns as text, named by the header, or by `names` if there is no header."""
    return pl.scan_csv(
        part.text,
        separator=separator,
        has_header=names is None,
        new_columns=names,
        quote_char='"' if separator in ",;" else None,
        infer_schema=False,
    )


def without_header(part: Part, separator: str, num_columns: int) -> pl.LazyFrame:
    """All columns as text, named "column 1", "column 2", …"""
    names = [f"column {number}" for number in range(1, num_columns + 1)]
    return _scan_long(part, separator, names) if len(separator) > 1 else scan_text(part, separator, names)


def rows_of(part: Part, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each row (the header among them), with the number of its last line, from 1."""
    with opened(part.text) as file, io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="") as text:
        if separator in ",;":
            reader = csv.reader(text, delimiter=separator)
            yield from ((reader.line_num, row) for row in reader if row)
        else:
            lines = ((number, line.rstrip("\r\n")) for number, line in enumerate(text, 1))
            yield from ((number, line.split(separator)) for number, line in lines if line.strip())


def field_lines(part: Part, separator: str) -> FindLine:
    """A function that finds the line in which a column has a value."""

    def line_of(name: str, value: str) -> int | None:
        rows = rows_of(part, separator)
        by_position = name.startswith("column ") and name.removeprefix("column ").isdecimal()
        _, names = (0, []) if by_position else next(rows)
        place = int(name.removeprefix("column ")) - 1 if by_position else _place(name, names)
        return next((number for number, row in rows if row[place : place + 1] == [value]), None)

    return line_of


def wrong_line(part: Part, layout: Layout) -> str:
    """The file and its first row with more fields than the first row has; "" if there is none."""
    separator = layout.separator or separator_of(first_line(part.text), part.path)
    rows = rows_of(part, separator)
    first_number, first = next(rows, (0, []))
    longer = next(((number, row) for number, row in rows if len(row) > len(first)), None)
    if longer is None:
        return ""
    number, row = longer
    return (
        f"{part.path}, line {number:,}: it has {len(row)} fields ({listed(map(quoted, row))}), where line "
        f"{first_number} has {len(first)}; mend it, or name another separator with dataset.separator."
    )


def _place(name: str, names: list[str]) -> int:
    """The position of a column; RecBole's names carry a type that readers leave out."""
    plain = [each.rpartition(":")[0] if name not in names else each for each in names]
    return plain.index(name) if name in plain else len(names)


def _is_header(names: list[str]) -> bool:
    """Whether the fields are names: none is a number or a date, or usual names of user and item are among them."""
    has_values = any(is_number(name) or is_date(name) for name in names)
    return not has_values or _has_usual_names(names)


def _has_usual_names(names: list[str]) -> bool:
    return bool(guesses("user", names) and guesses("item", names))


def _scan_long(part: Part, separator: str, names: list[str]) -> pl.LazyFrame:
    """The same as `scan_text` for a separator of several characters, of which Polars' parser is not capable.

    Skips blank lines.
    """
    line = pl.col("line").str.strip_chars_end("\r")
    columns = line.str.split_exact(separator, len(names) - 1).struct.rename_fields(names)
    return pl.scan_lines(part.text).filter(line != "").select(columns).unnest("line")
