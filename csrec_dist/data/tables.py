"""Logs in memory: tables of pandas, polars, pyarrow and Hugging Face Datasets as columns for `prepare`."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from csrec_dist.data.bad_rows import BadRows
from csrec_dist.data.columns import Layout, choose, scan_of
from csrec_dist.data.log import Log, log_of
from csrec_dist.errors import UserError, shortened

LONGEST_REASON = 200


class TableKind(NamedTuple):
    """A library's table: what messages call it, the names of its columns, and some of them as polars columns."""

    title: str
    names: Callable[[Any], Sequence[Any]]
    columns: Callable[[Any, list[int]], pl.LazyFrame]


def read_table(table: Any, layout: Layout, place: Path) -> Log:
    """The interactions of a table, which messages call `place`. Columns that are not used may be of any type."""
    import pyarrow as pa

    kind = kind_of(table)
    names = [str(name) for name in kind.names(table)]
    taken = choose(names, layout.columns, place, _hint_of_index(table, names))
    used = layout.columns_used(names, taken, place)
    try:
        picked = kind.columns(table, sorted(names.index(name) for name in used))
        scan = scan_of(picked, taken, names, layout, place, typed=True)
        frame = scan.frame.collect()
        num_not_kept, bad_rows = scan.num_not_kept(), BadRows()
        if layout.skips_bad_rows:
            num_not_kept -= bad_rows.add_no_numbers(scan, place, _nowhere)
    except (pa.ArrowException, pl.exceptions.PolarsError, OverflowError) as error:
        raise UserError(
            f"{place}: a column has values of several types, or of a type that is neither a number, a text nor a time "
            f"({shortened(str(error), LONGEST_REASON)}); convert it first, such as ids with astype(str)."
        ) from None
    log = log_of(frame, scan, place, _nowhere if layout.skips_bad_rows else None)
    return replace(log, num_not_kept=num_not_kept, bad_rows=BadRows.joined([bad_rows, log.bad_rows]))


def _hint_of_index(table: Any, names: Sequence[str]) -> str:
    """What to do where columns may be meant that a pandas table has in its index."""
    index = [str(name) for name in getattr(getattr(table, "index", None), "names", []) if name is not None]
    if not (hidden := [name for name in index if name not in names]):
        return ""
    return f"; the table's index has {', '.join(hidden)}, which log.reset_index() makes columns"


def _nowhere(column: str, value: str) -> Iterator[tuple[Path, int]]:
    """The lines of a table with a value: it has none."""
    return iter(())


def digest(log: Log) -> str:
    """The SHA-256 of a log's interactions and raw ids, whatever held them."""
    sha = hashlib.sha256()
    for ids in (log.users, log.items, *([log.other_items] if len(log.other_items) else [])):
        sha.update(f"{ids.dtype} {json.dumps(ids.cast(pl.String).to_list())}".encode())
    for name in sorted(log.frame.columns):
        column = log.frame[name]
        sha.update(f"{name} {column.dtype}".encode())
        if column.dtype != pl.Null:
            sha.update(column.is_null().to_numpy().tobytes())
            sha.update(column.fill_null(0).to_numpy().tobytes())
    return sha.hexdigest()


def kind_of(table: Any) -> TableKind:
    """The library of a table, told by its classes' modules, so that no library is imported for the question."""
    for each in type(table).__mro__:
        kind = KINDS.get((each.__module__.partition(".")[0], each.__name__))
        if kind is not None:
            return kind
    name = f"{type(table).__module__.partition('.')[0]}.{type(table).__qualname__}".removeprefix("builtins.")
    if name in INSTEAD:
        raise UserError(f"A log cannot be a {name}: {INSTEAD[name]}.")
    raise UserError(
        f"A log is the path of a file or folder, or a table of pandas, polars, pyarrow or Hugging Face Datasets, not a "
        f"{name}; pandas.DataFrame makes one of a list or dict."
    )


def _of_polars(table: Any, positions: list[int]) -> pl.LazyFrame:
    return table.lazy().select(pl.nth(positions))


def _of_arrow(table: Any, positions: list[int]) -> pl.LazyFrame:
    import pyarrow as pa

    picked = table.select(positions)
    for place, field in enumerate(picked.schema):
        if field.type == pa.uuid():  # polars would take its 16 bytes
            texts = pa.array([None if value is None else str(value) for value in picked[place].to_pylist()])
            picked = picked.set_column(place, field.name, texts)
    frame = pl.from_arrow(picked)
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy()


def _of_pandas(table: Any, positions: list[int]) -> pl.LazyFrame:
    import pyarrow as pa

    arrow = pa.Table.from_pandas(table.iloc[:, positions], preserve_index=False)
    return _of_arrow(arrow, list(range(len(positions))))


def _of_huggingface(table: Any, positions: list[int]) -> pl.LazyFrame:
    """The rows as the dataset gives them: one that was filtered or sorted has indices beside its table."""
    names = [table.column_names[position] for position in positions]
    return _of_arrow(table.select_columns(names).with_format("arrow")[:], list(range(len(positions))))


KINDS = {
    ("pandas", "DataFrame"): TableKind("pandas DataFrame", lambda table: list(table.columns), _of_pandas),
    ("polars", "DataFrame"): TableKind("polars DataFrame", lambda table: table.columns, _of_polars),
    ("polars", "LazyFrame"): TableKind("polars LazyFrame", lambda table: table.collect_schema().names(), _of_polars),
    ("pyarrow", "Table"): TableKind("pyarrow Table", lambda table: table.column_names, _of_arrow),
    ("datasets", "Dataset"): TableKind("Hugging Face Dataset", lambda table: table.column_names, _of_huggingface),
}
INSTEAD = {
    "datasets.DatasetDict": 'give one of its splits, such as log["train"]',
    "datasets.IterableDataset": "write it to Parquet and give the path",
}
