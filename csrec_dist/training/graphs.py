"""CUDA graphs of a training step's forward and backward pass: the host starts a step's kernels all at once.

A graph repeats the kernels it was captured with, on the same memory. So there is one for each shape of a step's inputs,
of which padding leaves a few; inputs are copied into buffers of its own, gradients come out in buffers that all share,
and whatever depends on the step (seeds, the global count) is read from device memory. The optimizer and what ranks tell
each other stay outside, where the watchdog sees it. Dropout reads the generator's seed when the graph is replayed: the
bits are those of the same step without a graph.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from csrec_dist.distributed.engines import DataParallel, Engine
from csrec_dist.losses import Loss, RobustLoss
from csrec_dist.losses.soft_labels import LabelReader, SoftLabels
from csrec_dist.models import TrainingInputs
from csrec_dist.training.options import LoopOptions
from csrec_dist.training.step import MicroBatch, TrainStep, seed_dropout

MEASURED_RANKS = frozenset({1})
"""Numbers of ranks with which a file of benchmarks/results shows what graphs gain: `auto` uses them with no others."""

WARM_UPS = 3
"""Steps on the capturing stream before a capture, in which libraries choose and set up what a capture may not."""


def graphs_of(
    engine: Engine, options: LoopOptions, labels: LabelReader | None, say: Callable[[str], None]
) -> "StepGraphs | None":
    """The graphs of a training, or None if its steps run without; `say` is called with a reason that may surprise."""
    choice, num_ranks = options.cuda_graph, engine.layout.group.size
    is_meant = choice == "on" or (choice == "auto" and engine.device.type == "cuda" and num_ranks in MEASURED_RANKS)
    if not is_meant:
        return None
    if reason := obstacle(engine, options):
        say(f"training.cuda_graph is {choice}, but steps run without CUDA graphs: {reason}.")
        return None
    return StepGraphs(cast(DataParallel, engine), labels)


def obstacle(engine: Engine, options: LoopOptions) -> str | None:
    """Why the steps of a training cannot be captured, in a few words; None where they can."""
    step = cast(TrainStep, engine.module)
    if engine.device.type != "cuda":
        return "it does not run on a GPU"
    if not isinstance(engine, DataParallel):
        return f"the engine {engine.name} exchanges gradients or parameters within each pass"
    if engine.layout.catalog.size > 1:
        return "ranks that hold slices of the catalog exchange vectors in each pass"
    if options.accumulate > 1:
        return f"training.accumulate is {options.accumulate}, and a graph writes over the gradients of the one before"
    if engine.layout.group.size > 1 and step.model.has_views:
        return "the contrastive loss looks at the windows of all ranks in the forward pass"
    loss = step.loss_function
    if isinstance(loss, RobustLoss) and loss.noise is not None and loss.noise.maximum == "exact":
        return "the exact maxima of the noise matrix are looked for every few steps (teachers.noise_maximum)"
    return None


@dataclass
class _Captured:
    """A graph, the buffers it reads its inputs from, and the losses and gradients that it leaves."""

    graph: torch.cuda.CUDAGraph
    buffers: Mapping[str, Tensor]
    losses: Tensor
    gradients: list[Tensor | None]


class StepGraphs:
    """Captures the step of an engine's module for each shape of its inputs, and replays it.

    It is captured in the thread's own mode: another thread, which reads batches, may pin memory meanwhile.
    """

    def __init__(self, engine: DataParallel, labels: LabelReader | None) -> None:
        self._engine, self._labels, self._device = engine, labels, engine.device
        self._step = cast(TrainStep, engine.module)
        self._parameters = [parameter for parameter in self._step.parameters() if parameter.requires_grad]
        self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._factor = torch.ones((), device=self._device)
        self._stream = torch.cuda.Stream(self._device)
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[tuple[tuple[str, torch.Size, torch.dtype], ...], _Captured] = {}

    @property
    def num_graphs(self) -> int:
        """The number of shapes captured so far."""
        return len(self._captured)

    def run(self, micro_batch: MicroBatch, factor: Tensor, seed: int) -> Loss:
        """The losses of a step; its gradients, of the loss times `factor` and averaged over ranks, are in place.

        `micro_batch` lies on the host, and dropout draws from `seed`.
        """
        sources = micro_batch.tensors()
        shape = tuple((name, tensor.shape, tensor.dtype) for name, tensor in sources.items())
        captured = self._captured.get(shape)
        if captured is None:
            captured = self._captured[shape] = self._capture(micro_batch)
        for name, tensor in sources.items():
            captured.buffers[name].copy_(tensor, non_blocking=True)
        self._factor.copy_(factor)
        seed_dropout(seed, self._device)
        captured.graph.replay()
        for parameter, gradient in zip(self._parameters, captured.gradients, strict=True):
            parameter.grad = gradient
        self._engine.average_gradients()
        return Loss(*captured.losses.clone().unbind())  # the next replay writes over them

    def _capture(self, micro_batch: MicroBatch) -> _Captured:
        buffers = {name: tensor.to(self._device) for name, tensor in micro_batch.tensors().items()}
        static = micro_batch.with_tensors(buffers)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                self._pass(static)
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            losses, gradients = self._pass(static)
        return _Captured(graph, buffers, losses, gradients)

    def _pass(self, micro_batch: MicroBatch) -> tuple[Tensor, list[Tensor | None]]:
        """The losses [4], and the gradients, copied to where they stay whichever graph comes next."""
        labels = self._labels.labels(micro_batch.fields, self._device) if self._labels else None
        loss, gradients = loss_and_gradients(self._step, micro_batch.inputs, labels, self._factor)
        copied = [
            None if new is None else buffer.copy_(new) for buffer, new in zip(self._gradients, gradients, strict=True)
        ]
        return torch.stack(list(loss)), copied


def loss_and_gradients(
    step: TrainStep, inputs: TrainingInputs, labels: SoftLabels | None, factor: Tensor
) -> tuple[Loss, list[Tensor | None]]:
    """The losses, and the gradients of the loss times `factor` for each trained parameter; None where it has no part.

    They are not accumulated in the parameters' `grad`: autograd's accumulation belongs to the stream where it was
    created, which is not the capturing one.
    """
    loss: Loss = step(inputs, labels)
    parameters = [parameter for parameter in step.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss.sum * factor, parameters, allow_unused=True)
    return Loss(*(part.detach() for part in loss)), list(gradients)
