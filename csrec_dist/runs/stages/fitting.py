"""Training one model into a folder: what the stages teach, distill and baseline share."""

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csrec_dist import models
from csrec_dist.data.order import RowSample, owned_shards
from csrec_dist.distributed.catalog import catalogs_of, slices_of
from csrec_dist.distributed.engines import Engine, build, table_group
from csrec_dist.distributed.layout import Layout
from csrec_dist.errors import UserError
from csrec_dist.files import flatten, read_json, write_record
from csrec_dist.labels import LabelCache, LabelReader
from csrec_dist.labels.cache import on_device
from csrec_dist.models import ModelConfig, SequentialModel
from csrec_dist.models.transfer import require_architecture, start_from
from csrec_dist.runs.inputs import changes
from csrec_dist.runs.origin import Origin
from csrec_dist.runs.stages.active import ActiveRun
from csrec_dist.runs.stages.evaluate import evaluate_model
from csrec_dist.storage import require_room
from csrec_dist.training import LossFunction, StopSignals, Trainer, TrainStep
from csrec_dist.training.checkpoints import Checkpoints, TrainState, checkpoint_folders, last_state
from csrec_dist.training.limits import SELECTION_METRIC, exceeded, num_epochs
from csrec_dist.training.options import ResolvedTraining
from csrec_dist.training.telemetry import StageLog

DIGEST_NUMBERS = 1 << 22
"""Of a tensor that are summed at once."""
COPIES = 4
"""Of the weights in a checkpoint: as they are, as they ranked best, and Adam's two moments."""
REDO = "Re-run the stage with --restart, or give the run another name."


@dataclass(frozen=True)
class Fit:
    """A model to train: what it is, what it learns from, and where it goes.

    `inputs` names all that decides the result; a checkpoint of other inputs is refused. `one_hot_weight` is the weight
    that the loss gives to the one-hot targets. `init_from` is the folder of what the training starts from, if anything.
    """

    stage: str
    model: ModelConfig
    seed: int
    loss_function: LossFunction
    folder: Path
    inputs: dict[str, Any]
    labels: LabelReader | None = None
    sample: RowSample | None = None
    one_hot_weight: float = 1.0
    init_from: str | None = None


@dataclass(frozen=True)
class Training:
    """A training as its files tell of it: the model's folder, that of its checkpoints, and all that decides it."""

    folder: Path
    checkpoints: Path
    inputs: dict[str, Any]

    def is_ended(self, options: ResolvedTraining) -> bool:
        """Whether the model is trained to the end that these limits set; metrics.json is written last.

        Raises:
            UserError: other inputs made the model, or a checkpoint (the message names them), or it is trained further.
        """
        saved = self._saved
        if saved is None:
            if checkpoint_folders(self.checkpoints):
                raise UserError(f"All checkpoints in {self.checkpoints} are damaged. {REDO}")
            return False
        where = self.folder if self._is_trained else self.checkpoints
        if changed := changes(saved.get("inputs", {}), flatten(self.inputs)):
            raise UserError(f"{where} belongs to a training with different inputs: {changed}. {REDO}")
        is_within = not self._is_trained and saved["step"] > 0
        if problem := exceeded(saved["epochs"], is_within, options):
            raise UserError(f"{where}: {problem}. Set it to at least what was trained. {REDO}")
        return self._is_trained and num_epochs(saved["epochs"], options) is not None

    def is_of_others(self) -> bool:
        """Whether there is a model or a checkpoint that other inputs made."""
        saved = self._saved
        return saved is not None and bool(changes(saved.get("inputs", {}), flatten(self.inputs)))

    def require_checkpoint(self) -> None:
        """UserError unless the checkpoint is there from which an ended training goes on."""
        last, epochs = last_state(self.checkpoints), len(read_json(self.folder / "metrics.json")["epochs"])
        if last is None or last["inputs"] != flatten(self.inputs) or len(last["epochs"]) != epochs:
            raise UserError(
                f"training.max_epochs or training.patience was raised after {self.folder} was trained, but the "
                f"checkpoint to resume from is not in {self.checkpoints}. {REDO}"
            )

    @property
    def _is_trained(self) -> bool:
        return (self.folder / "metrics.json").exists()

    @property
    def _saved(self) -> dict[str, Any] | None:
        """What the model says of its training, or before it is saved its newest checkpoint."""
        return read_json(self.folder / "metrics.json") if self._is_trained else last_state(self.checkpoints)


def fit(
    run: ActiveRun,
    task: Fit,
    layout: Layout,
    log: StageLog,
    signals: StopSignals | None = None,
    hands_over: Callable[[], bool] | None = None,
) -> bool:
    """Build, train and save one model on the ranks of a layout, resuming from its newest checkpoint.

    False when `hands_over`, asked after an epoch, ended it before: nothing but a checkpoint is written then. `signals`
    are noted by the caller, or else here.

    Raises:
        Stopped: a signal asked for it, and a checkpoint is written.
    """
    run.runtime.watch.at(task.stage)
    engine, labels = make_engine(run, task, layout), task.labels
    if isinstance(labels, LabelCache):
        shards = owned_shards(run.dataset.num_shards, layout.group.rank, layout.group.size)
        labels = on_device(labels, shards, run.runtime.device, run.config.labels.device_mib << 20)
    trainer = Trainer(
        engine,
        run.dataset,
        run.training,
        task.seed,
        lambda model: evaluate_model(run, model, "valid", layout),
        log,
        labels,
        task.sample,
    )
    folder, keep = run.path(f"checkpoints/{task.stage}"), run.config.training.keep_checkpoints
    if task.init_from is not None:
        _say_start(run, task, trainer, folder, layout, log)
    checkpoints = Checkpoints(folder, task.inputs, layout.group, keep)
    with nullcontext(signals) if signals else StopSignals() as noted, closing(engine):
        require_room_for_checkpoints(checkpoints, trainer.trained(), layout, keep)
        state = trainer.run(checkpoints, noted, hands_over, run.after_epoch)
        if state is None:
            return False
        # Before the model says that it is trained: a kill after it would leave old ones.
        layout.group.on_leader(checkpoints.conclude)
        save(run, task, trainer.best(), state, engine)
    return True


