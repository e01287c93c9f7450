"""Reader of JSON lines: one object per line, fields by name."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from csrec_dist.data.columns import BadLineError, Layout, Scan, choose, scan_of
from csrec_dist.data.compressed import opened
from csrec_dist.data.parts import Part
from csrec_dist.data.readers.peek import first_record
from csrec_dist.errors import quoted
from csrec_dist.files import parse_json


def matches(path: Path) -> bool:
    """Whether the first line is a JSON object."""
    return first_record(path) is not None


def scan(part: Part, layout: Layout, usual: dict[str, str] | None = None) -> Scan:
    """Columns user, item, rating and timestamp as text (exact for integers of any size), in file order.

    The fields of all objects count, so that no single object decides; an object without a field has null there.
    `usual` names the fields of a known format. Raises UserError if a value is a list or an object.
    """
    in_file = field_names(part)
    names = list(dict.fromkeys([*in_file, *part.partition]))
    layout = layout.filled({role: name for role, name in (usual or {}).items() if name in names})
    taken = choose(names, layout.columns, part.path)
    used = layout.columns_used(names, taken, part.path)
    log = pl.scan_ndjson(part.text, schema={name: pl.String for name in in_file if name in used})
    _refuse_nested(log, part)
    log = log.with_columns(pl.lit(value).alias(name) for name, value in part.partition.items() if name not in in_file)
    return scan_of(log, taken, names, layout, part.path, lines_of=partial(_lines_of, part))


def field_names(part: Part) -> list[str]:
    """The names of the fields of all objects, in order of their first appearance."""
    try:
        return pl.scan_ndjson(part.text, infer_schema_length=None).collect_schema().names()
    except pl.exceptions.SchemaError:  # a field has values of types without a common one
        return list(dict.fromkeys(name for _, record in records(part) for name in record))


def lines(part: Part) -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
    """Yield each line with its number, from 1, and its object: none where it is not one, an empty one for a blank."""
    with opened(part.text) as file:
        for number, line in enumerate(file, 1):
            try:
                record = parse_json(line) if line.strip() else {}
            except ValueError:
                record = None
            yield number, line, record if isinstance(record, dict) else None


def records(part: Part) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects with their line numbers, from 1. Raises BadLineError for a line that is not an object."""
    for number, line, record in lines(part):
        if record is None:
            text = quoted(line.decode(errors="replace").strip())
            raise BadLineError(f"{part.path}: line {number} is no JSON object: {text}; mend or remove it.")
        yield number, record


def _refuse_nested(log: pl.LazyFrame, part: Part) -> None:
    """Raise BadLineError if a field has a list or an object, which Polars would read as its text.

    The lines are parsed only if some text begins like one, and decide: "[deleted]" is an id.
    """
    names = log.collect_schema().names()
    looks_nested = pl.any_horizontal(pl.col(names).str.contains(r"^[\[{]"))
    if log.select(looks_nested.any()).collect(engine="streaming").item():
        for number, record in records(part):
            nested = next((name for name in names if isinstance(record.get(name), list | dict)), None)
            if nested is not None:
                raise BadLineError(
                    f"{part.path}: {quoted(nested)} of line {number} is {quoted(record[nested])}, where a number or a "
                    "text is needed: mend the log, or name another field in dataset.columns.",
                    nested,
                )


def _lines_of(part: Part, name: str, value: str) -> Iterator[int]:
    """The lines of the objects with this value."""
    return (number for number, _, record in lines(part) if record and str(record.get(name)) == value)
