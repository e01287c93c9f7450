"""Reading the files of a raw log, in parts and splits; messages name the file, the line and what was expected."""

import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import polars as pl

from csrec_dist.data.columns import ColumnError, Layout, Scan
from csrec_dist.data.keep import conditions_on
from csrec_dist.data.log import Log, log_of
from csrec_dist.data.parts import Part, parts_of
from csrec_dist.data.readers import READERS, wrong_line
from csrec_dist.data.readers.peek import undecodable_line
from csrec_dist.errors import UserError, listed, quoted, shortened

LONGEST_REASON = 300


@dataclass(frozen=True)
class Files:
    """The files of a log, or of one split of it, and the name of their reader."""

    paths: tuple[Path, ...]
    format: str


def read_log(files: Sequence[Path], format: str, layout: Layout) -> Log:
    """Read the files with the named reader, one after the other.

    Drops rows as `log_of` does. Raises UserError, which names file and line, if the files cannot be read this way, are
    empty, lack a named column, or have no times while the config does not say that rows are in order.
    """
    return read_splits([Files(tuple(files), format)], layout)


def read_splits(splits: Sequence[Files], layout: Layout) -> Log:
    """Read the training, validation and test files of a log whose split is given, or those of any one log.

    Drops and raises as `read_log` does.
    """
    with ExitStack() as stack:
        reads = [_read(files, layout, stack) for files in splits]
        _refuse_unlike([scanned for read in reads for scanned in read.scans])
        try:
            frames = [read.frame for read in reads]
            if len(reads) > 1:
                frames = [frame.with_columns(period=pl.lit(k, pl.Int8)) for k, frame in enumerate(frames)]
            first = reads[0].scans[0]
            log = log_of(pl.concat(frames, how="vertical_relaxed"), first.scan, first.part.path)
        except ColumnError as error:
            raise _with_line(error, [scanned for read in reads for scanned in read.scans]) from None
        return replace(log, num_not_kept=sum(read.num_rows - len(read.frame) for read in reads))


class _Scanned(NamedTuple):
    """A part of a log, and how it is read."""

    part: Part
    scan: Scan


class _Read(NamedTuple):
    """The rows of some files that are kept, how many there were, and the files' scans."""

    frame: pl.DataFrame
    num_rows: int
    scans: list[_Scanned]


def _read(files: Files, layout: Layout, stack: ExitStack) -> _Read:
    """All rows of the files that are kept; the parts can be read again until the stack is closed."""
    parts = stack.enter_context(parts_of(files.paths, layout.encoding))
    scans: list[_Scanned] = []
    try:
        scans += (_Scanned(part, READERS[files.format].scan(part, layout)) for part in parts)
        _refuse_unlike(scans)
        rows = [scan.frame for _, scan in scans]
        frame = pl.concat(rows, how="vertical_relaxed").collect(engine="streaming")
        num_rows = sum(_num_rows(scan) for _, scan in scans) if layout.keep else len(frame)
    except (pl.exceptions.PolarsError, OSError) as error:  # OSError: of a damaged gzip file
        with suppress(pl.exceptions.PolarsError, OSError):  # they cannot be read again either
            _refuse_what_is_no_number(scans, layout)
        raise UserError(_why_unreadable(error, parts, files.format, layout)) from None
    if num_rows and frame.is_empty():
        raise UserError(f"{files.paths[0]}: {_why_none_is_kept(num_rows, scans[0], layout)}")
    return _Read(frame, num_rows, scans)


def _num_rows(scan: Scan) -> int:
    """The rows, with those that `dataset.keep` leaves out."""
    return int(scan.every_row.select(pl.len()).collect(engine="streaming").item())


def _why_none_is_kept(num_rows: int, scanned: _Scanned, layout: Layout) -> str:
    names = scanned.scan.every_row.collect_schema().names()
    columns = list(conditions_on(layout.keep, names, scanned.scan.taken, scanned.part.path))
    some = scanned.scan.every_row.head(1000).select(pl.col(columns).cast(pl.String)).collect()
    values = "; ".join(f"{name} has {listed(map(quoted, some[name].unique(maintain_order=True)))}" for name in columns)
    return f"dataset.keep keeps none of its {num_rows:,} rows ({values}); change it."


def _refuse_what_is_no_number(scans: list[_Scanned], layout: Layout) -> None:
    """UserError for the first value that dataset.keep compares with a number and that is none."""
    for scanned in scans:
        part, scan = scanned
        names = scan.every_row.collect_schema().names()
        for name, condition in conditions_on(layout.keep, names, scan.taken, part.path).items():
            if condition.is_numeric:
                column = pl.col(name).cast(pl.String)
                wrong = scan.every_row.filter(condition.no_number(column)).select(column).head(1)
                for value in wrong.collect(engine="streaming")[name]:
                    line = _line(scanned, name, value)
                    raise UserError(
                        f"{part.path}{line}: {quoted(value)} in the column {name} is not a number, with which "
                        "dataset.keep compares it; mend the log, or keep rows by another condition."
                    )


def _refuse_unlike(scans: list[_Scanned]) -> None:
    """UserError if the parts of a log have different columns for a role."""
    first = scans[0]
    for part, scan in scans:
        for role, name in first.scan.taken.items():
            if scan.taken[role] != name:
                raise UserError(
                    f"{part.path} and {first.part.path} are parts of one log, but their columns for the {role} are "
                    f"{scan.taken[role]} and {name}; name one with dataset.columns.{role}."
                )


def _with_line(error: ColumnError, scans: list[_Scanned]) -> UserError:
    """The error with the first file and line that have its value."""
    for scanned in scans:
        name = scanned.scan.taken[error.role]
        if name is not None and (line := _line(scanned, name, error.value)):
            return UserError(f"{scanned.part.path}{line}: {error.what}")
    return error


def _line(scanned: _Scanned, name: str, value: str) -> str:
    """Where a part has a value, for a message: ", line 3"; "" where that is not known."""
    line_of = scanned.scan.line_of
    line = None if line_of is None else line_of(name, value)
    return "" if line is None else f", {'row' if scanned.scan.typed else 'line'} {line:,}"


def _why_unreadable(error: Exception, parts: Sequence[Part], format: str, layout: Layout) -> str:
    """File, line and reason, and what to do."""
    reason = shortened(str(error).strip().partition("\n")[0], LONGEST_REASON)
    if re.search("utf-?8", reason, re.IGNORECASE):
        lines = [f"line {line} of {part.path.name}" for part in parts if (line := undecodable_line(part.text))]
        todo = "name the encoding with dataset.encoding, such as latin-1 or cp1252"
        reason = f"{listed(lines)} is not UTF-8; {todo if format == 'delimited' else 'convert the log to UTF-8'}"
    elif wrong := next(filter(None, (wrong_line(part, format, layout) for part in parts)), ""):
        return f"The reader '{format}' could not read {wrong}"
    return f"The reader '{format}' could not read {parts[0].path}: {reason}"
