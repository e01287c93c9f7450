"""Reader of JSON lines (plain or .gz): one object per line, fields by name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from csrec_dist.data.columns import Layout, Scan, choose, scan_of
from csrec_dist.data.readers.peek import first_record, opened
from csrec_dist.errors import UserError, quoted
from csrec_dist.files import parse_json


def matches(path: Path) -> bool:
    """Whether the first line is a JSON object."""
    return bool(first_record(path))


def scan(path: Path, layout: Layout, usual: dict[str, str] | None = None) -> Scan:
    """Columns user, item, rating and timestamp as text (exact for integers of any size), in file order.

    The fields of all objects count, so that no single object decides; an object without a field has null there.
    `usual` names the fields of a known format. Raises UserError if a value is a list or an object.
    """
    names = field_names(path)
    known = {role: name for role, name in (usual or {}).items() if name in names}
    taken = choose(names, layout.columns.filled(known), path)
    fields = {role: name for role, name in taken.items() if name is not None}
    log = pl.scan_ndjson(path, schema=dict.fromkeys(fields.values(), pl.String))
    _refuse_nested(log, list(fields.values()), path)
    return scan_of(log, taken, names)


def field_names(path: Path) -> list[str]:
    """The names of the fields of all objects, in order of their first appearance."""
    try:
        return pl.scan_ndjson(path, infer_schema_length=None).collect_schema().names()
    except pl.exceptions.SchemaError:  # a field has values of types without a common one
        return list(dict.fromkeys(name for _, record in _records(path) for name in record))


def _refuse_nested(log: pl.LazyFrame, names: list[str], path: Path) -> None:
    """Raise UserError if a field has a list or an object, which Polars would read as its text.

    The lines are parsed only if some text begins like one, and decide: "[deleted]" is an id.
    """
    looks_nested = pl.any_horizontal(pl.col(names).str.contains(r"^[\[{]"))
    if log.select(looks_nested.any()).collect(engine="streaming").item():
        for number, record in _records(path):
            nested = next((name for name in names if isinstance(record.get(name), list | dict)), None)
            if nested is not None:
                raise UserError(
                    f"{path}: {quoted(nested)} of line {number} is {quoted(record[nested])}, where a number or a text "
                    "is needed: mend the log, or name another field in dataset.columns."
                )


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects with their line numbers, from 1. Raises UserError for a line that is not an object."""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                record = parse_json(line) if line.strip() else {}
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise UserError(f"{path}: line {number} is no JSON object: {quoted(line.decode(errors='replace'))}.")
            yield number, record
