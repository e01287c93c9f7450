"""Doing the trials of a search: each is a run up to its student, followed and judged on validation alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from csrec_dist.config import Config
from csrec_dist.distributed import Runtime
from csrec_dist.errors import UserError, is_of_all, shared_errors
from csrec_dist.experiments.study.planning import adopt, plan_tasks
from csrec_dist.experiments.study.spec import Entry
from csrec_dist.experiments.tune.results import write_results
from csrec_dist.experiments.tune.search import Search
from csrec_dist.experiments.tune.space import shown
from csrec_dist.experiments.tune.trials import RUNS, Proposal, State, Trials
from csrec_dist.files import read_json, remove
from csrec_dist.lock import FolderLock
from csrec_dist.runs.pipeline import work_on
from csrec_dist.runs.run import stage_names
from csrec_dist.runs.stages.active import ActiveRun
from csrec_dist.training.limits import SELECTION_METRIC, Epochs, num_epochs

PREPARE, STUDENT = "prepare", "distill"
"""The stage that all trials share, and the one that is judged."""
NOT_DONE = ("baseline", "evaluate")
"""Stages that a trial leaves out: none of them decides between trials, and evaluate reads the test rows."""
Say = Callable[[str], None]


class PrunedError(Exception):
    """A trial is worse than others were at the same epoch; every rank raises it, and lets go of the trial's folder."""

    is_of_all = True


def do_trials(search: Search, runtime: Runtime, say: Say, keep_threads: bool = False) -> None:
    """Do the trials that are still to do, one after the other, each on all ranks, which all call this.

    `keep_threads` is that of `execute`. However this ends, the results of the trials that have ended are written.
    A signal ends the training at work with a checkpoint, and then the process.
    """
    with _opened(search, runtime) as opened:
        while proposed := runtime.on_main(lambda: _begin(search, opened[0], say)):
            proposal = Proposal(**proposed)
            state, reason = _do(search, proposal, opened, runtime, keep_threads)
            runtime.on_main(partial(_end, search, proposal, opened, state, reason, say))


@contextmanager
def _opened(search: Search, runtime: Runtime) -> Iterator[list[Trials]]:
    """Within the block rank 0 has the search's folder and its trials, alone in a list; that of other ranks is empty."""
    lock = FolderLock(search.folder, "The search's folder")
    trials: list[Trials] = []

    def take() -> None:
        lock.acquire()
        trials.append(search.open_trials())

    with lock.released_when_ranks_are_done(runtime.world_size):
        try:
            runtime.on_main(take)
            yield trials
        finally:
            if trials:
                write_results(search, trials[0])
    runtime.world.barrier()  # no rank returns before the results are there to be read


def _begin(search: Search, trials: Trials, say: Say) -> dict[str, Any] | None:
    """The next trial, which has taken what it shares with those before it; None when all are done. On rank 0."""
    while proposal := trials.propose(search.num_trials):
        say(f"{proposal.name} of {search.num_trials}: {shown(proposal.values)}")
        try:
            config = search.config(proposal)
        except UserError as error:
            trials.end("failed", reason=" ".join(str(error).split()))
            continue
        share(config, [search.config(Proposal(each.name, each.values)) for each in trials.ended if each.num_epochs])
        return {"name": proposal.name, "values": proposal.values}
    return None


def share(config: Config, earlier: Sequence[Config]) -> None:
    """Let a trial have the dataset, members and labels of trials before it, where the same keys decide them."""
    entries = [Entry({}, each.seed, each) for each in [*earlier, config]]
    (task,) = plan_tasks(entries, lambda entry: entry.config is config)
    if not task.has_done(STUDENT):
        adopt(task)


def _do(
    search: Search, proposal: Proposal, opened: Sequence[Trials], runtime: Runtime, keep_threads: bool
) -> tuple[State, str]:
    """Train a trial's student and what it learns from; how that ended, and why if it failed: the same on all ranks."""

    def judge(stage: str, epochs: Epochs) -> None:
        if stage != STUDENT:
            return
        is_bad = runtime.on_main(lambda: opened[0].report(epochs))
        if is_bad and num_epochs(epochs, run.training) is None:  # one that has ended costs nothing more
            raise PrunedError

    with shared_errors():
        run = ActiveRun(search.config(proposal), runtime)
    run.after_epoch = judge
    stages = [name for name in stage_names(run.config) if name not in NOT_DONE]
    work_on(run, [PREPARE])  # what is refused here would be for any values
    try:
        work_on(run, [name for name in stages if name != PREPARE], keep_threads=keep_threads)
    except PrunedError:
        return "pruned", ""
    except UserError as error:
        if runtime.world_size > 1 and not is_of_all(error):  # other ranks still train their members
            raise
        return "failed", str(error)
    return "complete", ""


def _end(search: Search, proposal: Proposal, opened: Sequence[Trials], state: State, reason: str, say: Say) -> None:
    """Note how a trial has ended. On rank 0."""
    folder, trials = search.folder / RUNS / proposal.name, opened[0]
    trials.end(state, read_json(folder / "student/metrics.json")["epochs"] if state == "complete" else (), reason)
    if state == "pruned":
        remove(folder / "checkpoints" / STUDENT)
    trial = next(each for each in trials.ended if each.name == proposal.name)
    value = "" if trial.value is None else f", validation {SELECTION_METRIC} {trial.value:.4f}"
    say(f"{trial.name} {trial.state}{value}{f': {reason}' if reason else ''}")
