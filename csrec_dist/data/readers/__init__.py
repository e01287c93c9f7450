"""Readers of raw logs: each has a file of its own and a line in READERS.

A reader decides by the beginning of a file whether it `matches`. It scans the file lazily into the columns user, item,
rating, timestamp and true_item (null if the log has none), one row per interaction in file order, and reports which
column of the file each of them is. Types may be raw (text files give text); `csrec_dist.data.log` converts them.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol

from csrec_dist.data.columns import Layout, Scan
from csrec_dist.data.parts import Part
from csrec_dist.data.readers import (
    amazon_ratings,
    amazon_reviews,
    delimited,
    hetrec,
    inter,
    json_lines,
    mind,
    movielens,
    parquet,
    s3rec,
    sasrec,
    yelp,
)
from csrec_dist.data.readers.delimited import BY_POSITION, Row
from csrec_dist.data.readers.peek import first_line
from csrec_dist.data.readers.refused import refuse_known_forms
from csrec_dist.errors import UserError, listed, quoted


class Reader(Protocol):
    """The functions of a reader's module, called by `detect` and by `csrec_dist.data.reading.read_log`."""

    def matches(self, path: Path) -> bool:
        """Whether a file looks, by its beginning, like this reader's."""

    def scan(self, part: Part, layout: Layout) -> Scan:
        """The file's columns, lazily; UserError where it is not what `matches` took it for."""


# The first reader that matches is taken, so special formats come before general ones.
READERS: dict[str, Reader] = {
    "parquet": parquet,
    "inter": inter,
    "hetrec": hetrec,
    "yelp": yelp,
    "amazon_reviews": amazon_reviews,
    "json_lines": json_lines,
    "amazon_ratings": amazon_ratings,
    "movielens": movielens,
    "mind": mind,
    "sasrec": sasrec,
    "s3rec": s3rec,
    "delimited": delimited,
}


NOT_DELIMITED = ("parquet", "yelp", "amazon_reviews", "json_lines")


def detect(path: Path, layout: Layout) -> str:
    """The name of the reader for a file. Raises UserError if no reader matches."""
    if layout.is_of_delimited_text:
        return _as_delimited(path, layout.encoding)
    if not first_line(path):
        raise UserError(f"{path} has only blank lines; a log needs at least one interaction.")
    name = next((name for name, reader in READERS.items() if reader.matches(path)), None)
    if name is None or name == "delimited":
        refuse_known_forms(path, None)
    if name is None:
        raise UserError(
            f"{path}: no reader knows this file by its first line, {quoted(first_line(path))}; set dataset.format to "
            f"one of {listed(READERS)}. If it is delimited text without a header, {BY_POSITION}; if it has another "
            "separator than usual, name it with dataset.separator."
        )
    return name


def _as_delimited(path: Path, encoding: str | None) -> str:
    """The reader of delimited text: the only one for which a config gives a header, an encoding or a separator."""
    name = next((name for name in NOT_DELIMITED if READERS[name].matches(path)), None)
    if name is not None:
        raise UserError(
            f"{path} is of the form '{name}', and dataset.header, dataset.encoding and dataset.separator are for "
            "delimited text: leave them out."
        )
    refuse_known_forms(path, encoding)
    return "delimited"


def numbered_rows(part: Part, format: str, layout: Layout, nested: Collection[str] = ()) -> Iterator[Row]:
    """The rows of a file of text, with what is wrong with them; those of JSON lines have no fields.

    In `nested` fields of JSON objects, lists and objects are wrong. Of Parquet there are none.
    """
    if format not in NOT_DELIMITED:
        yield from delimited.rows_of(part, _separator(part, format, layout))
    elif format != "parquet":
        for number, line, record in json_lines.lines(part):
            values = {name: record.get(name) for name in nested} if record else {}
            wrong = next((name for name, value in values.items() if isinstance(value, list | dict)), None)
            problem = "it is no JSON object" if record is None else f"its {quoted(wrong)} is nested" if wrong else ""
            yield Row(number, line, [], problem)


def quoting_separator(part: Part, format: str, layout: Layout) -> str | None:
    """The separator of a file of text whose fields may be quoted, else None."""
    separator = None if format in NOT_DELIMITED else _separator(part, format, layout)
    return separator if separator in delimited.QUOTING else None


def _separator(part: Part, format: str, layout: Layout) -> str:
    # A line of S3-Rec's files has as many items as its user: it is one field, which no line feed divides.
    return "\n" if format == "s3rec" else delimited.separator_used(part, layout)
