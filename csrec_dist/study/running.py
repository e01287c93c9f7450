"""Running a study: each run once, what was cut off goes on, and runs take from each other what they share."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial

from csrec_dist.distributed import Runtime
from csrec_dist.errors import UserError
from csrec_dist.files import write_text
from csrec_dist.orphans import Children
from csrec_dist.pipeline import execute
from csrec_dist.study.planning import Task, adopt

POLL_SECONDS = 5.0
"""A run that waits for another's labels may begin before that one ends."""

Say = Callable[[str], None]


def run_tasks(tasks: Sequence[Task], jobs: int, runtime: Runtime, say: Say, keep_threads: bool = False) -> None:
    """Do all that are not done: `jobs` at once in processes of one thread each, or with all ranks one by one.

    `keep_threads` as `execute` takes it.
    """
    say(f"{len(tasks)} runs, {sum(not task.is_done for task in tasks)} to do")
    if jobs > 1:
        if runtime.world_size > 1:
            raise UserError("--jobs starts processes of its own; do not start it under a launcher with several.")
        _run_side_by_side(tasks, jobs, say)
        return
    for task in tasks:
        if runtime.on_main(partial(begin, task)):
            say(task.config.name)
            execute(task.config, runtime, keep_threads=keep_threads)


def begin(task: Task) -> bool:
    """Whether the run is to be done; if so, with what it shares taken."""
    if not task.is_done:
        adopt(task)
    return not task.is_done


def _run_side_by_side(tasks: Sequence[Task], jobs: int, say: Say) -> None:
    """Runs wait for what they share; the others go on when one fails, and the failures are said at the end.

    A signal stops all that run, each with a checkpoint, and then this process.
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
            assert running or not waiting, f"{waiting[0].config.name} waits for a run that is not among those to do"
            for future in wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED).done:
                task, error = running.pop(future), future.exception()
                if error is None:
                    say(f"{task.config.name} is done; {len(waiting) + len(running)} to do")
                    continue
                failures.append(str(error))
                for other in waiting:
                    other.forget(task)
        if children.stopped_by:
            say(f"stopped by {children.stopped_by.name}; the same command goes on from there")
    if failures:
        raise UserError(" ".join(failures))


def run_alone(task: Task, children: Children) -> None:
    """One run in a process of its own on one thread; what it prints goes into <run>/study.log."""
    adopt(task)
    config = task.folder / "study.yaml"
    write_text(config, task.config.to_yaml())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "csrec_dist", "run", "--config", str(config)]
    with open(task.folder / "study.log", "a", encoding="utf-8") as log:
        status = children.run(command, environment, stdout=log, stderr=subprocess.STDOUT)
    if status:
        raise UserError(f"The run {task.folder} failed; {task.folder / 'study.log'} says why.")
