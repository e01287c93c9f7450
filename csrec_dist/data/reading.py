"""Reading the files of a raw log, in parts and splits; messages name the file, the line and what was expected."""

import csv
import io
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import polars as pl

from csrec_dist.data.bad_rows import BadRows
from csrec_dist.data.columns import BadLineError, ColumnError, Layout, Scan
from csrec_dist.data.log import Log, log_of
from csrec_dist.data.parts import Part, parts_of
from csrec_dist.data.readers import READERS, numbered_rows, quoting_separator
from csrec_dist.data.readers.peek import undecodable_line
from csrec_dist.errors import UserError, listed, quoted, shortened

LONGEST_REASON = 300
UNITS = ("ns", "us", "ms")  # the finest first
NOT_IN_PARTS = {
    "mind": "each of MIND's files repeats what its users had clicked before, which would count several times; write "
    "them one after the other into one behaviors.tsv",
    "hetrec": "of a user's tags for an artist the first one counts, of all files together; write them one after the "
    "other into one file",
}
"""Formats of which the rows of several files are not those of the files one after the other, and why."""


@dataclass(frozen=True)
class Files:
    """The files of a log, or of one split of it, and the name of their reader."""

    paths: tuple[Path, ...]
    format: str


def read_log(files: Sequence[Path], format: str, layout: Layout) -> Log:
    """Read the files with the named reader, one after the other.

    Drops rows as `log_of` does. Raises UserError, which names file and line, if the files cannot be read this way, are
    empty, lack a named column, or have no times while the config does not say that rows are in order. Where the layout
    skips bad rows, lines and values that cannot be read are left out and counted instead.
    """
    return read_splits([Files(tuple(files), format)], layout)


def read_splits(splits: Sequence[Files], layout: Layout) -> Log:
    """Read the training, validation and test files of a log whose split is given, or those of any one log.

    Drops and raises as `read_log` does.
    """
    with ExitStack() as stack:
        reads = [_read(files, layout, stack) for files in splits]
        scans = [scanned for read in reads for scanned in read.scans]
        for files in splits if len(scans) > 1 else []:
            if why := NOT_IN_PARTS.get(files.format):
                raise UserError(f"{files.paths[0]} and {len(scans) - 1} more are not one log: {why}.")
        _refuse_unlike(scans)
        try:
            frames = [read.frame for read in reads]
            if len(reads) > 1:
                frames = [frame.with_columns(period=pl.lit(k, pl.Int8)) for k, frame in enumerate(frames)]
            first = reads[0].scans[0]

            def find(role: str, value: str) -> Iterator[tuple[Path, int]]:
                return _places(scans, role, value)

            rows = pl.concat(_alike(frames), how="vertical_relaxed")
            log = log_of(rows, first.scan, first.part.path, find if layout.skips_bad_rows else None)
        except ColumnError as error:
            place = next(_places(scans, error.role, error.value), None)
            if place is None:
                raise
            raise UserError(
                f"{place[0]}, {_unit(first.scan)} {place[1]:,}: {error.what} Rows that cannot be read are left out, "
                "and counted, with dataset.on_bad_rows: skip."
            ) from None
        bad_rows = BadRows.joined([*(read.bad_rows for read in reads), log.bad_rows])
        return replace(log, num_not_kept=sum(read.num_not_kept for read in reads), bad_rows=bad_rows)


class _Scanned(NamedTuple):
    """A part of a log, and how it is read."""

    part: Part
    scan: Scan


class _Read(NamedTuple):
    """The rows of some files that are kept, how many are not, those that cannot be read, and the files' scans."""

    frame: pl.DataFrame
    num_not_kept: int
    bad_rows: BadRows
    scans: list[_Scanned]


