"""Signs that a training has gone wrong although its numbers are finite, by rules with stated limits.

The limits are far from the figures of any training that learnt something; see docs/reliability.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

LEAST_SPREAD = 1e-4
"""Least standard deviation of an example's logits over the items, in nats: below it rounding errors order the list."""
LEAST_PERSONAL = 1e-3
"""Least share of that spread that depends on the history."""
LARGEST_LOGIT = 1e4
LEAST_ENTROPY = 1e-3
"""Least entropy of labels at the training's temperature, in nats: below it they say no more than one-hot labels."""
SAME = 1e-5
"""Members whose logits differ by no more than this share of their spread are the same."""
ERRORS_FROM_CHANCE = 3.0
"""Standard errors that chance explains: of a metric above that of random lists, of a student's below its teachers'."""
LEAST_OF_TEACHERS = 0.75
"""Least share of the teachers' NDCG that a student must reach."""


@dataclass(frozen=True)
class Sign:
    """What is wrong with which members; `stops`: labels from them would be worthless."""

    text: str
    stops: bool = False


@torch.no_grad()
def signs(logits: Mapping[str, Tensor], temperature: float) -> list[Sign]:
    """What is wrong with members by their finite logits [N, C], of the same examples and some of the items."""
    centred = {name: part.double() - part.double().mean(1, keepdim=True) for name, part in logits.items()}
    spread = {name: float(part.std(1, correction=0).median()) for name, part in centred.items()}
    problems: list[Sign] = []
    for name, part in logits.items():
        largest, entropy = float(part.abs().max()), float(_entropy(part.double() / temperature).median())
        personal = float(centred[name].std(0, correction=0).mean())
        if spread[name] < LEAST_SPREAD:
            text = f"{name} scores all items alike (its logits spread by {spread[name]:.2g} nats): it collapsed"
            problems.append(Sign(text, stops=True))
            continue
        if len(part) > 1 and personal < LEAST_PERSONAL * spread[name]:
            problems.append(Sign(f"{name} gives every history the same list: it learnt popularity at most"))
        if largest > LARGEST_LOGIT:
            problems.append(Sign(f"{name} has logits up to {largest:.3g}: its weights have grown without limit"))
        elif entropy < LEAST_ENTROPY:
            text = f"{name} is sure of one item (entropy {entropy:.2g} nats at T = {temperature:g})"
            problems.append(Sign(f"{text}: its labels say no more than one-hot ones"))
    for one, other in combinations(logits, 2):
        if float((centred[one] - centred[other]).abs().max()) <= SAME * max(spread[one], LEAST_SPREAD):
            problems.append(Sign(f"{one} and {other} give the same logits: two members that are one"))
    return problems


def at_chance(
    ndcg: float, num_items: int, num_rows: int, cut_off: int = 10, *, rose_to_the_end: int | None = None
) -> str | None:
    """A sentence about an NDCG that random lists reach as well; None where it is better.

    `rose_to_the_end` is the number of epochs that max_epochs allowed, where the last of them was the best.

    In a random list the target has each rank 1…V with equal probability: the mean is Σ g(k) / V over the ranks k up to
    the cut-off, with g(k) = 1 / log₂(k + 1), and the variance of a row is Σ g(k)² / V minus the square of the mean.
    """
    gains = [1 / math.log2(rank + 1) for rank in range(1, min(cut_off, num_items) + 1)]
    mean = sum(gains) / num_items
    error = math.sqrt(max(sum(gain * gain for gain in gains) / num_items - mean * mean, 0) / num_rows)
    if ndcg > mean + ERRORS_FROM_CHANCE * error:
        return None
    known = f"its best validation ndcg@{cut_off} is {ndcg:.4f}, and random lists reach {mean:.4f} ± {error:.4f}"
    if rose_to_the_end:
        return f"{known}: its last epoch was its best, where training.max_epochs ({rose_to_the_end}) ended it; raise it"
    return (
        f"{known}: it learnt nothing that ranks. Look at the order of the log (columns.timestamp) and at "
        "training.learning_rate"
    )


def behind_teachers(ndcg: float, of_teachers: Sequence[float], num_rows: int) -> str | None:
    """A sentence about a student's NDCG that is far below its teachers', each alone; None where it is not.

    A row's gain is between 0 and 1, so its variance is at most its mean: chance explains three standard errors, by
    that bound, of the difference of two means over the rows.
    """
    mean = sum(of_teachers) / len(of_teachers)
    error = math.sqrt((ndcg + mean) / num_rows)
    if ndcg >= LEAST_OF_TEACHERS * mean or mean - ndcg <= ERRORS_FROM_CHANCE * error:
        return None
    return (
        f"its best validation ndcg@10 is {ndcg:.4f}, and that of its teachers {mean:.4f}: it did not learn what they "
        "know. Look at training.learning_rate and training.warmup_steps"
    )


def _entropy(logits: Tensor) -> Tensor:
    """Of softmax(logits), in nats [N]."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)
