"""How often a rank holds the numbers of a model that it trains, by engine: the arithmetic of docs/clusters.md.

All are largest numbers of copies, of a whole tensor. Activations, and the work memory of tiles, come on top and do not
grow with the table.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

WIDE_LAYER = 1 << 20
"""Parameters from which engine fsdp gathers an encoder's layer by itself; small ones are gathered faster together."""
LAYERS_AT_ONCE = 2
"""Of those: the one that computes, and the next."""


class Copies(NamedTuple):
    """On a device between the steps and besides within one; in the host's memory with a checkpoint being written."""

    between: float
    within: float
    host: float


def copies(engine: str, num_ranks: int, slices: int = 1) -> Copies:
    """Of a tensor in so many slices of the catalog, or of one that is in none, where `num_ranks` train the model.

    `engine` is ddp, fsdp, or zero1 to zero3. The host's four copies are the best weights, and what a checkpoint has of
    the weights and of Adam's two moments: each number is on one rank.
    """
    host = 4 / num_ranks
    if num_ranks == 1:
        return Copies(3, 2, host)
    if slices > 1:
        return Copies(3 / slices, 2 / slices, host)
    return {
        "ddp": Copies(3, 3, host),
        "fsdp": Copies(3 / num_ranks, 3, host),
        "zero1": Copies(1 + 3 / num_ranks, 2, host),
        "zero2": Copies(1 + 3 / num_ranks, 2, host),
        "zero3": Copies(4 / num_ranks, 4, host),
    }[engine]


class RankBytes(NamedTuple):
    """What a rank holds at most, on its device and in its host's memory."""

    device: int
    host: int


@dataclass(frozen=True)
class ModelBytes:
    """Of a model's parameters: of the item table, of the wide layers and the largest of them, and of all else."""

    table: int
    layers: int
    largest_layer: int
    rest: int

    def of_rank(self, engine: str, num_ranks: int, slices: int) -> RankBytes:
        """Of one of the ranks that train the model, without activations."""
        table, rest = copies(engine, num_ranks, slices), copies(engine, num_ranks)
        at_once = min(self.layers, LAYERS_AT_ONCE * self.largest_layer) if engine == "fsdp" else self.layers
        whole = self.layers + self.rest
        device = (
            (table.between + table.within) * self.table + rest.between * whole + rest.within * (self.rest + at_once)
        )
        return RankBytes(round(device), round(table.host * self.table + rest.host * whole))


def wide_layers(module: nn.Module) -> list[nn.Module]:
    """The layers of a module's stacks that are wide enough to be gathered by themselves."""
    stacks = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    layers = [layer for stack in stacks for layer in stack]
    return [layer for layer in layers if sum(each.numel() for each in layer.parameters()) >= WIDE_LAYER]
