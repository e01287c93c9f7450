"""Writing the results of a study, from its own runs and from those of other machines."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from csrec_dist.config import is_resolved
from csrec_dist.errors import UserError
from csrec_dist.experiments.study.collecting import ENVIRONMENT, PROTOCOL, SETTINGS, collect, settings_key
from csrec_dist.experiments.study.figures import draw, draw_changes, draw_curve
from csrec_dist.experiments.study.spec import Entry, Study
from csrec_dist.experiments.study.tables import against, answer, select, table
from csrec_dist.files import atomic_path
from csrec_dist.lock import FILE as LOCK
from csrec_dist.report.document import Block, Page, Section, Text
from csrec_dist.report.page import write_pages

NOTE = (
    "Test, full catalog: mean ± sample standard deviation over the seeds, with the number of seeds in brackets; "
    "recall, NDCG and MRR in percent; bars in figures are the range of the seeds. The paper's value, where it has one, "
    "is below."
)


def refuse_foreign(folder: Path) -> None:
    """UserError for a folder with content other than a study's, which might be overwritten."""
    content = sorted(path.name for path in folder.iterdir() if path.name != LOCK) if folder.is_dir() else []
    page, note = folder / "results.md", NOTE[: NOTE.index(":")]
    has_runs = any(is_resolved(path) for path in folder.glob("runs/*/config.yaml"))
    has_page = page.is_file() and note in page.read_text(encoding="utf-8", errors="replace")
    if content and not has_runs and not has_page and not _has_results(folder / "results.parquet"):
        raise UserError(
            f"{folder} contains neither runs nor results of a study, but {', '.join(content[:5])}. Give another "
            "--output, or move these files away."
        )


def _has_results(path: Path) -> bool:
    try:
        return SETTINGS in pq.read_schema(path).names
    except (OSError, pa.ArrowException):
        return False


def write_results(study: Study, entries: Sequence[Entry], folder: Path, elsewhere: pl.DataFrame) -> Path:
    """Write results.parquet, the figures, and results.md and results.html of all finished runs, here or elsewhere.

    The path is that of results.md.
    """
    results = with_rows(study, collect(entries), elsewhere)
    if len(results):
        with atomic_path(folder / "results.parquet") as temporary:
            pq.write_table(results.to_arrow(), temporary, compression="zstd", write_page_checksum=True)
    done = f"{study.source}. {len(results)} of {len(entries)} runs are done.".lstrip(". ")
    sections = [Section.of("Answer", [*_answers(study, results, folder), Text(f"{done} {NOTE}")])]
    for number, options in enumerate(study.tables, 1):
        if len(results) and len(select(results, options.where)):
            sections.append(Section.of(options.title or f"Table {number}", table(study, options, results)))
    page = Page.of(study.title, {"study": study.name}, [*sections, *_figures(study, entries, results, folder)])
    write_pages(page, folder / "results")
    return folder / "results.md"


def _answers(study: Study, results: pl.DataFrame, folder: Path) -> Iterator[Block]:
    """What the first table that compares columns says, and a chart of it."""
    for options in study.tables if len(results) else []:
        metric, lines = against(study, options, results)
        if lines:
            yield answer(lines, options.better_than[0], metric)
            yield draw_changes(lines, options.better_than[0], metric, folder)
            return


def _figures(study: Study, entries: Sequence[Entry], results: pl.DataFrame, folder: Path) -> Iterator[Section]:
    """The figures that have data."""
    for curve in study.curves:
        if picture := draw_curve(curve, entries, folder):
            yield Section.of(curve.title or "Popularity of the items", [picture])
    for options in study.figures:
        if picture := draw(options, study.values(options.where), results, folder):
            yield Section.of(options.title or f"Figure {options.name}", [picture])


Key = tuple[str | int, ...]
"""A cell's values and the seed."""


def read_elsewhere(
    study: Study,
    entries: Sequence[Entry],
    paths: Sequence[Path],
    say: Callable[[str], None],
    here: Mapping[str, object],
) -> pl.DataFrame:
    """The rows from other machines for runs of the present study, each run once.

    Rows whose settings differ from the run of that name are left out, and their number is reported. Rows of
    runs that this study does not have are left out silently, because it may be a part of theirs. Rows of runs that were
    trained in another environment than `here` are taken and reported: settings do not include what bits depend on.

    Raises:
        UserError: a file is not a results.parquet of this study.
    """
    settings = {key_of(study, entry): settings_key(entry.config) for entry in entries}
    chosen: dict[Key, pl.DataFrame] = {}
    for path in paths:
        rows = {key: row for key, row in _by_key(study, _read(study, path)).items() if key in settings}
        fit = {key: row for key, row in rows.items() if settings[key] == row[SETTINGS].item()}
        if len(fit) < len(rows):
            say(
                f"{path}: {len(rows) - len(fit)} of {len(rows)} runs have other settings than this study and are left "
                "out"
            )
        for text, count in Counter(_other_environment(row, here) for row in fit.values()).items():
            if text:
                say(f"{path}: {count} of {len(fit)} runs are taken although {text}; a run done here may differ")
        chosen |= fit
    return _joined(list(chosen.values()))


def _other_environment(row: pl.DataFrame, here: Mapping[str, object]) -> str:
    """How the environment of a row's run differs from the one here; empty if it does not."""
    columns = {name: f"{ENVIRONMENT}{name}" for name in here}
    there = {name: row[column].item() for name, column in columns.items() if column in row.columns}
    if not any(there.values()):
        return "their environment is not recorded"
    changed = [f"{name} {there[name]} (here {value})" for name, value in here.items() if there.get(name) != str(value)]
    return f"they were trained with {', '.join(changed)}" if changed else ""


def key_of(study: Study, entry: Entry) -> Key:
    """What distinguishes a run from the others of its study."""
    return (*(entry.cell[axis] for axis in study.axes), entry.seed)


def keys_of(study: Study, rows: pl.DataFrame) -> set[Key]:
    """The keys of the runs in the rows."""
    return set(_by_key(study, rows))


def with_rows(study: Study, results: pl.DataFrame, elsewhere: pl.DataFrame) -> pl.DataFrame:
    """A study's results here, and the rows from elsewhere for runs that are not among them.

    Raises:
        UserError: runs of one cell were evaluated on different data.
    """
    rows = _joined(list((_by_key(study, elsewhere) | _by_key(study, results)).values()))
    if PROTOCOL in rows.columns:
        for cell, part in rows.group_by(*study.axes, maintain_order=True):
            if part[PROTOCOL].drop_nulls().n_unique() > 1:
                raise UserError(
                    f"The runs of {'-'.join(map(str, cell))} were evaluated on different data or with different "
                    f"options, and have no mean: {', '.join(part['run'])}. Leave out those that are not of this log."
                )
    return rows


def _by_key(study: Study, rows: pl.DataFrame) -> dict[Key, pl.DataFrame]:
    return {tuple(row[name].item() for name in (*study.axes, "seed")): row for row in rows.iter_slices(1)}


def _joined(rows: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(rows, how="diagonal_relaxed") if rows else pl.DataFrame()


def _read(study: Study, path: Path) -> pl.DataFrame:
    try:
        rows = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"--with {path} is not readable as Parquet ({str(error).splitlines()[0]}).") from None
    if missing := [name for name in (*study.axes, "seed", SETTINGS) if name not in rows.columns]:
        raise UserError(
            f"--with {path} lacks the columns {', '.join(missing)}; give a results.parquet of study {study.name}."
        )
    return rows
