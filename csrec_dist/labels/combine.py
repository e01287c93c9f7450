"""How members become labels: mean logits, weighted logits, or mean probabilities.

Letters: n examples, V items, m members of widths d_k, K = Σ d_k. States and tables of members stand side by side.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from csrec_dist.labels.options import Combine
from csrec_dist.losses.soft_labels import FactoredLabels, MixtureLabels


def combined_states(states: Tensor, widths: Sequence[int], combine: Combine, weights: Sequence[float] | None) -> Tensor:
    """What is kept of the members' states [n, K]: times 1/m or w_k, so that products are the labels' logits.

    For prob_mean the states as they are.
    """
    if combine == "logit_mean":
        return states / len(widths)
    if combine == "prob_mean":
        return states
    assert weights is not None
    factors = torch.tensor(weights, dtype=states.dtype).repeat_interleave(torch.tensor(widths))
    return states * factors.to(states.device)


def combined_bias(biases: Tensor, combine: Combine, weights: Sequence[float] | None) -> Tensor:
    """What is kept of the members' item biases [V, m] (float64; 0 where a member has none), as float32.

    [V], the labels' bias; for prob_mean [V, m], each member's own.
    """
    if combine == "prob_mean":
        return biases.float()
    if combine == "logit_mean":
        return (biases.sum(1) / biases.shape[1]).float()
    assert weights is not None
    return (biases * torch.tensor(weights, dtype=biases.dtype, device=biases.device)).sum(1).float()


def combined_labels(
    states: Tensor,
    item_weight: Tensor,
    item_bias: Tensor | None,
    widths: Sequence[int],
    combine: Combine,
    weights: Sequence[float] | None,
) -> FactoredLabels | MixtureLabels:
    """The labels of what `combined_states` and `combined_bias` gave, with the members' tables [V, K]."""
    if combine != "prob_mean":
        return FactoredLabels(states, item_weight, item_bias)
    biases = [None] * len(widths) if item_bias is None else item_bias.unbind(1)
    pieces = zip(states.split(list(widths), 1), item_weight.split(list(widths), 1), biases, strict=True)
    parts = tuple(FactoredLabels(state, weight, bias) for state, weight, bias in pieces)
    return MixtureLabels(parts, tuple(weights or [1 / len(widths)] * len(widths)))
