"""The way from a raw log to a distilled student: stages in their order, each done once."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from typing import Any

from csrec_dist.config import Config
from csrec_dist.distributed import Processes, engines
from csrec_dist.distributed.options import check_catalog_parallel
from csrec_dist.environment import commit, environment
from csrec_dist.errors import UserError, shared_errors
from csrec_dist.files import flatten, write_text
from csrec_dist.lazy import function, load
from csrec_dist.lock import FolderLock, remove_dead_locks
from csrec_dist.memory import explained
from csrec_dist.runs import inputs
from csrec_dist.runs.run import Record, stage_names
from csrec_dist.runs.shared_folder import require_shared
from csrec_dist.runs.stages import prepare
from csrec_dist.runs.stages.active import ActiveRun, Stage
from csrec_dist.runs.starting import IGNORED, THREADS, Way, refuse_foreign, ways
from csrec_dist.training.telemetry import measured
from csrec_dist.writers import remove_leftovers


def _late(name: str) -> Callable[..., Any]:
    """A function of stages/, named like "teach.work", whose module is imported when it is called."""
    module, _, function_name = name.partition(".")
    return function(f"csrec_dist.runs.stages.{module}", function_name)


PREPARE = Stage("prepare", (), prepare.inputs, prepare.work, ("dataset",))
TEACH = Stage(
    "teach",
    ("prepare",),
    inputs.teach_inputs,
    _late("teach.work"),
    ("teachers",),
    _late("teach.check"),
    _late("teach.trainings"),
)
LABEL = Stage("label", ("teach",), inputs.label_inputs, _late("label.work"), ("labels",), _late("label.check"))
DISTILL = Stage(
    "distill",
    ("prepare", "label"),
    inputs.distill_inputs,
    _late("distill.work"),
    ("student",),
    _late("distill.check"),
    _late("distill.trainings"),
)
BASELINE = Stage(
    "baseline",
    ("prepare",),
    inputs.baseline_inputs,
    _late("distill.baseline_work"),
    ("base",),
    _late("distill.baseline_check"),
    _late("distill.baseline_trainings"),
)
EVALUATE = Stage(
    "evaluate",
    ("teach", "distill", "baseline"),
    inputs.evaluate_inputs,
    _late("evaluate.work"),
    ("metrics.json", "ranks"),
    _late("evaluate.check"),
    free="evaluation",
)
STAGES = {stage.name: stage for stage in (PREPARE, TEACH, LABEL, DISTILL, BASELINE, EVALUATE)}


def stages_of(config: Config) -> list[Stage]:
    """The stages that the method needs, in order."""
    return [STAGES[name] for name in stage_names(config)]


def execute(
    config: Config,
    processes: Processes,
    names: Sequence[str] | None = None,
    restart: str | None = None,
    *,
    keep_threads: bool = False,
) -> ActiveRun:
    """Do the stages called `names` (all of the method's when None), except those that are done already.

    `restart` names a stage that is done again, with all that depend on it. Nothing is written before the first of these
    stages has checked what it reads. `keep_threads`: a run that is resumed computes with as many threads as it
    began with, whatever this process has. Every rank calls this; its process is left with the settings that it had.
    Only stages that compute need a `Runtime`, and import torch.

    Raises:
        UserError: a stage was done with other inputs, an earlier stage is missing, the method has no such stage, the
            engine cannot start, or another process uses the run's folder.
    """
    run = ActiveRun(config, processes)
    work_on(run, names, restart, keep_threads=keep_threads)
    return run


def work_on(
    run: ActiveRun, names: Sequence[str] | None = None, restart: str | None = None, *, keep_threads: bool = False
) -> None:
    """As `execute`, for a run that was made already."""
    config, processes, stages = run.config, run.processes, stages_of(run.config)
    with shared_errors():
        chosen = choose(config, stages, names, restart)
        check_catalog_parallel(processes.world_size, config.distributed.catalog_parallel)
        engines.check(config.distributed)
    with _in_use(run):
        # Replacements that a killed process left half done come first: what a stage finds decides what is to do.
        processes.on_main(run.restarts.recover)
        # A restart of prepare is to replace a dataset that may be damaged; one that was cut off later has a new one.
        if restart != PREPARE.name or processes.on_main(lambda: run.restarts.is_replaced(PREPARE.name)):
            run.resolve()
        decided = processes.on_main(lambda: ways(run, stages, chosen, restart))
        with run.log("run") as log, _settings(run, chosen, log.say, keep_threads):
            for stage in chosen:
                if decided[stage.name] == "leave":
                    with run.log(stage.name) as stage_log:
                        stage_log.say("done already")
                else:
                    _execute(run, stage, decided[stage.name], restart)
                    if stage is PREPARE and (chosen_by_size := run.resolve()):
                        processes.on_main(lambda: _write_config(run))
                        with run.log("prepare") as stage_log:
                            values = ", ".join(f"{key} {value:g}" for key, value in chosen_by_size.items())
                            stage_log.say(f"training, by the size of the log: {values}")
        processes.on_main(lambda: _write_config(run))
        processes.on_main(run.restarts.conclude)


@contextmanager
def _settings(run: ActiveRun, chosen: list[Stage], say: Callable[[str], None], keep_threads: bool) -> Iterator[None]:
    """Within the block torch is set as the run asks for, where a stage is chosen that needs it."""
    if chosen == [PREPARE]:
        yield
        return
    from csrec_dist.process_state import deterministic, restored
    from csrec_dist.runs.threads import threads_of_run

    with (
        deterministic(run.config.distributed.deterministic),
        restored(run.runtime.device),
        threads_of_run(run.folder, run.runtime, say, keep_threads),
    ):
        yield


@contextmanager
def _in_use(run: ActiveRun) -> Iterator[None]:
    """Within the block rank 0 has the lock of the run's folder, which all ranks see."""
    lock, config = FolderLock(run.folder, "The run's folder"), run.folder / "config.yaml"
    was_begun = config.exists()

    def take() -> None:
        refuse_foreign(run.folder)
        lock.acquire()
        remove_leftovers(run.folder, inside=True)
        remove_dead_locks(run.folder)

    with lock.released_when_ranks_are_done(run.processes.world_size):
        run.processes.on_main(take)
        try:
            require_shared(run.folder, run.processes)
            yield
        except UserError:
            # Refused at its first stage, such as for its log: the folder is as it was, and may become another run's.
            if run.processes.is_main and not was_begun and not set(os.listdir(run.folder)) - {config.name, *IGNORED}:
                for path in (config, run.folder / THREADS):
                    path.unlink(missing_ok=True)
            raise


def choose(config: Config, stages: list[Stage], names: Sequence[str] | None, restart: str | None) -> list[Stage]:
    """The stages to do; UserError for a stage that the run does not have."""
    chosen = [stage for stage in stages if names is None or stage.name in names]
    if not chosen:
        hint = " Set baseline: true." if names == ["baseline"] and config.method != "base" else ""
        raise UserError(f"A run of method {config.method} has no stage {', '.join(names or [])}.{hint}")
    if restart is not None and restart not in [stage.name for stage in chosen]:
        raise UserError(f"--restart {restart}: this command does {', '.join(stage.name for stage in chosen)}.")
    return chosen


def _write_config(run: ActiveRun) -> None:
    """Write the config down, unless it stands there already."""
    path, text = run.folder / "config.yaml", run.config.to_yaml()
    try:
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
    except OSError as error:
        raise UserError(f"The run's folder {run.folder} cannot be written: {error.strerror}.") from None


def _execute(run: ActiveRun, stage: Stage, way: Way, restart: str | None) -> None:
    """Do one stage, and write its record."""
    processes = run.processes
    inputs = processes.on_main(lambda: stage.inputs(run))
    stage.check(run, inputs)
    # Rank 0 alone writes the records; the others wait, so that no rank works on a stage that is not begun.
    is_beside = processes.on_main(lambda: _begin(run, stage, inputs, way, restart))
    run.beside = stage.all_leaves if is_beside else ()
    _import_libraries(run, stage)
    with measured(processes.begin(stage.name)) as usage, _memory_explained(run, stage):
        outputs = stage.work(run, inputs)
    usages = processes.gather(asdict(usage))
    # The bits of a result depend on more than its inputs; those of a dataset on the code alone.
    depends_on = {"commit": commit()} if stage is PREPARE else environment(processes.world_size)
    record = Record(flatten(inputs), outputs, usages, depends_on)
    processes.on_main(lambda: _finish(run, stage, record))
    run.beside = ()


def _import_libraries(run: ActiveRun, stage: Stage) -> None:
    """Import what stages import at their first use: some seconds that are no cost of the first stage, or method."""
    for module in () if stage is PREPARE else ("datasets", *["torch.utils.tensorboard"] * run.processes.is_main):
        with suppress(ImportError):  # said where it is needed
            load(module)


def _begin(run: ActiveRun, stage: Stage, inputs: dict[str, Any], way: Way, restart: str | None) -> bool:
    """Write down that a stage begins; whether it is done beside its old result, which is that of the old config."""
    begun = run.restarts.begun_with(stage.name)
    if way == "do" and begun is None:
        _write_config(run)
        return False
    if way != "resume":
        copied = [leaf for leaf in stage.all_leaves if way == "continue" and (run.folder / leaf).exists()]
        run.restarts.begin(stage.name, inputs, stage.all_leaves, copied)
    if stage.name == restart:
        run.restarts.set_request(restart)
    return True


def _finish(run: ActiveRun, stage: Stage, record: Record) -> None:
    if not run.beside:
        run.finish(stage.name, record)
        return
    stale = {stage.name}
    for each in STAGES.values():  # in order, so that what depends on a dependent is stale too
        if stale.intersection(each.needs):
            stale.add(each.name)
    dependents = {name: each.all_leaves for name, each in STAGES.items() if name in stale - {stage.name}}
    run.restarts.replace(stage.name, record, stage.all_leaves, dependents, run.config.to_yaml())


def _memory_explained(run: ActiveRun, stage: Stage) -> AbstractContextManager[None]:
    """A stage that holds item tables and runs out of memory says what would need less."""
    if stage is PREPARE:
        return nullcontext()
    widest = max(model.width for model in [run.config.model, *run.config.teacher_models])
    return explained(stage.name, run.dataset.num_items, widest, run.config.distributed.catalog_parallel)
