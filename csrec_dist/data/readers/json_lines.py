"""Reader of JSON lines (plain or .gz): one object a line, fields by name."""

from pathlib import Path

import polars as pl

from csrec_dist.data.columns import ROLES, Columns, choose
from csrec_dist.data.readers.peek import first_record


def matches(path: Path) -> bool:
    """Whether the first line is a JSON object."""
    return bool(first_record(path))


def scan(path: Path, columns: Columns) -> pl.LazyFrame:
    """Columns user, item, rating and timestamp as text (exact for integers of any size), in file order.

    The fields are those of the first object; an object without one of them has null there.
    """
    chosen = choose(list(first_record(path)), columns, path)
    schema = {name: pl.String for name in chosen.values() if name is not None}
    log = pl.scan_ndjson(path, schema=schema)
    return log.select(
        pl.lit(None).alias(role) if chosen[role] is None else pl.col(str(chosen[role])).alias(role) for role in ROLES
    )
