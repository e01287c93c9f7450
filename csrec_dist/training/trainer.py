"""The training loop, one for teachers and students: streamed batches, a loss, an evaluation, early stopping."""

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, cast

import torch

from csrec_dist.data.batches import Prefetcher, to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.order import EpochOrder, RowSample
from csrec_dist.distributed.engines import Engine
from csrec_dist.environment import environment
from csrec_dist.errors import UserError
from csrec_dist.files import differences
from csrec_dist.losses import RobustLoss
from csrec_dist.losses.entropy import label_entropy
from csrec_dist.losses.soft_labels import LabelReader
from csrec_dist.models import SequentialModel
from csrec_dist.models.weight_files import num_not_finite
from csrec_dist.training.checkpoints import Checkpoints, EpochSums, TrainState
from csrec_dist.training.limits import SELECTION_METRIC, AfterEpoch, FailedTrainingError, is_better, num_epochs
from csrec_dist.training.meter import LOSS_PARTS, Meter
from csrec_dist.training.options import ResolvedTraining
from csrec_dist.training.step import MicroBatch, TrainStep
from csrec_dist.training.stepping import Stepper
from csrec_dist.training.stopping import Agreed, Requests, Stopped, StopSignals
from csrec_dist.training.telemetry import StageLog, peak_memory_mib

MODEL = "model."
"""Prefix of the names of the model's weights in a `TrainStep`."""
MOST_LOGGED = 256
"""Examples whose labels' entropy is logged at the end of an epoch."""
SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2,
}
"""Learning-rate multiplier as a function of progress after warm-up, 0 to 1."""


def learning_rate(options: ResolvedTraining, step: int, num_steps: int) -> float:
    """The learning rate of update `step` (0 … num_steps − 1) of a training of at most `num_steps`.

    It rises in equal parts over the first `warmup_steps` updates, then follows the shape of `schedule` towards 0,
    which it would reach one update after the last. Early stopping does not change it.
    """
    warmup = options.warmup_steps
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    return options.learning_rate * SHAPES[options.schedule]((step - warmup) / max(num_steps - warmup, 1))


