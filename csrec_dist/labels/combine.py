"""How members become labels: mean logits, weighted logits, or mean probabilities.

Letters: n examples, V items, m members of widths d_k, K = Σ d_k. States and tables of members stand side by side.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from csrec_dist.losses.soft_labels import FactoredLabels, MixtureLabels

Combine = Literal["logit_mean", "weighted", "prob_mean"]
"""softmax(Σ e_k / (m T)), softmax(Σ w_k e_k / T), or Σ w_k softmax(e_k / T) with w_k = 1/m unless given."""

COMBINES: tuple[Combine, ...] = get_args(Combine)
WEIGHT_TOLERANCE = 1e-6


def combining_problem(
    combine: Combine, weights: Sequence[float] | None, num_members: int, form: str = "factored"
) -> str | None:
    """Why members cannot be combined like this, in a sentence for the user; None when they can."""
    if combine == "prob_mean" and form != "factored":
        return (
            f"combine prob_mean does not fit form {form}: a mean of probabilities depends on the temperature and has "
            f"no logits, which {form} labels are. Use form factored, or combine logit_mean or weighted."
        )
    if combine == "logit_mean" and weights is not None:
        return "combine logit_mean takes no weights; use combine weighted, or leave the weights out."
    if combine == "weighted" and weights is None:
        return f"combine weighted needs weights, one for each of the {num_members} members, that sum to 1."
    if weights is None:
        return None
    sound = len(weights) == num_members and all(math.isfinite(w) and w >= 0 for w in weights)
    if sound and abs(sum(weights) - 1) <= WEIGHT_TOLERANCE:
        return None
    return (
        f"weights {list(weights)} do not fit {num_members} members: give one for each, none below 0, that sum to 1 "
        f"(to {WEIGHT_TOLERANCE:g})."
    )


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
