"""Doing the runs of a study, several at a time, and its command."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from csrec_dist.config import parse_overrides
from csrec_dist.distributed import Runtime
from csrec_dist.environment import environment
from csrec_dist.errors import UserError, did_you_mean, listed, shared_errors
from csrec_dist.experiments.study.collecting import check_settings
from csrec_dist.experiments.study.planning import Task, adopt, plan_tasks
from csrec_dist.experiments.study.results import key_of, keys_of, read_elsewhere, refuse_foreign, write_results
from csrec_dist.experiments.study.spec import OWN_KEYS, Entry, Study, load_study
from csrec_dist.files import fingerprint, write_text
from csrec_dist.lock import FolderLock
from csrec_dist.packaged_configs import packaged_configs
from csrec_dist.processes import Children
from csrec_dist.runs.pipeline import execute

POLL_SECONDS = 5.0
"""How often to look for runs whose shared parts are ready, which may be before another run ends."""

LOGS = {"dataset.source", "dataset.path"}
"""The keys that say what a run's data are."""

Say = Callable[[str], None]


def run_tasks(tasks: Sequence[Task], jobs: int, runtime: Runtime, say: Say, keep_threads: bool = False) -> None:
    """Do the unfinished runs: `jobs` at a time in processes of one thread each, or one by one on all ranks.

    `keep_threads` is that of `execute`.
    """
    say(f"{len(tasks)} runs, {sum(not task.is_done for task in tasks)} to do")
    if jobs > 1:
        if runtime.world_size > 1:
            raise UserError("--jobs starts its own processes; do not use it under a launcher with several processes.")
        _run_side_by_side(tasks, jobs, say)
        return
    for task in tasks:
        if runtime.on_main(partial(begin, task)):
            say(task.config.name)
            execute(task.config, runtime, keep_threads=keep_threads)


def begin(task: Task) -> bool:
    """Whether the run has to be done; if so, it has taken what it shares."""
    if not task.is_done:
        adopt(task)
    return not task.is_done


def _run_side_by_side(tasks: Sequence[Task], jobs: int, say: Say) -> None:
    """Runs wait for what they share; if one fails, the others continue, and failures are reported at the end.

    A signal stops all active runs, each with a checkpoint, and then this process.
    """
    waiting = [task for task in tasks if not task.is_done]
    running: dict[Future[None], Task] = {}
    failures: list[str] = []
    children = Children()
    with children.stopped_by_signals(), ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            if children.stopped_by:
                waiting.clear()
            ready = [task for task in waiting if task.is_ready]
            for task in ready[: jobs - len(running)]:
                waiting.remove(task)
                running[pool.submit(run_alone, task, children)] = task
            assert running or not waiting, f"{waiting[0].config.name} waits for a run that is not to be done"
            for future in wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED).done:
                task, error = running.pop(future), future.exception()
                if error is None:
                    say(f"{task.config.name} is done; {len(waiting) + len(running)} to do")
                    continue
                failures.append(str(error))
                for other in waiting:
                    other.forget(task)  # they now make by themselves what they would have shared
        if children.stopped_by:
            say(f"stopped by {children.stopped_by.name}; give the same command again to resume")
    if failures:
        raise UserError(" ".join(failures))


