"""Signs that a training has gone wrong although its numbers are finite, by rules with stated limits.

The limits are far from what any training gave that learnt something; see docs/reliability.md.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

LEAST_SPREAD = 1e-4
"""Of the logits of an example over the items, in nats: below it a list is an order of rounding errors."""
LEAST_PERSONAL = 1e-3
"""Share of that spread that depends on the history."""
LARGEST_LOGIT = 1e4
LEAST_ENTROPY = 1e-3
"""Of labels at the temperature of the training, in nats: below it they say no more than one-hot labels."""
SAME = 1e-5
"""Difference of two members' logits, as a share of their spread."""
ERRORS_FROM_CHANCE = 3.0
"""Standard errors above the mean of random lists that a metric must reach."""


@dataclass(frozen=True)
class Sign:
    """What is wrong with which members; `stops`: labels made of them would be good for nothing."""

    text: str
    stops: bool = False


@torch.no_grad()
def signs(logits: Mapping[str, Tensor], temperature: float) -> list[Sign]:
    """What is wrong with members by their finite logits [N, C], of the same examples and some of the items."""
    centred = {name: part.double() - part.double().mean(1, keepdim=True) for name, part in logits.items()}
    spread = {name: float(part.std(1, correction=0).median()) for name, part in centred.items()}
    found: list[Sign] = []
    for name, part in logits.items():
        largest, entropy = float(part.abs().max()), float(_entropy(part.double() / temperature).median())
        personal = float(centred[name].std(0, correction=0).mean())
        if spread[name] < LEAST_SPREAD:
            text = f"{name} scores all items alike (its logits spread by {spread[name]:.2g} nats): it collapsed"
            found.append(Sign(text, stops=True))
            continue
        if len(part) > 1 and personal < LEAST_PERSONAL * spread[name]:
            found.append(Sign(f"{name} gives every history the same list: it learnt popularity at most"))
        if largest > LARGEST_LOGIT:
            found.append(Sign(f"{name} has logits up to {largest:.3g}: its weights have grown without limit"))
        elif entropy < LEAST_ENTROPY:
            is_sure = f"is sure of one item (entropy {entropy:.2g} nats at T = {temperature:g})"
            found.append(Sign(f"{name} {is_sure}: its labels say no more than one-hot ones"))
    for one, other in combinations(logits, 2):
        if float((centred[one] - centred[other]).abs().max()) <= SAME * max(spread[one], LEAST_SPREAD):
            found.append(Sign(f"{one} and {other} give the same logits: two members that are one"))
    return found


def at_chance(ndcg: float, num_items: int, num_rows: int, cut_off: int = 10) -> str | None:
    """What is said of an NDCG that random lists reach, too; None where it is better.

    The target has each place 1…V with the same chance: the mean is Σ g(k) / V over the places k up to the cut-off, with
    g(k) = 1 / log₂(k + 1), and the variance of a row Σ g(k)² / V less the mean's square.
    """
    gains = [1 / math.log2(place + 1) for place in range(1, min(cut_off, num_items) + 1)]
    mean = sum(gains) / num_items
    error = math.sqrt(max(sum(gain * gain for gain in gains) / num_items - mean * mean, 0) / num_rows)
    if ndcg > mean + ERRORS_FROM_CHANCE * error:
        return None
    return (
        f"its best validation ndcg@{cut_off} is {ndcg:.4f}, and random lists reach {mean:.4f} ± {error:.4f}: it learnt "
        "nothing that ranks. Look at the order of the log (columns.timestamp) and at training.learning_rate"
    )


def _entropy(logits: Tensor) -> Tensor:
    """Of softmax(logits), in nats [N]."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)