def require_room_for_checkpoints(checkpoints: Checkpoints, trained: nn.Module, layout: Layout, keep: int) -> None:
    """StorageError on every rank of the layout unless the disk has room for the checkpoints that are kept at a time.

    Each has the weights, the best ones and two moments of Adam; a new one is written before the oldest goes.
    """
    catalogs = catalogs_of(trained)
    sizes = {name: weight.numel() * weight.element_size() for name, weight in trained.named_parameters()}
    num_bytes = sum(size * (catalogs[name].group.size if name in catalogs else 1) for name, size in sizes.items())

    def on_leader() -> None:
        to_come = max(keep + 1 - len(checkpoint_folders(checkpoints.folder)), 1)
        require_room(checkpoints.folder, to_come * COPIES * num_bytes, "The checkpoints of the training")

    layout.group.on_leader(on_leader)


def make_engine(run: ActiveRun, task: Fit, layout: Layout) -> Engine:
    """The run's engine with the model and its loss."""
    dataset, training, options = run.dataset, run.config.training, run.config.distributed
    tables = table_group(options, layout)
    model = models.build(task.model, dataset.num_items, dataset.window - 1, task.seed, tables)
    if task.init_from is not None:
        origin, rows = origin_rows(run, task.model, task.init_from)
        start_from(model, origin.folder, rows)
    step = TrainStep(
        model,
        task.loss_function,
        layout.group,
        training.precision,
        task.one_hot_weight,
        training.matmul_precision,
    )
    inner = step.to(run.runtime.device)
    slices, state = slices_of(inner), inner.state_dict()
    shares = [digest(state[name]) / (1 if name in slices else tables.size) for name in state]
    drawn = tables.all_reduce_sum(torch.stack(shares).sum())
    engine = build(options, inner, layout, run.runtime.device, training.clip_norm, training.accumulate)
    shares = [digest(held.numbers) / held.replicas.size for held in engine.held_weights().values()]
    trained = layout.group.all_reduce_sum(torch.stack(shares).sum())
    digests = layout.group.all_gather(torch.stack([drawn, trained])).tolist()
    # Each rank draws the weights itself, and an engine may broadcast those of a rank with another member.
    same = all(isclose(value, digests[0][0], rel_tol=1e-9) for pair in digests for value in pair)
    assert same, f"an engine has changed weights: {digests}"
    return engine


def origin_rows(run: ActiveRun, config: ModelConfig, init_from: str) -> tuple[Origin, np.ndarray]:
    """The model that a training starts from, and the row of its table for each item of the dataset, −1 for new ones.

    Raises UserError when the model is of another architecture, or it is not known which items it knows.
    """
    origin = Origin.of(init_from)
    description = require_architecture(origin.folder, config, run.dataset.window - 1)
    return origin, origin.rows_of(run.dataset, description.num_items)


def _say_start(run: ActiveRun, task: Fit, trainer: Trainer, checkpoints: Path, layout: Layout, log: StageLog) -> None:
    """Evaluate what a training starts from, unless it goes on from a checkpoint."""
    assert task.init_from is not None
    if not layout.group.on_leader(lambda: last_state(checkpoints) is None):
        return
    _, rows = origin_rows(run, task.model, task.init_from)
    with layout.group.watch.doing("evaluating"):
        metrics = evaluate_model(run, trainer.model(), "valid", layout)
    log.scalars({f"valid/{name}": value for name, value in metrics.items()}, 0)
    log.say(
        f"starts from {task.init_from}, which knows {int((rows >= 0).sum()):,} of {len(rows):,} items: valid "
        f"{SELECTION_METRIC} {metrics[SELECTION_METRIC]:.4f}"
    )


def save(run: ActiveRun, task: Fit, model: SequentialModel, state: TrainState, engine: Engine) -> None:
    """Write a trained model into its folder, metrics.json last; all ranks that trained it call this."""
    layout, catalog = engine.layout, model.item_table.catalog

    def begin() -> None:
        if task.folder.is_symlink():  # a model that was borrowed from another run is not written to
            task.folder.unlink()
        # It says that the weights are whole, so it goes before these are replaced, and is written when they are.
        (task.folder / "metrics.json").unlink(missing_ok=True)

    def write() -> None:
        if layout.group.is_leader if catalog.is_whole else layout.group.ranks[0] in catalog.group.ranks:
            model.save_pretrained(task.folder, sharded=run.config.distributed.export == "sharded")

    def end() -> None:
        origin = {"inputs": flatten(task.inputs), "id_map": run.dataset.id_map_fingerprint}
        settings = {"model": task.model.model_dump(mode="json"), "seed": task.seed, "trained_by": engine.record()}
        write_record(task.folder / "metrics.json", {**origin, **settings, **state.summary()})

    layout.group.on_leader(begin)
    layout.group.on_all(write, "the weights", meets=not catalog.is_whole)
    layout.group.on_leader(end)


def digest(tensor: Tensor) -> Tensor:
    """The sum of the absolute values of a tensor, in float64; some of them at a time."""
    parts = tensor.detach().flatten().split(DIGEST_NUMBERS)
    return torch.stack([part.abs().sum(dtype=torch.float64) for part in parts]).sum()
