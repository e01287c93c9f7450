"""The interface of an engine for the training loop, and the clipping of gradients that engines share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from csrec_dist.distributed.catalog import catalog_rows
from csrec_dist.distributed.groups import ALONE, Group
from csrec_dist.distributed.layout import Layout


def clip_gradients(*parts: tuple[Sequence[Tensor], Group], limit: float) -> None:
    """Scale gradients in place to the norm `limit` where that of all together is larger.

    Each part are gradients, or this rank's shares of them, that the ranks of a group hold together; with `ALONE` this
    rank has them whole. Every rank of the groups calls this.
    """
    gradients = [gradient for part, _ in parts for gradient in part]
    device = gradients[0].device if gradients else torch.device("cpu")
    # What every rank holds counts once; what is cut over the ranks is summed. The factor stays on the device.
    squares = [group.all_reduce_sum(_squares(part, device)) for part, group in parts]
    factor = (limit / (torch.stack(squares).sum().sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)


def _squares(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    total = torch.zeros((), device=device)
    for tensor in tensors:
        total += tensor.float().square().sum()
    return total


MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's states of a parameter that have its shape; the other is its number of steps."""
FEWEST_CUT = 1 << 16
"""Numbers of a tensor that several ranks hold, from which each of them copies a part of it; the first rank copies a
smaller one."""


@dataclass(frozen=True)
class Held:
    """What a rank holds of a tensor of `shape`: its numbers from `first` on, in C order, as do the ranks of `replicas`.

    `numbers` [n] are those at work, not a copy.
    """

    numbers: Tensor
    first: int
    shape: tuple[int, ...]
    replicas: Group = ALONE

    @classmethod
    def whole(cls, tensor: Tensor, replicas: Group) -> Self:
        """All of a tensor, which the ranks of `replicas` hold alike."""
        return cls(tensor.detach().view(-1), 0, tuple(tensor.shape), replicas)

    @classmethod
    def rows(cls, tensor: Tensor, first: int, num_rows: int, replicas: Group = ALONE) -> Self:
        """Rows of a tensor that has `num_rows`, from row `first` on."""
        rest = tuple(tensor.shape[1:])
        return cls(tensor.detach().view(-1), first * math.prod(rest), (num_rows, *rest), replicas)

    def runs(self) -> list[slice]:
        """Which of the numbers each replica copies, in the order of their ranks."""
        num, size = len(self.numbers), self.replicas.size
        if num < FEWEST_CUT:
            return [slice(0, num), *[slice(num, num)] * (size - 1)]
        return [slice(run.start, run.stop) for run in catalog_rows(num, size)]

    def copied(self) -> "Piece":
        """This rank's part of a copy, in the host's memory, which later steps do not change."""
        run = self.runs()[self.replicas.rank]
        numbers = self.numbers[run].to("cpu", copy=True)
        return Piece(numbers, self.first + run.start, self.shape)

    def put_back(self, piece: "Piece | None") -> None:
        """Set the numbers, on all replicas, to what `copied` gave each of them (None: nothing)."""
        for rank, run in enumerate(self.runs()):
            if run.start < run.stop:
                numbers = self.numbers[run]
                if rank == self.replicas.rank:
                    assert piece is not None
                    numbers.copy_(piece.numbers)
                self.replicas.broadcast(numbers, rank)


class Piece(NamedTuple):
    """A copy of some consecutive numbers [n] of a tensor of `shape`, the first of them at `first` in C order."""

    numbers: Tensor
    first: int
    shape: tuple[int, ...]


Pieces = dict[str, Piece]
"""By name. Each number of a tensor is in one rank's pieces, of those that train a model."""
Snapshot = dict[str, Pieces]
"""What a rank writes of a checkpoint, by part ("model", "optimizer", "best"). Optimizer states are called
<parameter>.<state> under every engine, so that a checkpoint of one can be read by another."""


class StateReader(Protocol):
    """A checkpoint that is open for reading."""

    def names(self, part: str) -> Collection[str]:
        """What a part holds."""

    def copy(self, part: str, name: str, numbers: Tensor, first: int = 0) -> None:
        """Fill `numbers` [n] with those of a tensor from `first` on, in C order; KeyError where it is not whole."""


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
    def forward(self, *inputs: Any, is_last: bool = True) -> Any:
        """The module's output for this rank's share of a micro-batch; `is_last` of the step's micro-batches."""

    @abstractmethod
    def backward(self, loss: Tensor, *, is_last: bool = True) -> None:
        """Add the gradients of a micro-batch's loss; `is_last` as in its forward pass."""

    @abstractmethod
    def step(self, learning_rate: float) -> None:
        """Average over the ranks what is not averaged yet, clip, update the parameters, forget the gradients.

        `learning_rate` is Adam's learning rate, the same on all ranks.
        """

    @abstractmethod
    def readable(self) -> nn.Module:
        """The module for evaluation and export, its item tables whole or as this rank's slices of their `catalog`.

        It shows the parameters of this moment, until the next step. It may be `module` itself or share its memory.
        """

    @abstractmethod
    def held_weights(self) -> dict[str, Held]:
        """What this rank holds of the module's parameters and buffers, by name, equal on all ranks."""

    @abstractmethod
    def held_moments(self) -> dict[str, Held]:
        """What it holds of Adam's states; none before the first step."""

    @abstractmethod
    def make_moments(self, parameters: Collection[str]) -> None:
        """Make Adam's states of these parameters, for `held_moments`; their values do not matter."""

    def weights_changed(self) -> None:
        """Called after `held_weights` were written to; for engines that hold them twice."""
        return

    def copy_weights(self, prefix: str = "") -> Pieces:
        """Copies of the weights whose names begin with `prefix`, each number on one rank, in the host's memory."""
        held = self.held_weights()
        return _not_empty({name: each.copied() for name, each in held.items() if name.startswith(prefix)})

    def put_back(self, pieces: Pieces, prefix: str = "") -> None:
        """Go back to the weights that `copy_weights(prefix)` gave; training does not go on from them."""
        for name, held in self.held_weights().items():
            if name.startswith(prefix):
                held.put_back(pieces.get(name))
        self.weights_changed()

    def snapshot(self) -> Snapshot:
        """This rank's pieces of the parts "model" and "optimizer"."""
        moments = {name: held.copied() for name, held in self.held_moments().items()}
        return {"model": self.copy_weights(), "optimizer": _not_empty(moments)}

    def restore(self, saved: StateReader) -> None:
        """Go on from the parts "model" and "optimizer" of a checkpoint, of any engine and any number of ranks.

        Each rank reads what it holds.
        """
        for name, held in self.held_weights().items():
            saved.copy("model", name, held.numbers, held.first)
        self.weights_changed()
        self.module.load_state_dict({}, strict=False)  # tells modules that their tensors have other values now
        names = set(saved.names("optimizer"))
        if names:
            self.make_moments({name.rpartition(".")[0] for name in names})
        for name, held in self.held_moments().items():
            if name in names:  # an engine may have states of parameters that have had no gradient yet
                saved.copy("optimizer", name, held.numbers, held.first)

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


def _not_empty(pieces: Pieces) -> Pieces:
    return {name: piece for name, piece in pieces.items() if len(piece.numbers)}