def _read(files: Files, layout: Layout, stack: ExitStack) -> _Read:
    """All rows of the files that are kept; the parts can be read again until the stack is closed."""
    whole = parts = stack.enter_context(parts_of(files.paths, layout.encoding, layout.max_unpacked_gib))
    bad_rows, nested = BadRows(), set[str]()
    while True:
        scans: list[_Scanned] = []
        try:
            scans += (_Scanned(part, READERS[files.format].scan(part, layout)) for part in parts)
            _refuse_unlike(scans)
            parts_of_frame = _alike([scan.frame for _, scan in scans])
            frame = pl.concat(parts_of_frame, how="vertical_relaxed").collect(engine="streaming")
            num_not_kept = sum(scan.num_not_kept() for _, scan in scans)
            break
        except (pl.exceptions.PolarsError, BadLineError, OSError) as error:  # OSError: of a damaged gzip file
            nested |= {error.field} if isinstance(error, BadLineError) and error.field else set()
            bad_line = _first_bad_line(parts, files.format, layout, nested)
            unreadable = UserError(_why_unreadable(error, bad_line, parts, files.format))
            if bad_line and not layout.skips_bad_rows:
                with suppress(pl.exceptions.PolarsError, OSError):  # they cannot be read again either
                    _refuse_what_is_no_number(scans)
                raise unreadable from None
            # Polars takes a quote amid a field for the end of a quoted one, which it is not unless the field began so.
            is_quoted_anew = parts is whole and quoting_separator(whole[0], files.format, layout) is not None
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="csrec-log-")))
            try:
                parts, without = _clean_copies(whole, files.format, layout, nested, folder)
            except OSError as damage:
                if damage.errno is not None:  # of the file system, as for a full disk
                    raise
                raise unreadable from None
            if len(without) == len(bad_rows) and not is_quoted_anew:
                with suppress(pl.exceptions.PolarsError, OSError):
                    _refuse_what_is_no_number(scans)
                raise unreadable from None
            bad_rows = without
    if layout.skips_bad_rows:
        num_not_kept -= _skip_what_is_no_number(scans, bad_rows)
    if num_not_kept and frame.is_empty():
        raise UserError(f"{files.paths[0]}: {_why_none_is_kept(num_not_kept, scans[0].scan)}")
    return _Read(frame, num_not_kept, bad_rows, scans)


def _clean_copies(
    parts: Sequence[Part], format: str, layout: Layout, nested: Collection[str], folder: Path
) -> tuple[list[Part], BadRows]:
    """Copies of the parts in a folder without the lines that the reader cannot take, and these lines.

    Where fields may be quoted, those are that need it.
    """
    bad_rows, copies = BadRows(), []
    for number, part in enumerate(parts):
        left_out: list[int] = []
        next_line, separator = 1, quoting_separator(part, format, layout)
        with open(folder / str(number), "wb") as file:
            for row in numbered_rows(part, format, layout, nested):
                left_out += range(next_line, row.line)  # blank ones
                next_line = row.line + max(row.raw.count(b"\n"), 1)
                if row.problem:
                    bad_rows.add_line(part.path, row.line, row.problem, row.raw.decode(errors="replace").rstrip("\r\n"))
                    left_out += range(row.line, next_line)
                else:
                    file.write(row.raw if separator is None else _quoted_anew(row.fields, separator))
        copies.append(replace(part, text=folder / str(number), left_out=tuple(left_out)))
    return copies, bad_rows


def _quoted_anew(fields: list[str], separator: str) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator="\n").writerow(fields)
    return text.getvalue().encode()


def _why_none_is_kept(num_rows: int, scan: Scan) -> str:
    columns = list(scan.conditions)
    some = scan.every_row.head(1000).select(pl.col(columns).cast(pl.String)).collect()
    values = "; ".join(f"{name} has {listed(map(quoted, some[name].unique(maintain_order=True)))}" for name in columns)
    return f"dataset.keep keeps none of its {num_rows:,} rows ({values}); change it."


def _refuse_what_is_no_number(scans: list[_Scanned]) -> None:
    """UserError for the first value that dataset.keep compares with a number and that is none."""
    for scanned in scans:
        for name, values in scanned.scan.no_numbers():
            for value in values.head(1):
                line = next(_lines(scanned, name, value), None)
                place = "" if line is None else f", {_unit(scanned.scan)} {line:,}"
                raise UserError(
                    f"{scanned.part.path}{place}: {quoted(value)} in the column {name} is not a number, with which "
                    "dataset.keep compares it; mend the log, or keep rows by another condition."
                )


def _skip_what_is_no_number(scans: list[_Scanned], bad_rows: BadRows) -> int:
    """Count the rows with a value that dataset.keep compares with a number and that is none; how many they are."""
    num = 0
    for scanned in scans:

        def find(name: str, value: str, scanned: _Scanned = scanned) -> Iterator[tuple[Path, int]]:
            return ((scanned.part.path, line) for line in _lines(scanned, name, value))

        num += bad_rows.add_no_numbers(scanned.scan, scanned.part.path, find)
    return num


Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)


