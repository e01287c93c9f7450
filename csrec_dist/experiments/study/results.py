"""Writing the results of a study, from its own runs and from those of other machines."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from csrec_dist.config import is_resolved
from csrec_dist.errors import UserError
from csrec_dist.experiments.study.collecting import ENVIRONMENT, SETTINGS, collect, settings_key
from csrec_dist.experiments.study.figures import draw, draw_curve
from csrec_dist.experiments.study.spec import Entry, Study
from csrec_dist.experiments.study.tables import select, table
from csrec_dist.files import atomic_path, write_text
from csrec_dist.lock import FILE as LOCK

NOTE = (
    "Test, full catalog: mean ± sample standard deviation over the seeds, with the number of seeds in brackets; "
    "recall, NDCG and MRR in percent. The paper's value, where it has one, is below."
)


def refuse_foreign(folder: Path) -> None:
    """UserError for a folder with content other than a study's, which might be overwritten."""
    content = sorted(path.name for path in folder.iterdir() if path.name != LOCK) if folder.is_dir() else []
    page, note = folder / "results.md", NOTE[: NOTE.index(":")]
    has_runs = any(is_resolved(path) for path in folder.glob("runs/*/config.yaml"))
    has_page = page.is_file() and note in page.read_text(encoding="utf-8", errors="replace")
    if content and not has_runs and not has_page:
        raise UserError(
            f"{folder} contains neither runs nor results of a study, but {', '.join(content[:5])}. Give another "
            "--output, or move these files away."
        )


def write_results(study: Study, entries: Sequence[Entry], folder: Path, elsewhere: pl.DataFrame) -> Path:
    """Write results.parquet, results.md and the figures of all finished runs, here or elsewhere; the page's path."""
    results = with_rows(study, collect(entries), elsewhere)
    page = [f"# {study.title}", f"{study.source}. {len(results)} of {len(entries)} runs are done. {NOTE}".lstrip(". ")]
    if len(results):
        with atomic_path(folder / "results.parquet") as temporary:
            pq.write_table(results.to_arrow(), temporary, compression="zstd", write_page_checksum=True)
        shown = [options for options in study.tables if len(select(results, options.where))]
        page += [_titled(options.title, table(study, options, results)) for options in shown]
    page += _images(study, entries, results, folder)
    path = folder / "results.md"
    write_text(path, "\n\n".join(page) + "\n")
    return path


def _images(study: Study, entries: Sequence[Entry], results: pl.DataFrame, folder: Path) -> Iterator[str]:
    """Draw the figures that have data, and link to them."""
    for curve in study.curves:
        if draw_curve(curve, entries, folder / f"{curve.name}.png"):
            yield _titled(curve.title, f"![number of interactions by item]({curve.name}.png)")
    for options in study.figures:
        if draw(options, study.values(options.where), results, folder / f"{options.name}.png"):
            yield _titled(options.title, f"![{options.metric} over {options.x}]({options.name}.png)")


def _titled(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if title else body


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
    """A study's results here, and the rows from elsewhere for runs that are not among them."""
    return _joined(list((_by_key(study, elsewhere) | _by_key(study, results)).values()))


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