def run_alone(task: Task, children: Children) -> None:
    """Do one run in a separate process on one thread; its output goes to <run>/study.log."""
    adopt(task)
    config = task.run.folder / "study.yaml"
    write_text(config, task.config.to_yaml())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "csrec_dist", "run", "--config", str(config)]
    with open(task.run.folder / "study.log", "a", encoding="utf-8") as log:
        status = children.run(command, environment, stdout=log, stderr=subprocess.STDOUT)
    if status:
        raise UserError(f"The run {task.run.folder} failed; {task.run.folder / 'study.log'} says why.")


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
    """Do the unfinished runs of a study, then write its results; the exit status.

    Runs that have a row in the files `elsewhere`, each a results.parquet of the same study, count as finished.
    `keep_threads` is that of `execute`.

    Raises:
        UserError: there is no such study, its file or a run's config is wrong, a finished run has other settings than
            the study has now, or runs failed.
    """
    with shared_errors():
        study = load_study(find(name))
        folder = output / study.name
        overriding = parse_overrides(overrides)
        entries = list(study.entries(output / study.home / "runs", overriding))
        refuse_foreign(folder)
        check_settings(entries, print)
        here = environment(int(os.environ.get("WORLD_SIZE", "1")))
        here |= {"threads": 1} if jobs > 1 else {}  # each of several jobs has one thread
        rows = read_elsewhere(study, entries, elsewhere, print, here)
        done = keys_of(study, rows)
        if not any(is_chosen(study, entry, only) for entry in entries):
            values = "; ".join(f"{axis}: {listed(map(str, each))}" for axis, each in study.axes.items())
            raise UserError(f"--only {' '.join(only)}: study {study.name} has no such run. Its axes are {values}.")
        _refuse_one_for_several(study, [entry for entry in entries if is_chosen(study, entry, only)], overriding)
        tasks = plan_tasks(entries, lambda entry: is_chosen(study, entry, only) and key_of(study, entry) not in done)
        runtime = Runtime.start()
    # The results of finished runs only are written while others are at work, too.
    with runtime, nullcontext() if results_only else _locked(folder, runtime):
        try:
            if not results_only:
                run_tasks(tasks, jobs, runtime, print if runtime.is_main else lambda text: None, keep_threads)
        finally:
            if runtime.is_main:
                print(f"results: {write_results(study, entries, folder, rows)}")
    return 0


def _refuse_one_for_several(study: Study, chosen: Sequence[Entry], overrides: Mapping[str, Any]) -> None:
    """UserError if overrides would take the data of some cells for those of others, or make one run of several."""
    for key in OWN_KEYS:
        if key in overrides:
            where = {"seed": "its file and --only", "output": "--output"}.get(key, "its file")
            raise UserError(f"--set {key}={overrides[key]}: a study gives each run its {key}, by {where}.")
    for key in LOGS & overrides.keys():
        own = {str(study.settings(entry.cell).get(key)) for entry in chosen}
        if len(own) > 1:
            raise UserError(
                f"--set {key}={overrides[key]} would be the data of cells that have their own ({listed(sorted(own))}), "
                "under their names. Choose cells of one of these with --only, and give the command once for each."
            )
    first: dict[str, Entry] = {}
    for entry in chosen if overrides else []:
        other = first.setdefault(_content(entry), entry)
        if study.settings(entry.cell) != study.settings(other.cell):
            keys = " ".join(f"--set {key}={value}" for key, value in overrides.items())
            raise UserError(
                f"{keys}: the runs {other.config.name} and {entry.config.name} would be the same, since it sets what "
                "they differ in. Choose one of them with --only, or change the study's file."
            )


def _content(entry: Entry) -> str:
    """A fingerprint of the config of a run, but for its name and place."""
    return fingerprint({key: value for key, value in entry.config.dump().items() if key not in ("name", "output")})


@contextmanager
def _locked(folder: Path, runtime: Runtime) -> Iterator[None]:
    """Within the block rank 0 has the lock of the study's folder."""
    lock = FolderLock(folder, "The study's folder")
    with lock.released_when_ranks_are_done(runtime.world_size):
        runtime.on_main(lock.acquire)
        yield


def find(name: str) -> Path:
    """The file of a study, by its path, or by its name if it comes with the package."""
    if Path(name).is_file():
        return Path(name)
    studies = {config.name: config.path for config in packaged_configs() if config.kind == "studies"}
    if name not in studies:
        raise UserError(f"There is no study {name}: neither such a file, nor one of {', '.join(studies)}.")
    return studies[name]


def is_chosen(study: Study, entry: Entry, only: Sequence[str]) -> bool:
    """Whether an entry has one of the given values of each axis (or seed) in `only`."""
    allowed: dict[str, set[str]] = {}
    for each in only:
        axis, equals, value = each.partition("=")
        if not equals or axis not in (*study.axes, "seed"):
            raise UserError(f"--only takes AXIS=VALUE with an axis of {', '.join(study.axes)} or seed, not {each!r}.")
        known = list(map(str, study.seeds)) if axis == "seed" else list(study.axes[axis])
        if value not in known:
            raise UserError(
                f"--only {each}: {axis} of study {study.name} has no such value{did_you_mean(value, known)}; it has "
                f"{', '.join(known)}."
            )
        allowed.setdefault(axis, set()).add(value)
    values = {**entry.cell, "seed": str(entry.seed)}
    return all(values[axis] in named for axis, named in allowed.items())
