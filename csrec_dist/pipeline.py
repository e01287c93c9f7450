"""The way from a raw log to a distilled student: stages in their order, each done once."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from csrec_dist.config import Config
from csrec_dist.distributed import Runtime
from csrec_dist.errors import UserError
from csrec_dist.files import write_text
from csrec_dist.stages import distill, evaluate, label, prepare, teach
from csrec_dist.stages.run import Run
from csrec_dist.telemetry import measured


@dataclass(frozen=True)
class Stage:
    """A stage: what it depends on (JSON values), what it does, and what it leaves in the run's folder."""

    name: str
    inputs: Callable[[Run], dict[str, Any]]
    work: Callable[[Run, dict[str, Any]], dict[str, Any]]
    leavings: tuple[str, ...]


PREPARE = Stage("prepare", prepare.inputs, prepare.work, ("dataset",))
TEACH = Stage("teach", teach.inputs, teach.work, ("teachers",))
LABEL = Stage("label", label.inputs, label.work, ("labels",))
DISTILL = Stage("distill", distill.inputs, distill.work, ("student",))
BASELINE = Stage("baseline", distill.baseline_inputs, distill.baseline_work, ("base",))
EVALUATE = Stage("evaluate", evaluate.inputs, evaluate.work, ("metrics.json",))

ALL_STAGES = (PREPARE, TEACH, LABEL, DISTILL, BASELINE, EVALUATE)


def stages_of(config: Config) -> list[Stage]:
    """The stages that the method needs, in order."""
    teaching = [] if config.method == "base" else [TEACH, LABEL]
    return [PREPARE, *teaching, DISTILL, *([BASELINE] if config.baseline else []), EVALUATE]


def execute(config: Config, runtime: Runtime, names: Sequence[str] | None = None, restart: str | None = None) -> Run:
    """Do the stages called `names` (all of the method's when None), those that are done already excepted.

    `restart` names a stage that is done again, with all that follow it. Every rank calls this.

    Raises:
        UserError: a stage was done with other inputs, an earlier stage is missing, or the method has no such stage.
    """
    run = Run(config, runtime)
    plan = stages_of(config)
    chosen = [stage for stage in plan if names is None or stage.name in names]
    if not chosen:
        raise UserError(f"Method {config.method} has no stage {', '.join(names or [])}.")
    runtime.on_main(lambda: _open(run, plan, restart))
    for stage in chosen:
        _execute(run, stage)
    return run


def _open(run: Run, plan: list[Stage], restart: str | None) -> None:
    """Forget what is restarted, refuse a folder of other inputs, and write the config down."""
    if restart is not None:
        _forget_from(run, plan, restart)
    for stage in plan:
        if run.book.record(stage.name) is None:
            break
        run.book.is_done(stage.name, stage.inputs(run))
    write_text(run.folder / "config.yaml", run.config.to_yaml())


def _forget_from(run: Run, plan: list[Stage], restart: str) -> None:
    names = [stage.name for stage in plan]
    if restart not in names:
        raise UserError(f"--restart {restart}: the stages of this run are {', '.join(names)}.")
    for stage in plan[names.index(restart) :]:
        leavings = [*stage.leavings, f"checkpoints/{stage.name}", f"tensorboard/{stage.name}"]
        run.book.forget([stage.name], [run.folder / path for path in leavings])


def _execute(run: Run, stage: Stage) -> None:
    runtime = run.runtime
    inputs = runtime.on_main(lambda: stage.inputs(run))
    if runtime.on_main(lambda: run.book.is_done(stage.name, inputs)):
        with run.log(stage.name) as log:
            log.say("done already")
        return
    with measured() as usage:
        outputs = stage.work(run, inputs)
    usages = runtime.world.gather_objects(asdict(usage))
    runtime.on_main(lambda: run.book.finish(stage.name, inputs, outputs, usages))
