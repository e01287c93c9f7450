"""Runs of a study that were done elsewhere: the rows of the results.parquet files that came of them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import polars as pl

from csrec_dist.errors import UserError
from csrec_dist.study.collecting import ENVIRONMENT, SETTINGS, settings_key
from csrec_dist.study.spec import Entry, Study

Key = tuple[str | int, ...]
"""A cell's values and the seed."""


def read_elsewhere(
    study: Study,
    entries: Sequence[Entry],
    paths: Sequence[Path],
    say: Callable[[str], None],
    here: Mapping[str, object],
) -> pl.DataFrame:
    """The rows that stand for runs of the study as it is now, each run once.

    Rows of other settings than the run of that name has now are left out, and it is said how many. So are rows of
    runs that this study has not: it may be a part of theirs. Rows of runs that were trained in another environment than
    `here` are taken, and it is said in which: the settings do not hold what the bits of a training depend on.

    Raises:
        UserError: a file is no results.parquet of this study.
    """
    settings = {key_of(study, entry): settings_key(entry.config) for entry in entries}
    found: dict[Key, pl.DataFrame] = {}
    for path in paths:
        rows = {key: row for key, row in _by_key(study, _read(study, path)).items() if key in settings}
        fit = {key: row for key, row in rows.items() if settings[key] == row[SETTINGS].item()}
        if len(fit) < len(rows):
            say(f"{path}: {len(rows) - len(fit)} of {len(rows)} runs have other settings than this study; left out")
        for text, count in Counter(_other_environment(row, here) for row in fit.values()).items():
            if text:
                say(f"{path}: {count} of {len(fit)} runs are taken although {text}; a run done here may differ")
        found |= fit
    return _joined(list(found.values()))


def _other_environment(row: pl.DataFrame, here: Mapping[str, object]) -> str:
    """In what a row's run was trained otherwise than one would be here; empty where there is nothing."""
    columns = {name: f"{ENVIRONMENT}{name}" for name in here}
    there = {name: row[column].item() for name, column in columns.items() if column in row.columns}
    if not any(there.values()):
        return "it is not recorded on what they were trained"
    changed = [f"{name} {there[name]} (here {value})" for name, value in here.items() if there.get(name) != str(value)]
    return f"they were trained with {', '.join(changed)}" if changed else ""


def key_of(study: Study, entry: Entry) -> Key:
    """What tells a run from the others of its study."""
    return (*(entry.cell[axis] for axis in study.axes), entry.seed)


def keys_of(study: Study, rows: pl.DataFrame) -> set[Key]:
    """The runs that rows stand for."""
    return set(_by_key(study, rows))


def with_rows(study: Study, own: pl.DataFrame, others: pl.DataFrame) -> pl.DataFrame:
    """A study's own results, and the rows of others for runs that are not among them."""
    return _joined(list((_by_key(study, others) | _by_key(study, own)).values()))


def _by_key(study: Study, rows: pl.DataFrame) -> dict[Key, pl.DataFrame]:
    return {tuple(row[name].item() for name in (*study.axes, "seed")): row for row in rows.iter_slices(1)}


def _joined(rows: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(rows, how="diagonal_relaxed") if rows else pl.DataFrame()


def _read(study: Study, path: Path) -> pl.DataFrame:
    try:
        rows = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"--with {path}: it cannot be read as Parquet ({str(error).splitlines()[0]}).") from None
    if missing := [name for name in (*study.axes, "seed", SETTINGS) if name not in rows.columns]:
        raise UserError(f"--with {path}: it lacks {', '.join(missing)}; give a results.parquet of study {study.name}.")
    return rows
