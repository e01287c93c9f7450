"""The way from a raw log to a distilled student: stages in their order, each done once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from csrec_dist.config import Config
from csrec_dist.distributed import Runtime, engines, repeat_bits
from csrec_dist.distributed.mesh import check_catalog_parallel
from csrec_dist.errors import UserError, shared_errors
from csrec_dist.files import write_text
from csrec_dist.memory import explained
from csrec_dist.runlock import RunLock
from csrec_dist.runthreads import threads_of_run
from csrec_dist.stages import distill, evaluate, label, prepare, teach
from csrec_dist.stages.run import Run
from csrec_dist.telemetry import measured


@dataclass(frozen=True)
class Stage:
    """A stage: the stages it needs, what decides its result (JSON values), its work, and what it leaves in the run."""

    name: str
    needs: tuple[str, ...]
    inputs: Callable[[Run], dict[str, Any]]
    work: Callable[[Run, dict[str, Any]], dict[str, Any]]
    leaves: str

    def path(self, run: Run) -> Path:
        """What the stage leaves."""
        return run.config.dataset_folder if self is PREPARE else run.folder / self.leaves


PREPARE = Stage("prepare", (), prepare.inputs, prepare.work, "dataset")
TEACH = Stage("teach", ("prepare",), teach.inputs, teach.work, "teachers")
LABEL = Stage("label", ("teach",), label.inputs, label.work, "labels")
DISTILL = Stage("distill", ("prepare", "label"), distill.inputs, distill.work, "student")
BASELINE = Stage("baseline", ("prepare",), distill.baseline_inputs, distill.baseline_work, "base")
EVALUATE = Stage("evaluate", ("teach", "distill", "baseline"), evaluate.inputs, evaluate.work, "metrics.json")


def stages_of(config: Config) -> list[Stage]:
    """The stages that the method needs, in order."""
    teaching = [TEACH, LABEL] if config.num_members else []
    return [PREPARE, *teaching, DISTILL, *([BASELINE] if config.baseline else []), EVALUATE]


def execute(
    config: Config,
    runtime: Runtime,
    names: Sequence[str] | None = None,
    restart: str | None = None,
    *,
    keep_threads: bool = False,
) -> Run:
    """Do the stages called `names` (all of the method's when None), those that are done already excepted.

    `restart` names a stage that is done again, with all that depend on it. `keep_threads`: a run that goes on computes
    with as many threads as it began with, whatever this process has. Every rank calls this.

    Raises:
        UserError: a stage was done with other inputs, an earlier stage is missing, the method has no such stage, the
            engine cannot start, or another process uses the run's folder.
    """
    run = Run(config, runtime)
    plan = stages_of(config)
    repeat_bits(config.distributed.deterministic)
    with shared_errors():
        chosen = choose(config, plan, names, restart)
        check_catalog_parallel(runtime.world_size, config.distributed.catalog_parallel)
        engines.check(config.distributed.engine, config.distributed.deepspeed)
    with _in_use(run):
        runtime.on_main(lambda: _open(run, plan, restart))
        with run.log("run") as log, threads_of_run(run.folder, runtime, log.say, keep_threads):
            for stage in chosen:
                _execute(run, stage)
    return run


@contextmanager
def _in_use(run: Run) -> Iterator[None]:
    """Within the block the run's folder is taken: rank 0 has its lock."""
    lock = RunLock(run.folder)
    run.runtime.on_main(lock.acquire)
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


def _open(run: Run, plan: list[Stage], restart: str | None) -> None:
    """Refuse a folder of other inputs; then forget what is restarted and write the config down.

    Nothing is removed before all that stays has been found to fit, and what is restarted can begin.
    """
    forgotten = dependents(plan, restart)
    done = {stage.name for stage in plan if run.book.record(stage.name) and stage.name not in forgotten}
    for stage in plan:
        needed = [name for name in stage.needs if name in {each.name for each in plan}]
        missing = [name for name in needed if name not in done]
        if stage.name in done and missing:
            raise UserError(
                f"Stage {stage.name} of {run.folder} is done, but {', '.join(missing)}, which it depends on, is not. "
                f"Redo it with --restart {stage.name}, or give the run another name."
            )
        if stage.name in done:
            run.book.check(stage.name, stage.inputs(run), stage.path(run))
        elif stage.name == restart and not missing:
            stage.inputs(run)
    for name in reversed([stage.name for stage in plan if stage.name in forgotten]):
        _forget(run, name, plan)
    try:
        write_text(run.folder / "config.yaml", run.config.to_yaml())
    except OSError as error:
        raise UserError(f"The run's folder {run.folder} cannot be written: {error.strerror}.") from None


def dependents(plan: list[Stage], restart: str | None) -> set[str]:
    """`restart` and all stages that depend on it."""
    found = {restart} if restart else set()
    for stage in plan:
        if found.intersection(stage.needs):
            found.add(stage.name)
    return found


def _forget(run: Run, name: str, plan: list[Stage]) -> None:
    leaves = next(stage.leaves for stage in plan if stage.name == name)
    run.book.forget(name, [run.folder / path for path in (leaves, f"checkpoints/{name}", f"tensorboard/{name}")])


def _execute(run: Run, stage: Stage) -> None:
    runtime = run.runtime
    inputs = runtime.on_main(lambda: stage.inputs(run))
    if runtime.on_main(lambda: run.book.check(stage.name, inputs, stage.path(run))):
        with run.log(stage.name) as log:
            log.say("done already")
        return
    runtime.watch.at(stage.name)
    with measured(runtime.watch.waits) as usage, _memory_explained(run, stage):
        outputs = stage.work(run, inputs)
    usages = runtime.world.gather_objects(asdict(usage))
    runtime.on_main(lambda: run.book.finish(stage.name, inputs, outputs, usages))


def _memory_explained(run: Run, stage: Stage) -> AbstractContextManager[None]:
    """For the stages that hold item tables."""
    if stage is PREPARE:
        return nullcontext()
    widest = max(model.width for model in [run.config.model, *run.config.teacher_models])
    return explained(stage.name, run.dataset.num_items, widest, run.config.distributed.catalog_parallel)
