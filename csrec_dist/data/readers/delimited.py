"""Reader of delimited text: comma, semicolon, tab, |, ::, # or a space between fields.

Columns are named by the header, or by position if there is none (`dataset.header: false`). A first line that reads
as data is never taken as a header, because it would be lost.
"""

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

from csrec_dist.data.columns import (
    BadLineError,
    FindLines,
    Layout,
    Scan,
    UnclearHeaderError,
    guesses,
    pick,
    refuse_twice,
)
from csrec_dist.data.compressed import opened
from csrec_dist.data.parts import Part
from csrec_dist.data.readers.peek import fields, first_line, is_date, is_number
from csrec_dist.errors import UserError, listed, quoted

SEPARATORS = ("\t", ",", ";", "|")
RARE_SEPARATORS = ("#", " ")  # text has them too, so that they count where none of the others occurs
LONG_SEPARATOR = "::"
QUOTING = (",", ";")  # those between which a field may stand in quotes
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
    lines_of = field_lines(part, separator)
    if layout.header is False:
        return pick(without_header(part, separator, len(names)), layout, part, lines_of=lines_of)
    if layout.header is None and not _is_header(names):
        numbered = listed(f"{position}: {quoted(name)}" for position, name in enumerate(names, 1))
        raise UnclearHeaderError(
            f"{part.path}: its first line reads as data, not as the names of columns: {numbered}. If it is an "
            f"interaction, {BY_POSITION}; if it is the header, set dataset.header: true.",
            names,
        )
    log = _scan_long(part, separator, names).slice(1) if len(separator) > 1 else scan_text(part, separator)
    picked = pick(log, layout, part, hint=f"; or, if this line is no header, {BY_POSITION}", lines_of=lines_of)
    refuse_twice(names, picked.taken, part.path)  # Polars has renamed the second
    return picked


def separator_of(line: str, path: Path) -> str:
    """The separator with the most fields in the line of `path`; "::" if it occurs; # or a space if no other does."""
    if LONG_SEPARATOR in line:
        return LONG_SEPARATOR
    best = max(SEPARATORS, key=lambda separator: len(fields(line, separator, path)))
    if len(fields(line, best, path)) > 1:
        return best
    return next((separator for separator in RARE_SEPARATORS if separator in line), " ")


def scan_text(part: Part, separator: str, names: list[str] | None = None) -> pl.LazyFrame:
    """All columns as text, named by the header, or by `names` if there is no header.

    Raises UserError if the first line has another number of fields than there are names.
    """
    if names is not None and len(first := fields(first_line(part.text), separator, part.path)) != len(names):
        raise UserError(
            f"{part.path}: its first line has {len(first)} fields ({listed(map(quoted, first))}) between "
            f"{quoted(separator)}, where this reader needs {len(names)} ({listed(names)}); leave dataset.format "
            "out, or name another reader."
        )
    log = pl.scan_csv(
        part.text,
        separator=separator,
        has_header=names is None,
        new_columns=names,
        quote_char='"' if separator in QUOTING else None,
        infer_schema=False,
    )
    # Polars notices a row with too many fields only where it reads all columns: in a narrower one the fields after a
    # separator that was not quoted would be taken for those of other columns.
    return log.map_batches(lambda rows: rows, projection_pushdown=False, streamable=True, validate_output_schema=False)


def without_header(part: Part, separator: str, num_columns: int) -> pl.LazyFrame:
    """All columns as text, named "column 1", "column 2", …"""
    names = [f"column {number}" for number in range(1, num_columns + 1)]
    return _scan_long(part, separator, names) if len(separator) > 1 else scan_text(part, separator, names)


class Row(NamedTuple):
    """A row of a file: the number of its first line, from 1; its bytes, its fields, and what is wrong with them."""

    line: int
    raw: bytes
    fields: list[str]
    problem: str = ""


def rows_of(part: Part, separator: str) -> Iterator[Row]:
    """Yield each row that is not blank, the header among them; one with a problem has no fields, or those it has.

    A quote that is opened and never closed takes all that follows into its field: such a line counts as one wrong row,
    and the next line as the beginning of another row.
    """
    with opened(part.text) as file:
        lines, again = enumerate(file, 1), deque[tuple[int, bytes]]()
        num_fields = 0
        while (row := _next_row(lines, again, separator)) is not None:
            if not row.problem and num_fields and len(row.fields) > num_fields:
                has = f"it has {len(row.fields)} fields ({listed(map(quoted, row.fields))})"
                row = row._replace(problem=f"{has}, where the first row has {num_fields}")
            num_fields = num_fields or len(row.fields)
            if row.raw.strip():
                yield row


def _next_row(lines: Iterator[tuple[int, bytes]], again: deque[tuple[int, bytes]], separator: str) -> Row | None:
    """The next row, None after the last, of the numbered lines: first those to be read `again`, then the others.

    If its quote is never closed, the lines after its first one come into `again`.
    """
    taken: list[tuple[int, bytes]] = []

    def texts() -> Iterator[str]:
        while (line := again.popleft() if again else next(lines, None)) is not None:
            taken.append(line)
            yield line[1].decode("utf-8-sig" if line[0] == 1 else "utf-8", errors="replace")

    problem, row = "", []
    try:
        if separator in QUOTING:
            row = next(csv.reader(texts(), delimiter=separator, strict=True), [])
        else:
            row = next(texts(), "").rstrip("\r\n").split(separator)
    except csv.Error as error:
        problem = f"it cannot be cut into fields ({error})"
        again.extendleft(reversed(taken[1:]))
        del taken[1:]
    if not taken:
        return None
    raw = b"".join(line for _, line in taken)
    if not problem:
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError:
            problem = "it is not UTF-8"
    return Row(taken[0][0], raw, row, problem)


def field_lines(part: Part, separator: str) -> FindLines:
    """A function that finds the lines in which a column has a value."""

    def lines_of(name: str, value: str) -> Iterator[int]:
        rows = rows_of(part, separator)
        by_position = name.startswith("column ") and name.removeprefix("column ").isdecimal()
        names = [] if by_position else next(rows).fields
        place = int(name.removeprefix("column ")) - 1 if by_position else _place(name, names)
        return (row.line for row in rows if row.fields[place : place + 1] == [value])

    return lines_of


def separator_used(part: Part, layout: Layout) -> str:
    """The separator that the config gives, or that the first line has."""
    return layout.separator or separator_of(first_line(part.text), part.path)


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


def scan_lines(part: Part) -> pl.LazyFrame:
    """The column `line`, for readers that take lines apart, without the byte order mark that a file may begin with."""
    return pl.scan_lines(part.text).with_columns(pl.col("line").str.strip_prefix("\ufeff"))


def _scan_long(part: Part, separator: str, names: list[str]) -> pl.LazyFrame:
    """The same as `scan_text` for a separator of several characters, of which Polars' parser is not capable.

    Skips blank lines. Raises BadLineError for one with more fields than names, which would be cut without a word.
    """
    line = pl.col("line").str.strip_chars_end("\r")
    lines = scan_lines(part)
    has_more = line.str.count_matches(separator, literal=True) >= len(names)
    for text in lines.filter(has_more).head(1).collect(engine="streaming")["line"]:
        raise BadLineError(f"{part.path}: {quoted(text)} has more than {len(names)} fields")
    columns = line.str.split_exact(separator, len(names) - 1).struct.rename_fields(names)
    return lines.filter(line != "").select(columns).unnest("line")