class Trainer:
    """Trains an engine's `TrainStep` on the ranks of its layout, which all call the same methods."""

    def __init__(
        self,
        engine: Engine,
        dataset: Dataset,
        options: ResolvedTraining,
        seed: int,
        evaluation: Callable[[SequentialModel], dict[str, float]],
        log: StageLog,
        labels: LabelReader | None = None,
        sample: RowSample | None = None,
    ) -> None:
        self._engine, self._inner, self._group = engine, cast(TrainStep, engine.module), engine.layout.group
        self._dataset, self._options, self._seed, self._evaluation = dataset, options, seed, evaluation
        self._log, self._sample, self._device, self._labels = log, sample, engine.device, labels
        self._stepper = Stepper(engine, options, labels, seed, dataset.window, log.say, dataset.example_weights)
        self._state = TrainState()
        self._trained_last: list[MicroBatch] = []
        self._best = engine.copy_weights(MODEL)

    @property
    def stage(self) -> str:
        """The stage of the training, as the log names it: `distill`, `teach/teacher-0`."""
        return self._log.stage

    @property
    def state(self) -> TrainState:
        """Where the training stands."""
        return self._state

    def trained(self) -> TrainStep:
        """The model as it is now, with what its loss trains beside it; every rank calls this."""
        return cast(TrainStep, self._engine.readable())

    def model(self) -> SequentialModel:
        """The model as it is now, fit for evaluation; every rank calls this."""
        return self.trained().model

    def best(self) -> SequentialModel:
        """The model as it was when it ranked best on validation; every rank calls this once the training has ended."""
        self._engine.put_back(self._best, MODEL)
        return self.model()

    def run(
        self,
        checkpoints: Checkpoints,
        signals: StopSignals,
        hands_over: Callable[[], bool] | None = None,
        after_epoch: AfterEpoch | None = None,
    ) -> TrainState | None:
        """Train until patience or the limits end it, from the newest checkpoint if there is one.

        Returns None if `hands_over`, which all ranks call after each epoch but the last, says that the training goes on
        elsewhere, from the checkpoint that is written then. `after_epoch` is called by all ranks after each epoch.

        Raises:
            Stopped: one of the ranks got a signal; a checkpoint is written.
            FailedTrainingError: the loss or a weight is no longer finite, or no example weighs anything, on all ranks
                at the same step. In a group without rank 0, the first rank raises a plain UserError, which it prints.
        """
        self._restore(checkpoints)
        self._note_environment()
        self._log.expect(self._num_steps(), self._state.total_steps)
        self._checkpoints = checkpoints
        minutes = self._options.checkpoint_minutes
        self._requests = Requests(
            self._group, signals, minutes, self._device, has_failed=lambda: checkpoints.has_failed
        )
        with checkpoints:
            while not self.is_finished():
                self._run_epoch()
                self._save()
                if after_epoch:
                    after_epoch(self._log.stage, self._state.epochs)
                if hands_over and not self.is_finished() and hands_over():
                    checkpoints.wait()
                    return None
            checkpoints.wait()
        return self._state

    def _note_environment(self) -> None:
        """Record the environment, and report how it differs from the last one; ranks may come and go at any epoch."""
        environments, current = self._state.environments, environment(self._group.size)
        if environments and (environments[-1] == current or self.is_finished()):
            return
        changes = differences(environments[-1] | {"ranks": self._group.size}, current) if environments else []
        if changes:
            self._log.say(f"resumes in another environment: {'; '.join(changes)}. The last bits may differ")
        environments.append(current)

    def _order(self) -> EpochOrder:
        rows = self._dataset.splits["train"].shard_rows
        return EpochOrder(rows, self._options.batch_size, self._seed, self._state.epoch, self._sample)

    def _num_steps(self) -> int:
        """Steps of a training that patience does not end."""
        steps = self._order().num_steps * self._options.max_epochs
        return min(steps, self._options.max_steps or steps)

    def _learning_rate(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(self._options, self._state.total_steps, self._num_steps())

    def is_finished(self) -> bool:
        """Whether patience or the limits have ended the training."""
        return self._state.step == 0 and num_epochs(self._state.epochs, self._options) is not None

    def _run_epoch(self) -> None:
        meter = self.train_epoch()
        sums, times = meter.so_far(), meter.times()
        if not sums.total[0]:
            raise self._failure(
                f"{self._log.stage}: all of its training examples weigh 0, so it learns nothing. Change "
                "dataset.weights or, for a teacher with a sample, teachers.sample."
            )
        self._log.scalars(times, self._state.total_steps)
        self._log_entropy()
        begin = time.perf_counter()
        with self._group.watch.doing("evaluating"):
            metrics = self._evaluation(self.model())
        self._state.seconds += sums.seconds + time.perf_counter() - begin
        self._conclude_epoch(sums, metrics)

    def train_epoch(self) -> Meter:
        """The steps of the epoch that are still to do; the epoch's whole curve."""
        order, state = self._order(), self._state
        meter = Meter(self._group, state.so_far, self._options.log_steps, self._device)
        self._inner.train()
        trained: list[MicroBatch] = []
        for micro_batches in self._batches(order):
            trained = micro_batches
            num_examples = sum(inputs.num_states for inputs, _ in micro_batches)
            loss = self._stepper.train(micro_batches, state.total_steps, self._learning_rate(), self._requests)
            meter.add(loss, num_examples)
            # Every rank reads the same sums, so that all of them write a checkpoint, or stop, after the same step.
            agreed = self._requests.agreed()
            state.step += 1
            state.total_steps += 1
            if meter.is_full:
                self._log_point(meter)
            self._log.advance(f"epoch {order.epoch + 1}  {meter.note}", num_examples)
            self._act(agreed, order, meter)
        self._log_point(meter)
        self._trained_last = trained
        return meter

    def _log_entropy(self) -> None:
        """Log the entropy of the soft labels of some examples of this rank's last step.

        On a slice of the catalog it is left out, because it would need a collective with the other ranks.
        """
        is_sliced = self._engine.layout.catalog.size > 1
        if self._labels is None or not self._log.is_written or is_sliced or not self._trained_last:
            return
        micro_batch, *_ = self._trained_last
        weights = micro_batch.inputs.weights[: len(micro_batch.inputs.examples)][:MOST_LOGGED]
        fields = {name: field[:MOST_LOGGED] for name, field in micro_batch.fields.items()}
        labels = self._labels.labels(fields, self._device)
        temperature = 1.0 if isinstance(self._inner.loss_function, RobustLoss) else self._options.temperature
        entropy = label_entropy(labels, temperature).cpu()[weights.cpu() > 0]
        if len(entropy):
            self._log.histogram("labels/entropy_nats", entropy, self._state.total_steps)

    def _log_point(self, meter: Meter) -> None:
        """Write a point of the curve; a training whose loss is not finite ends here."""
        self._log.scalars(meter.point(), self._state.total_steps)
        if not meter.is_finite:
            raise self._diverged("the loss is")

    def _batches(self, order: EpochOrder) -> Iterator[list[MicroBatch]]:
        """The micro-batches of the epoch's steps, from the state's step on, read ahead."""
        state, watch = self._state, self._group.watch
        last = state.step + self._num_steps() - state.total_steps
        steps = range(state.step, min(order.num_steps, last))
        if not steps:
            return
        stream = self._dataset.stream(
            "train",
            batch_size=order.batch_size,
            epoch=order.epoch,
            seed=order.seed,
            sample=order.sample,
            start=steps.start,
            rank=self._group.rank,
            world_size=self._group.size,
        )
        most_rows = order.most_rows(self._group.rank, self._group.size)

        def prepare(numbered: tuple[int, dict[str, Any]]) -> list[MicroBatch]:
            step, element = numbered
            return self._stepper.prepare(to_batch(element), step, most_rows)

        reader = cast(Generator[Any, None, None], iter(Prefetcher(enumerate(stream, state.total_steps), prepare)))
        with closing(reader) as ahead:
            for _ in steps:
                watch.at(self._log.stage, state.total_steps + 1)
                with watch.data_wait():
                    micro_batches = next(ahead)
                yield micro_batches

    def _restore(self, checkpoints: Checkpoints) -> None:
        """Go on from the newest checkpoint, whose files are closed again when this returns: they will be removed."""
        restored = checkpoints.restore()
        if checkpoints.set_aside:
            names = ", ".join(checkpoints.set_aside)
            self._log.say(f"damaged checkpoints were renamed to damaged-…: {names}; resuming from the one before them")
        if restored:
            self._state, saved = restored
            self._engine.restore(saved)
            for name, piece in self._best.items():
                saved.copy("best", name, piece.numbers, piece.first)
            self._log.say(f"continues at epoch {self._state.epoch + 1}, step {self._state.step + 1}")

    def _act(self, agreed: Agreed, order: EpochOrder, meter: Meter) -> None:
        """Write a checkpoint within the epoch where one is due, and stop where a rank was asked to."""
        state, every = self._state, self._options.checkpoint_steps
        if agreed.has_failed:
            self._checkpoints.wait()
        is_due = agreed.save or (every is not None and state.total_steps % every == 0)
        if agreed.signal or (is_due and state.step < order.num_steps):
            state.so_far = meter.so_far()
            if not state.so_far.is_finite:
                raise self._diverged("the loss is")
            self._save()
        if agreed.signal:
            self._checkpoints.wait()
            self._log.say(
                f"stopped by {agreed.signal.name} after step {state.step} of epoch {state.epoch + 1}; the checkpoint "
                "is written. Give the same command again to resume."
            )
            raise Stopped(agreed.signal)

    def _save(self) -> None:
        """Begin to write a checkpoint, unless a weight is not finite: then the one before it stays."""
        snapshot = self._engine.snapshot()
        weights = snapshot["model"].values()
        num_wrong = sum(num_not_finite(piece.numbers) for piece in weights)
        num_pieces = sum(map(len, snapshot.values()))
        # All ranks learn which of them have pieces, and raise together if one of them has a weight that is not finite.
        of_ranks = self._group.all_gather(torch.tensor([num_wrong, num_pieces], device=self._device)).tolist()
        if any(wrong for wrong, _ in of_ranks):
            raise self._diverged("weights are")
        writers = [rank for rank, (_, num) in enumerate(of_ranks) if num]
        self._checkpoints.save(self._state, snapshot | {"best": dict(self._best)}, writers)
        self._requests.saved()

    def _diverged(self, what: str) -> UserError:
        """The error that all ranks of the group raise and one prints; the checkpoint in flight is written first."""
        self._checkpoints.wait()
        options, stage = self._options, self._log.stage
        clip_norm = "null" if options.clip_norm is None else f"{options.clip_norm:g}"
        return self._failure(
            f"{stage}: {what} NaN or infinite at step {self._state.total_steps} (looked at every {options.log_steps} "
            f"steps): the training diverged. Lower training.learning_rate ({options.learning_rate:g} now) or set "
            f"training.clip_norm ({clip_norm} now), and start again with --restart {stage.partition('/')[0]}. Earlier "
            "checkpoints are kept."
        )

    def _failure(self, text: str) -> UserError:
        """An error of all ranks of the group at once."""
        group = self._group
        if group.is_leader and 0 not in group.ranks:
            return UserError(text)
        return FailedTrainingError(text, is_of_all=group.has_all_ranks)

    def _conclude_epoch(self, sums: EpochSums, metrics: dict[str, float]) -> None:
        state, epoch = self._state, self._state.epoch
        weight, *losses, num_examples = sums.total
        averages = {name: loss / weight for name, loss in zip(LOSS_PARTS, losses, strict=True)}
        if is_better(metrics, state.best):
            state.best, state.best_epoch = metrics[SELECTION_METRIC], epoch
            self._best = self._engine.copy_weights(MODEL)
        rates = {"examples_per_second": num_examples / sums.seconds, "data_wait_share": sums.data_wait / sums.seconds}
        where = {"epoch": epoch, "step": state.total_steps, "num_examples": round(num_examples)}
        where["num_ranks"] = self._group.size
        state.epochs.append({**where, **averages, **rates, "valid": metrics})
        state.epoch, state.step, state.so_far = epoch + 1, 0, EpochSums()
        self._log_epoch(averages | rates, metrics)

    def _log_epoch(self, values: dict[str, float], metrics: dict[str, float]) -> None:
        state = self._state
        self._log.scalars(
            {f"epoch/{name}": value for name, value in values.items()}
            | {f"valid/{name}": value for name, value in metrics.items()}
            | {"memory/peak_mib": peak_memory_mib(), "optimizer/learning_rate": self._learning_rate()},
            state.total_steps,
        )
        self._log.say(
            f"epoch {state.epoch}/{self._options.max_epochs}  loss {values['loss']:.4f}  valid {SELECTION_METRIC} "
            f"{metrics[SELECTION_METRIC]:.4f} (best {state.best:.4f} at {state.best_epoch + 1})  "
            f"{values['examples_per_second']:,.0f} examples/s  waited {values['data_wait_share']:.0%}"
        )