def _alike(frames: list[Frame]) -> list[Frame]:
    """Parts of a log whose ids can stand in one column: where some have integers, others floats, these as integers.

    A column with a missing value is read as floats by pandas. A float that no integer is written as becomes null: it is
    not whole, or so large (2⁵³ and more) that it may stand for several. Dates and times are in the finest of their
    units, those with a zone in UTC.
    """
    schemas = [frame.collect_schema() for frame in frames]
    for role in ("user", "item", "true_item"):
        if any(schema[role].is_integer() for schema in schemas):
            whole = pl.when((pl.col(role).abs() < 2**53) & (pl.col(role) == pl.col(role).floor())).then(role)
            frames = [
                frame.with_columns(whole.cast(pl.Int64)) if schema[role].is_float() else frame
                for frame, schema in zip(frames, schemas, strict=True)
            ]
    return [_in_unit(frame, schema["timestamp"], schemas) for frame, schema in zip(frames, schemas, strict=True)]


def _in_unit(frame: Frame, time: pl.DataType, schemas: list[pl.Schema]) -> Frame:
    """A part with times of this type in the finest unit of all parts."""
    units = [each.time_unit for schema in schemas if isinstance(each := schema["timestamp"], pl.Datetime)]
    if not units or not isinstance(time, pl.Datetime | pl.Date):
        return frame
    zone = "UTC" if getattr(time, "time_zone", None) else None
    return frame.with_columns(pl.col("timestamp").cast(pl.Datetime(min(units, key=UNITS.index), zone)))


def _kind_of_time(dtype: pl.DataType) -> str | None:
    """What a column of times holds, as a message calls it; None for text, which may hold any, and for nothing."""
    if dtype.is_numeric():
        return "numbers"
    if dtype.is_temporal():
        return "times with a zone" if getattr(dtype, "time_zone", None) else "times without a zone"
    return None


def _refuse_unlike(scans: list[_Scanned]) -> None:
    """UserError if the parts of a log have different columns for a role, or times that cannot be compared."""
    first = scans[0]
    kinds = {_kind_of_time(scan.frame.collect_schema()["timestamp"]): part.path for part, scan in scans}
    kinds.pop(None, None)
    if len(kinds) > 1:
        (one, path), (other, other_path), *_ = kinds.items()
        raise UserError(
            f"{path} and {other_path} are parts of one log, but their timestamps are {one} and {other}; write both in "
            "one way."
        )
    for part, scan in scans:
        for role, name in first.scan.taken.items():
            if scan.taken[role] != name:
                raise UserError(
                    f"{part.path} and {first.part.path} are parts of one log, but their columns for the {role} are "
                    f"{scan.taken[role]} and {name}; name one with dataset.columns.{role}."
                )


def _places(scans: list[_Scanned], role: str, value: str) -> Iterator[tuple[Path, int]]:
    """The files and lines that have a value in the column of a role."""
    for scanned in scans:
        name = scanned.scan.taken[role]
        if name is not None:
            yield from ((scanned.part.path, line) for line in _lines(scanned, name, value))


def _lines(scanned: _Scanned, name: str, value: str) -> Iterator[int]:
    """The lines of a part with a value in a column, as far as they are known."""
    lines_of = scanned.scan.lines_of
    return iter(()) if lines_of is None else map(scanned.part.line_of_path, lines_of(name, value))


def _unit(scan: Scan) -> str:
    return "row" if scan.typed else "line"


def _first_bad_line(parts: Sequence[Part], format: str, layout: Layout, nested: Collection[str]) -> str | None:
    """File, number and text of the first line that the reader cannot take, and why; None if there is none."""
    for part in parts:
        with suppress(OSError):
            for row in numbered_rows(part, format, layout, nested):
                if row.problem:
                    text = quoted(row.raw.decode(errors="replace").strip())
                    return f"{part.path}, line {part.line_of_path(row.line):,}: {row.problem}: {text}"
    return None


def _why_unreadable(error: Exception, bad_line: str | None, parts: Sequence[Part], format: str) -> str:
    """File, line and reason, and what to do."""
    if isinstance(error, BadLineError) and error.field:
        return str(error)
    reason = shortened(str(error).strip().partition("\n")[0], LONGEST_REASON)
    if re.search("utf-?8", reason, re.IGNORECASE):
        lines = [f"line {line} of {part.path.name}" for part in parts if (line := undecodable_line(part.text))]
        todo = "name the encoding with dataset.encoding, such as latin-1 or cp1252"
        reason = f"{listed(lines)} is not UTF-8; {todo if format == 'delimited' else 'convert the log to UTF-8'}"
        return f"The reader '{format}' could not read {parts[0].path}: {reason}."
    if bad_line:
        return (
            f"The reader '{format}' could not read {bad_line}; mend or remove the line, or leave such lines out with "
            "dataset.on_bad_rows: skip."
        )
    return (
        f"The reader '{format}' could not read {parts[0].path}: {reason}. Get the file again, or name another reader "
        "with dataset.format."
    )
