"""How members become labels, live or from a cache: by mean logits, weighted logits, or mean probabilities.

Letters: n examples, V items, m members of widths d_k, K = Σ d_k. States and tables of members stand side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csrec_dist.data.batches import Batch
from csrec_dist.labels.options import Combine
from csrec_dist.losses.soft_labels import FactoredLabels, MixtureLabels
from csrec_dist.models import ItemTable, SequentialModel, picked


@dataclass(frozen=True)
class Combination:
    """The members' widths [m] in member order, how they are combined, and their weights if they have any."""

    widths: tuple[int, ...]
    combine: Combine = "logit_mean"
    weights: tuple[float, ...] | None = None

    def states(self, states: Tensor) -> Tensor:
        """What is stored of the members' states [n, K]: times 1/m or w_k, so that products are the labels' logits.

        For prob_mean the states as they are: the mean is taken after the softmax.
        """
        if self.combine == "logit_mean":
            return states / len(self.widths)
        if self.combine == "prob_mean":
            return states
        assert self.weights is not None
        factors = torch.tensor(self.weights, dtype=states.dtype).repeat_interleave(torch.tensor(self.widths))
        return states * factors.to(states.device)

    def bias(self, biases: Tensor) -> Tensor:
        """What is stored of the members' item biases [V, m] (float64; 0 where a member has none), as float32.

        [V], the labels' bias; for prob_mean [V, m], each member's.
        """
        if self.combine == "prob_mean":
            return biases.float()
        if self.combine == "logit_mean":
            return (biases.sum(1) / biases.shape[1]).float()
        assert self.weights is not None
        return (biases * torch.tensor(self.weights, dtype=biases.dtype, device=biases.device)).sum(1).float()

    def labels(self, states: Tensor, item_weight: Tensor, item_bias: Tensor | None) -> FactoredLabels | MixtureLabels:
        """The labels of what `states` and `bias` gave, with the members' tables [V, K]."""
        if self.combine != "prob_mean":
            return FactoredLabels(states, item_weight, item_bias)
        biases = [None] * len(self.widths) if item_bias is None else item_bias.unbind(1)
        pieces = zip(states.split(self.widths, 1), item_weight.split(self.widths, 1), biases, strict=True)
        parts = tuple(FactoredLabels(state, weight, bias) for state, weight, bias in pieces)
        return MixtureLabels(parts, tuple(self.weights or [1 / len(self.widths)] * len(self.widths)))


@torch.no_grad()
def live_labels(
    models: Sequence[SequentialModel],
    batch: Batch,
    combine: Combine = "logit_mean",
    weights: Sequence[float] | None = None,
) -> FactoredLabels | MixtureLabels:
    """The labels of the batch's examples from live members, in member order; puts the models into eval mode.

    They equal what the cache of these members holds.
    """
    tables = [model.item_table for model in models]
    states = member_states([model.eval() for model in models], batch)
    widths = tuple(part.shape[1] for part in states)
    combination = Combination(widths, combine, None if weights is None else tuple(weights))
    has_bias = any(table.bias is not None for table in tables)
    return combination.labels(
        combination.states(torch.cat(states, dim=1)),
        torch.cat([table.weight.detach() for table in tables], dim=1),
        combination.bias(item_biases(tables)) if has_bias else None,
    )


@torch.no_grad()
def member_states(models: Sequence[SequentialModel], batch: Batch) -> list[Tensor]:
    """Each model's states [N, d] of the batch's examples, in the order of `batch.example_ids`."""
    return picked(batch.targets > 0, *(model.encode(batch.histories) for model in models))


def item_biases(tables: Sequence[ItemTable], rows: slice = slice(None)) -> Tensor:
    """The tables' biases side by side [V, tables] in float64, 0 where a table has none; of some rows."""
    biases = [
        table.weight.new_zeros(len(table.weight[rows])) if table.bias is None else table.bias[rows] for table in tables
    ]
    return torch.stack(biases, dim=1).detach().double()
