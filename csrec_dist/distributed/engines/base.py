"""The interface of an engine for the training loop, and the clipping of gradients that engines share."""

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from csrec_dist.distributed.groups import Group
from csrec_dist.distributed.layout import Layout


def clip_gradients(whole: Sequence[Tensor], slices: Sequence[Tensor], group: Group, limit: float) -> None:
    """Scale gradients in place to the norm `limit` where that of all together is larger.

    Every rank holds those in `whole`; those in `slices` are its parts of tensors that the ranks of `group` hold
    together. Every rank of the group calls this.
    """
    gradients = [*whole, *slices]
    if not gradients:
        return
    device = gradients[0].device
    # What every rank holds counts once; what is cut over the ranks is summed. The factor stays on the device.
    norm = (_squares(whole, device) + group.all_reduce_sum(_squares(slices, device))).sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)


def _squares(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    total = torch.zeros((), device=device)
    for tensor in tensors:
        total += tensor.float().square().sum()
    return total


Tensors = dict[str, Tensor]


@dataclass
class Snapshot:
    """Copies in the host's memory of what a checkpoint keeps, by part ("model", "optimizer", "best") and name.

    `whole` is the same on all ranks that train the model; `slices` are the rows that this rank holds of item tables
    and of what belongs to them. Optimizer states are named <parameter>.<state>, whatever the engine: so a checkpoint
    of one engine can be read by another.
    """

    whole: dict[str, Tensors] = field(default_factory=dict)
    slices: dict[str, Tensors] = field(default_factory=dict)

    def add(self, part: str, tensors: Mapping[str, Tensor], sliced: Container[str]) -> None:
        """Add a part's tensors, those called as in `sliced` being this rank's rows."""
        self.whole[part] = {name: tensor for name, tensor in tensors.items() if name not in sliced}
        self.slices[part] = {name: tensor for name, tensor in tensors.items() if name in sliced}


class StateReader(Protocol):
    """A checkpoint that is open for reading."""

    def names(self, part: str) -> Iterable[str]:
        """What a part holds."""

    def read(self, part: str, name: str, rows: slice | None = None) -> Tensor:
        """A tensor on the CPU, or some of its rows."""


class Engine(ABC):
    """Trains a module on the ranks of a layout; every rank of `layout.group` calls the same methods in one order.

    The gradients it makes are means over the ranks: a loss whose share on each rank is multiplied by their number is
    summed. `module` is the plain module that was given, on the device; afterwards only the engine knows where its
    parameters live.
    """

    name: ClassVar[str]
    """As in `distributed.engine`; the run's record says it of the engine that really runs."""

    def __init__(self, module: nn.Module, layout: Layout, device: torch.device, clip_norm: float | None = None) -> None:
        """`clip_norm` is the largest norm of the whole gradient of a step."""
        self.module, self.layout, self.device, self.clip_norm = module, layout, device, clip_norm

    @abstractmethod
    def forward(self, *inputs: Any) -> Any:
        """The module's output for this rank's share."""

    @abstractmethod
    def backward(self, loss: Tensor, *, is_last: bool = True) -> None:
        """Add the gradients of a micro-batch's loss; `is_last` of the step's micro-batches."""

    @abstractmethod
    def step(self, learning_rate: float) -> None:
        """Average over the ranks what is not averaged yet, clip, update the parameters, forget the gradients.

        `learning_rate` is Adam's learning rate, the same on all ranks.
        """

    @abstractmethod
    def readable(self) -> nn.Module:
        """The module with whole parameters (on a slice of the catalog, with its slice), for evaluation and export.

        It shows the parameters of this moment, until the next step. It may be `module` itself or a copy of it.
        """

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """The parts "model" and "optimizer", copied."""

    @abstractmethod
    def restore(self, saved: StateReader) -> None:
        """Go on from the parts "model" and "optimizer" of a checkpoint, of any engine and any number of ranks."""

    def close(self) -> None:
        """Let go of the memory; nothing else is called afterwards."""
        return

    def record(self) -> dict[str, Any]:
        """What really runs, for the run's record: the engine with its settings, and the ranks.

        One rank alone needs no engine: it is "plain".
        """
        return {
            "engine": self.name if self.layout.group.size > 1 else "plain",
            "ranks": list(self.layout.group.ranks),
            "catalog_parallel": self.layout.catalog.size,
        }


def set_learning_rate(optimizer: Any, value: float) -> None:
    """Give all parameters of an optimizer, torch's or DeepSpeed's, this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = value


def copy_tensors(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copies in the host's memory, which later steps do not change."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
