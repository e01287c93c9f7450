"""The steps of a training: their data, prepared in the reading thread, and the update itself."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from csrec_dist.data.batches import Batch
from csrec_dist.data.weights import ExampleWeights
from csrec_dist.distributed.engines import Engine
from csrec_dist.losses import Loss
from csrec_dist.losses.soft_labels import LabelReader
from csrec_dist.process_state import matmul_precision, small_products
from csrec_dist.training.graphs import graphs_of
from csrec_dist.training.options import LoopOptions
from csrec_dist.training.step import MicroBatch, TrainStep, seed_dropout, step_seed
from csrec_dist.training.stopping import Requests

SHARED_STREAM = 65_536
"""The stream, above all ranks, of random numbers that do not depend on the rank."""


class Stepper:
    """Trains an engine's `TrainStep` batch by batch; every rank of its layout makes the same steps.

    On a GPU the host never waits within a step: it knows from the batch how many states there are, copies from pinned
    memory, and launches work of few different shapes, `window` items long.
    """

    def __init__(
        self,
        engine: Engine,
        options: LoopOptions,
        labels: LabelReader | None,
        seed: int,
        window: int,
        say: Callable[[str], None],
        example_weights: ExampleWeights | None = None,
    ) -> None:
        """`say` is called with what a user may want to know about how steps run. Examples without weights weigh 1."""
        self._engine, self._inner, self._group = engine, cast(TrainStep, engine.module), engine.layout.group
        self._options, self._labels, self._seed, self._window = options, labels, seed, window
        self._device, self._example_weights = engine.device, example_weights
        self.graphs = graphs_of(engine, options, labels, say)

    def prepare(self, batch: Batch, step: int, most_rows: int) -> list[MicroBatch]:
        """The micro-batches of a step from its batch, of at most `most_rows`; the reading thread calls this."""
        seed, num = step_seed(self._seed, step, SHARED_STREAM), self._options.accumulate
        rows = -(-most_rows // num)
        return [self._prepared(part, rows, seed) for part in batch.split(num)]

    def _prepared(self, batch: Batch, most_rows: int, seed: int) -> MicroBatch:
        is_padded = self._device.type == "cuda"
        batch = batch.padded_to(most_rows, self._window) if is_padded else batch
        inputs = self._inner.model.inputs(batch, seed, padded=is_padded)
        inputs = inputs if self._example_weights is None else inputs.weighted(self._example_weights)
        fields = self._labels.fields(inputs.examples) if self._labels else {}
        micro_batch = MicroBatch(inputs, fields)
        return micro_batch.pinned() if is_padded else micro_batch

    def train(self, micro_batches: list[MicroBatch], step: int, learning_rate: float, requests: Requests) -> Loss:
        """One update, divided by the global count, so that each state weighs the same on any number of ranks.

        Returns this rank's losses, without gradient. `requests` travel in the all-reduce of the count.
        """
        # oneDNN takes most of a millisecond to compile a product of a new size, MKL nothing.
        is_left_to_mkl = self._device.type == "cpu" and self._inner.model.has_many_shapes
        with small_products() if is_left_to_mkl else matmul_precision("highest"):
            losses = self._losses(micro_batches, step, requests)
        self._engine.step(learning_rate)
        return Loss(*map(sum_of, zip(*losses, strict=True)))

    def _losses(self, micro_batches: list[MicroBatch], step: int, requests: Requests) -> list[Loss]:
        """The losses of each micro-batch, by a CUDA graph or without; their gradients are in place."""
        seed = step_seed(self._seed, step, self._group.rank)
        # The all-reduce of the count runs during the forward pass; `_factor` waits for it before the backward pass.
        count = requests.begin_count(sum(inputs.num_states for inputs, _ in micro_batches))
        if self.graphs:
            (micro_batch,) = micro_batches
            factor = self._factor(count)
            with self._group.watch.computing("the forward and backward pass", self._group.ranks):
                return [self.graphs.run(micro_batch, factor, seed)]
        seed_dropout(seed, self._device)
        return self._computed(micro_batches, count)

    def _computed(self, micro_batches: list[MicroBatch], count: Callable[[], Tensor]) -> list[Loss]:
        """The losses of each micro-batch, computed without a CUDA graph."""
        watch, ranks = self._group.watch, self._group.ranks
        losses: list[Loss] = []
        for number, (inputs, fields) in enumerate(micro_batches):
            labels = self._labels.labels(fields, self._device) if self._labels else None
            is_last = number == len(micro_batches) - 1
            with watch.computing("the forward pass", ranks):
                loss: Loss = self._engine.forward(inputs.to(self._device), labels, is_last=is_last)
            if not losses:
                factor = self._factor(count)
            with watch.computing("the backward pass", ranks):
                self._engine.backward(loss.sum * factor, is_last=is_last)
            losses.append(Loss(*(part.detach() for part in loss)))
        return losses

    def _factor(self, count: Callable[[], Tensor]) -> Tensor:
        """The factor of a summed loss for engines that average gradients over ranks: ranks / global count."""
        return self._group.size / count().clamp(min=1)


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of scalars."""
    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors)).sum()
