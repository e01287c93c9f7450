"""What is exported of a model: its encoder, and its encoder with the best items; traced for any batch and length.

Shapes: B histories, L positions, S seen items, V items, n best items, D numbers of a query: the width d, or d + 1
where the item table has a bias.
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from csrec_dist.errors import UserError
from csrec_dist.models import ItemTable, SequentialModel
from csrec_dist.models.options import DreamRecConfig

MOST_SAMPLING_STEPS = 50
"""Of DreamRec: each is a copy of the denoiser in the graph, and 10 take 17 s to export to ONNX."""
NUM_ROWS, LENGTH, NUM_SEEN = 3, 7, 5
"""B, L and S of the tracing: different, and none of them 0 or 1, which a tracer takes for constants."""


class Program(nn.Module):
    """A model whose graph is exported: what it takes, and which axes of that may have any size, by their names."""

    def __init__(self, model: SequentialModel) -> None:
        super().__init__()
        self.model = model
        self.has_recurrence = any(isinstance(module, nn.RNNBase) for module in model.modules())

    def states(self, histories: Tensor) -> Tensor:
        """The model's states [B, d] of histories [B, L] (int64, right-padded with 0).

        Recurrent layers are traced for one number of steps, that of the longest history; padding changes nothing.
        """
        if self.has_recurrence:
            longest = self.model.max_length
            histories = F.pad(histories, (0, longest))[:, :longest]
        return self.model.encode_last(histories)

    def sample(self) -> tuple[Tensor, ...]:
        """Inputs to trace it with."""
        return (torch.ones(NUM_ROWS, min(LENGTH, self.model.max_length), dtype=torch.int64),)

    def axes(self) -> tuple[dict[int, Any], ...]:
        """Of each input, the axes whose sizes are free."""
        longest = self.model.max_length
        return ({0: Dim("batch")} | ({1: Dim("length", max=longest)} if longest > 1 else {}),)


class Encoder(Program):
    """Histories to queries, whose products with `item_vectors` are the scores."""

    def forward(self, histories: Tensor) -> Tensor:
        """Queries [B, D] of histories [B, L]."""
        states = self.states(histories)
        return states if self.model.item_table.bias is None else F.pad(states, (0, 1), value=1.0)


class TopItems(Program):
    """Histories to the exact best items of the whole catalog, without those that were seen."""

    def __init__(self, model: SequentialModel, top_n: int) -> None:
        super().__init__(model)
        self.top_n = top_n

    def forward(self, histories: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Items [B, n], best first, and their scores [B, n]; where nothing is left, item 0 and score −inf.

        `seen` [B, S] are items that are left out, 0 for none.
        """
        logits = self.model.item_table.logits(self.states(histories))
        scores, items = F.pad(logits, (1, 0), value=-torch.inf).scatter(1, seen, -torch.inf).topk(self.top_n, dim=1)
        return torch.where(scores == -torch.inf, 0, items), scores

    def sample(self) -> tuple[Tensor, ...]:
        """See `Program.sample`."""
        return (*super().sample(), torch.ones(NUM_ROWS, NUM_SEEN, dtype=torch.int64))

    def axes(self) -> tuple[dict[int, Any], ...]:
        """See `Program.axes`."""
        (histories,) = super().axes()
        return histories, {0: histories[0], 1: Dim("seen")}


def portable(model: SequentialModel) -> SequentialModel:
    """A copy of the model on the CPU to trace, sharing its weights; UserError where there is no such export of it."""
    config = model.config
    if isinstance(config, DreamRecConfig):
        steps = config.sampling_steps or config.num_steps
        if steps > MOST_SAMPLING_STEPS:
            raise UserError(
                f"This DreamRec samples in {steps} steps, and each would be a copy of its denoiser in the exported "
                f"graph; at most {MOST_SAMPLING_STEPS} are exported. Train one with model.sampling_steps: 10."
            )
    weights = {id(each): nn.Parameter(each.detach().cpu(), requires_grad=False) for each in model.parameters()}
    return copy.deepcopy(model, weights).cpu().eval()


def item_vectors(table: ItemTable, rows: slice = slice(None)) -> Tensor:
    """Vectors [n, D] of items: row i is that of item i + 1, with its bias as the last number if there is one."""
    weight = table.weight.detach()[rows].float()
    return weight if table.bias is None else torch.cat([weight, table.bias.detach()[rows].float().unsqueeze(1)], dim=1)


def traced(program: Program) -> ExportedProgram:
    """The program as torch.export sees it."""
    sample = program.sample()
    with torch.no_grad(), quiet():
        program(*sample)  # a tensor that a model computes once and caches must not be the tracer's
        return torch.export.export(program, sample, dynamic_shapes=program.axes())


@contextmanager
def quiet() -> Iterator[None]:
    """In the block torch's exporters do not warn about other packages and their own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
