"""The way from a raw log to a distilled student: stages in their order, each done once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

from csrec_dist.config import Config
from csrec_dist.distributed import Processes, engines
from csrec_dist.distributed.options import check_catalog_parallel
from csrec_dist.environment import commit, environment
from csrec_dist.errors import UserError, shared_errors
from csrec_dist.files import flatten, write_text
from csrec_dist.lazy import function
from csrec_dist.memory import explained
from csrec_dist.runs.lock import RunLock
from csrec_dist.runs.run import Record, stage_names
from csrec_dist.runs.stages import inputs as inputs_of
from csrec_dist.runs.stages import prepare
from csrec_dist.runs.stages.active import ActiveRun
from csrec_dist.runs.stages.stage import Stage
from csrec_dist.runs.starting import Way, refuse_foreign, ways
from csrec_dist.training.telemetry import measured


def _late(name: str) -> Callable[..., Any]:
    """A function of stages/, named like "teach.work", whose module is imported when it is called."""
    module, _, function_name = name.partition(".")
    return function(f"csrec_dist.runs.stages.{module}", function_name)


PREPARE = Stage("prepare", (), prepare.inputs, prepare.work, ("dataset",))
TEACH = Stage(
    "teach",
    ("prepare",),
    inputs_of.teach,
    _late("teach.work"),
    ("teachers",),
    _late("teach.check"),
    _late("teach.trainings"),
)
LABEL = Stage("label", ("teach",), inputs_of.label, _late("label.work"), ("labels",), _late("label.check"))
DISTILL = Stage(
    "distill",
    ("prepare", "label"),
    inputs_of.distill,
    _late("distill.work"),
    ("student",),
    _late("distill.check"),
    _late("distill.trainings"),
)
BASELINE = Stage(
    "baseline",
    ("prepare",),
    inputs_of.baseline,
    _late("distill.baseline_work"),
    ("base",),
    _late("distill.check_baseline"),
    _late("distill.baseline_trainings"),
)
EVALUATE = Stage(
    "evaluate",
    ("teach", "distill", "baseline"),
    inputs_of.evaluate,
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
    """Do the stages called `names` (all of the method's when None), those that are done already excepted.

    `restart` names a stage that is done again, with all that depend on it. Nothing is written before the first stage
    that is to be done has found what it reads. `keep_threads`: a run that goes on computes with as many threads as it
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
    config, processes, plan = run.config, run.processes, stages_of(run.config)
    with shared_errors():
        chosen = choose(config, plan, names, restart)
        check_catalog_parallel(processes.world_size, config.distributed.catalog_parallel)
        engines.check(config.distributed)
    with _in_use(run):
        decided = processes.on_main(lambda: _open(run, plan, chosen, restart))
        with run.log("run") as log, _settings(run, chosen, log.say, keep_threads):
            for stage in chosen:
                _execute(run, stage, plan, decided[stage.name], restart)
        processes.on_main(lambda: _close(run))


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
    """Within the block the run's folder is taken: rank 0 has its lock."""
    lock = RunLock(run.folder)

    def take() -> None:
        refuse_foreign(run.folder)
        lock.acquire()

    run.processes.on_main(take)
    try:
        yield
    finally:
        lock.release()


def choose(config: Config, plan: list[Stage], names: Sequence[str] | None, restart: str | None) -> list[Stage]:
    """The stages to do; UserError for a stage that the run does not have."""
    chosen = [stage for stage in plan if names is None or stage.name in names]
    if not chosen:
        hint = " Set baseline: true." if names == ["baseline"] and config.method != "base" else ""
        raise UserError(f"A run of method {config.method} has no stage {', '.join(names or [])}.{hint}")
    if restart is not None and restart not in [stage.name for stage in chosen]:
        raise UserError(f"--restart {restart}: this command does {', '.join(stage.name for stage in chosen)}.")
    return chosen


def _open(run: ActiveRun, plan: list[Stage], chosen: list[Stage], restart: str | None) -> dict[str, Way]:
    """Carry out what a killed process left half done, and decide; what does not fit is refused, nothing written."""
    run.restarts.recover()
    return ways(run, plan, chosen, restart)


def _close(run: ActiveRun) -> None:
    _write_config(run)
    run.restarts.conclude()


def _write_config(run: ActiveRun) -> None:
    """Write the config down, unless it stands there already."""
    path, text = run.folder / "config.yaml", run.config.to_yaml()
    try:
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
    except OSError as error:
        raise UserError(f"The run's folder {run.folder} cannot be written: {error.strerror}.") from None


def dependents(plan: list[Stage], name: str) -> list[Stage]:
    """The stages that depend on the one called `name`."""
    names = {name}
    for stage in plan:
        if names.intersection(stage.needs):
            names.add(stage.name)
    return [stage for stage in plan if stage.name in names - {name}]


def _execute(run: ActiveRun, stage: Stage, plan: list[Stage], way: Way, restart: str | None) -> None:
    processes = run.processes
    if way == "leave":
        with run.log(stage.name) as log:
            log.say("done already")
        return
    inputs = processes.on_main(lambda: stage.inputs(run))
    stage.check(run, inputs)
    is_beside = processes.on_main(lambda: _begin(run, stage, inputs, way, restart))
    run.beside = stage.all_leaves if is_beside else ()
    with measured(processes.begin(stage.name)) as usage, _memory_explained(run, stage):
        outputs = stage.work(run, inputs)
    usages = processes.gather(asdict(usage))
    record = Record(flatten(inputs), outputs, usages, _environment(run, stage))
    processes.on_main(lambda: _finish(run, stage, plan, record))
    run.beside = ()


def _environment(run: ActiveRun, stage: Stage) -> dict[str, Any]:
    """What the bits of a stage's result depend on besides its inputs; those of a dataset on the code alone."""
    return {"commit": commit()} if stage is PREPARE else environment(run.processes.world_size)


def _begin(run: ActiveRun, stage: Stage, inputs: dict[str, Any], way: Way, restart: str | None) -> bool:
    """Write down that a stage begins; whether it is done beside its old result."""
    _write_config(run)
    begun = run.restarts.begun_with(stage.name)
    if way == "do" and begun is None:
        return False
    if way != "resume":
        copied = [leaf for leaf in stage.all_leaves if way == "continue" and (run.folder / leaf).exists()]
        run.restarts.begin(stage.name, inputs, stage.all_leaves, copied)
    if stage.name == restart:
        run.restarts.set_request(restart)
    return True


def _finish(run: ActiveRun, stage: Stage, plan: list[Stage], record: Record) -> None:
    if run.beside:
        stale = {each.name: each.all_leaves for each in dependents(plan, stage.name)}
        run.restarts.replace(stage.name, record, stage.all_leaves, stale)
    else:
        run.finish(stage.name, record)


def _memory_explained(run: ActiveRun, stage: Stage) -> AbstractContextManager[None]:
    """For the stages that hold item tables."""
    if stage is PREPARE:
        return nullcontext()
    widest = max(model.width for model in [run.config.model, *run.config.teacher_models])
    return explained(stage.name, run.dataset.num_items, widest, run.config.distributed.catalog_parallel)
