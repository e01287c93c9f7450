"""The command `study`: which runs, then their results."""

import os
from collections.abc import Sequence
from pathlib import Path

from csrec_dist.config import parse_overrides
from csrec_dist.distributed import Runtime
from csrec_dist.environment import environment
from csrec_dist.errors import UserError, shared_errors
from csrec_dist.study.collecting import check_settings
from csrec_dist.study.elsewhere import key_of, keys_of, read_elsewhere
from csrec_dist.study.planning import plan_tasks
from csrec_dist.study.results import refuse_foreign, write_results
from csrec_dist.study.running import run_tasks
from csrec_dist.study.spec import Entry, Study, load_study

STUDIES = Path("configs/studies")


def study_command(
    name: str,
    *,
    output: Path,
    jobs: int,
    overrides: Sequence[str],
    only: Sequence[str],
    results_only: bool,
    elsewhere: Sequence[Path] = (),
    keep_threads: bool = False,
) -> int:
    """Do the runs of a study that are not done, then write its results; the exit status.

    Runs that have a row in the files `elsewhere`, results.parquet of the same study, are done. `keep_threads` as
    `execute` takes it.

    Raises:
        UserError: there is no such study, its file or a run's config is wrong, a finished run has other settings than
            the study has now, or runs failed.
    """
    with shared_errors():
        study = load_study(find(name))
        folder = output / study.name
        entries = list(study.entries(output / study.home / "runs", parse_overrides(overrides)))
        refuse_foreign(folder)
        check_settings(entries)
        rows = read_elsewhere(study, entries, elsewhere, print, environment_here(jobs))
        done = keys_of(study, rows)
        if not any(is_chosen(study, entry, only) for entry in entries):
            raise UserError(f"--only {' '.join(only)}: study {study.name} has no such run.")
        tasks = plan_tasks(entries, lambda entry: is_chosen(study, entry, only) and key_of(study, entry) not in done)
        runtime = Runtime.start()
    try:
        if not results_only:
            run_tasks(tasks, jobs, runtime, print if runtime.is_main else lambda text: None, keep_threads)
    finally:
        if runtime.is_main:
            print(f"results: {write_results(study, entries, folder, rows)}")
        runtime.close()
    return 0


def environment_here(jobs: int) -> dict[str, object]:
    """What the runs of the study would be trained in here: side by side, each has one thread."""
    here = environment(int(os.environ.get("WORLD_SIZE", "1")))
    return here | ({"threads": 1} if jobs > 1 else {})


def find(name: str) -> Path:
    """The file of a study, by its path or its name."""
    for path in (Path(name), STUDIES / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in STUDIES.glob("*.yaml")))
    raise UserError(f"There is no study {name}{f'; {STUDIES} has {known}' if known else ''}.")


def is_chosen(study: Study, entry: Entry, only: Sequence[str]) -> bool:
    """Whether an entry has, of each axis (or seed) that is named, one of the values named."""
    wanted: dict[str, set[str]] = {}
    for each in only:
        axis, equals, value = each.partition("=")
        if not equals or axis not in (*study.axes, "seed"):
            raise UserError(f"--only takes AXIS=VALUE with an axis of {', '.join(study.axes)} or seed, not {each!r}.")
        wanted.setdefault(axis, set()).add(value)
    values = {**entry.cell, "seed": str(entry.seed)}
    return all(values[axis] in named for axis, named in wanted.items())
