"""The training loop, one for teachers and students: streamed batches, an objective, an evaluation, early stopping."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from csrec_dist.checkpoints import Checkpoints, TrainState
from csrec_dist.config import LoopOptions
from csrec_dist.data.lanes import EpochOrder
from csrec_dist.data.stored import Dataset
from csrec_dist.data.stream import Batch, Prefetcher, to_batch, train_stream
from csrec_dist.distributed import Group
from csrec_dist.errors import UserError
from csrec_dist.labels import LabelCache
from csrec_dist.models import ItemTable, SequentialModel, TrainingInputs, TrainingStates
from csrec_dist.objectives import Loss, SoftLabels, cross_entropy
from csrec_dist.telemetry import StageLog, peak_memory_mib

SELECTION_METRIC = "ndcg@10"
SHARED_PLACE = 65_536
"""The place, above all ranks, of the draws that do not depend on the rank."""

Objective = Callable[[Tensor, ItemTable, Tensor, SoftLabels | None], Loss]


class TrainStep(nn.Module):
    """Model and objective as one module, so that a wrapper gathers the item table for both uses in one forward.

    The objective may be a module with parameters of its own; they are trained and kept with the model's.
    """

    def __init__(self, model: SequentialModel, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, inputs: TrainingInputs, labels: SoftLabels | None) -> Loss:
        """The summed loss of what the model trains with, and the number of its states."""
        given = self.model.training_states(inputs)
        if given.places is None:
            return self.objective(given.states, self.model.item_table, given.targets, labels)
        return self._by_places(given, labels)

    def _by_places(self, given: TrainingStates, labels: SoftLabels | None) -> Loss:
        """The objective where states have labels, and cross-entropy where they have none."""
        assert given.places is not None
        if labels is None:
            return self.objective(given.states, self.model.item_table, given.targets, None)
        labelled = given.places >= 0
        found = self.objective(
            given.states[labelled], self.model.item_table, given.targets[labelled], labels[given.places[labelled]]
        )
        states, targets, table = given.states[~labelled], given.targets[~labelled], self.model.item_table
        total, count = cross_entropy(states, table.weight, targets, item_bias=table.bias)
        return Loss(found.sum + total, found.count + count, found.cross_entropy + total.detach(), found.divergence)


class Trainer:
    """Trains a `TrainStep` on the ranks of a group; every rank of the group calls the same methods.

    `step` is what the engine made of `inner`: it is called, while parameters and states are `inner`'s.
    """

    def __init__(
        self,
        step: nn.Module,
        inner: TrainStep,
        dataset: Dataset,
        group: Group,
        options: LoopOptions,
        seed: int,
        evaluation: Callable[[], dict[str, float]],
        log: StageLog,
        labels: LabelCache | None = None,
    ) -> None:
        self._step, self._inner, self._dataset, self._group = step, inner, dataset, group
        self._options, self._seed, self._evaluation, self._log, self._labels = options, seed, evaluation, log, labels
        self._device = inner.model.item_table.weight.device
        self._optimizer = torch.optim.Adam(inner.parameters(), lr=options.learning_rate)
        self._state = TrainState()
        self._best = _copy(inner.model)

    def run(self, checkpoints: Checkpoints) -> TrainState:
        """Train until patience or the limits end it, from the newest checkpoint if there is one."""
        restored = checkpoints.restore(self._inner, self._optimizer)
        if restored:
            self._state, self._best = restored
            self._log.say(f"continues at epoch {self._state.epoch + 1}")
        self._log.expect(self._order().num_steps * self._options.max_epochs, self._state.total_steps)
        while not self._finished():
            self._run_epoch()
            if self._group.is_leader:
                checkpoints.save(self._state, _copy(self._inner), self._best, self._optimizer)
        self._inner.model.load_state_dict(self._best)
        return self._state

    def _order(self) -> EpochOrder:
        rows = self._dataset.splits["train"].lane_rows
        return EpochOrder(rows, self._options.batch_size, self._seed, self._state.epoch)

    def _finished(self) -> bool:
        state, options = self._state, self._options
        return (
            state.epoch >= options.max_epochs
            or (options.max_steps is not None and state.total_steps >= options.max_steps)
            or (state.best_epoch >= 0 and state.epoch - 1 - state.best_epoch >= options.patience)
        )

    def _run_epoch(self) -> None:
        begin = time.perf_counter()
        losses, wait = self._train_epoch()
        seconds = time.perf_counter() - begin
        metrics = self._evaluation()
        self._state.seconds += time.perf_counter() - begin
        self._conclude_epoch(losses, seconds, wait, metrics)

    def _train_epoch(self) -> tuple[Tensor, float]:
        """One epoch of steps; the sums (count, loss, cross-entropy, divergence) over all ranks, and seconds waited."""
        order = self._order()
        stream = train_stream(
            self._dataset,
            order,
            start_step=self._state.step,
            rank=self._group.rank,
            world_size=self._group.size,
        )
        batches = Prefetcher(stream, self._attach_labels)
        curve = _Curve(self._group, self._options.log_steps, self._device)
        note = f"epoch {order.epoch + 1}"
        self._inner.train()
        for batch, fields in batches:
            torch.manual_seed(_step_seed(self._seed, self._state.total_steps, self._group.rank))
            curve.add(self._train_step(batch.to(self._device), fields))
            self._state.step += 1
            self._state.total_steps += 1
            if curve.is_full:
                self._log.scalars(curve.reduce(), self._state.total_steps)
                note = f"epoch {order.epoch + 1}  {curve.note}  waited {batches.wait_seconds / curve.seconds:.0%}"
            self._log.advance(note)
            if self._state.total_steps == self._options.max_steps:
                break
        self._log.scalars(curve.reduce(), self._state.total_steps)
        self._state.epoch, self._state.step = self._state.epoch + 1, 0
        return curve.total, batches.wait_seconds

    def _attach_labels(self, columns: dict[str, Any]) -> tuple[Batch, Any]:
        batch = to_batch(columns)
        return batch, self._labels.fields(batch.example_ids) if self._labels else None

    def _train_step(self, batch: Batch, fields: Any) -> Loss:
        """One update, divided by the global count, so that each state weighs the same on any number of ranks."""
        labels = self._labels.labels(fields, self._device) if self._labels else None
        seed = _step_seed(self._seed, self._state.total_steps, SHARED_PLACE)
        loss: Loss = self._step(training_inputs(batch, seed), labels)
        count = self._group.all_reduce_sum(loss.count.clone())
        self._optimizer.zero_grad(set_to_none=True)
        (loss.sum * (self._group.size / count.clamp(min=1))).backward()
        self._optimizer.step()
        return loss

    def _conclude_epoch(self, losses: Tensor, seconds: float, wait: float, metrics: dict[str, float]) -> None:
        state = self._state
        epoch = state.epoch - 1
        count = losses[0].item()
        if not torch.isfinite(losses).all():
            raise UserError(
                f"{self._log.stage}: the loss is not finite in epoch {epoch + 1}; lower training.learning_rate."
            )
        averages = dict(zip(("loss", "cross_entropy", "divergence"), (losses[1:] / count).tolist(), strict=True))
        if metrics[SELECTION_METRIC] > state.best:
            state.best, state.best_epoch, self._best = metrics[SELECTION_METRIC], epoch, _copy(self._inner.model)
        rates = {"examples_per_second": count / seconds, "data_wait_share": wait / seconds}
        state.epochs.append({"epoch": epoch, "step": state.total_steps, **averages, **rates, "valid": metrics})
        self._log.scalars(
            {f"epoch/{name}": value for name, value in (averages | rates).items()}
            | {f"valid/{name}": value for name, value in metrics.items()}
            | {"memory/peak_mib": peak_memory_mib(), "optimizer/learning_rate": self._options.learning_rate},
            state.total_steps,
        )
        self._log.say(
            f"epoch {epoch + 1}/{self._options.max_epochs}  loss {averages['loss']:.4f}  valid {SELECTION_METRIC} "
            f"{metrics[SELECTION_METRIC]:.4f} (best {state.best:.4f} at {state.best_epoch + 1})  "
            f"{rates['examples_per_second']:,.0f} examples/s  waited {rates['data_wait_share']:.0%}"
        )


class _Curve:
    """Sums losses on the device and reduces them over the group every few steps."""

    def __init__(self, group: Group, log_steps: int, device: torch.device) -> None:
        self._group, self._log_steps = group, log_steps
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        self._steps = 0
        self._begin = time.perf_counter()
        self.total = torch.zeros(4, dtype=torch.float64)
        self.note = ""

    @property
    def seconds(self) -> float:
        """Since the curve began."""
        return time.perf_counter() - self._begin

    @property
    def is_full(self) -> bool:
        return self._steps == self._log_steps

    def add(self, loss: Loss) -> None:
        self._sums += torch.stack([loss.count, loss.sum.detach(), loss.cross_entropy, loss.divergence]).double()
        self._steps += 1

    def reduce(self) -> dict[str, float]:
        sums = self._group.all_reduce_sum(self._sums).cpu()
        self.total += sums
        self._sums, self._steps = torch.zeros_like(self._sums), 0
        if sums[0] == 0:
            return {}
        loss, cross_entropy, divergence = (sums[1:] / sums[0]).tolist()
        self.note = f"loss {loss:.3f}  {self.total[0].item() / self.seconds:,.0f} examples/s"
        return {"train/loss": loss, "train/cross_entropy": cross_entropy, "train/divergence": divergence}


def training_inputs(batch: Batch, seed: int) -> TrainingInputs:
    """What a model sees of a batch in the step of that seed."""
    return TrainingInputs(batch.histories, batch.targets, batch.examples, seed)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _step_seed(seed: int, step: int, place: int) -> int:
    """A seed that depends on the position only, so that a resumed run draws the same; for dropout `place` is a rank."""
    return ((seed * 1_000_003 + step) * 65_537 + place) % 2**63
