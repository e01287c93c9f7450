"""Weights of the members, fitted on validation examples: a convex problem with one number for each member."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from csrec_dist.data.batches import question, to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.labels.combine import item_biases
from csrec_dist.labels.labeller import BATCH_ROWS
from csrec_dist.losses import cross_entropy
from csrec_dist.models import ItemTable, SequentialModel

MOST_EXAMPLES = 20_000
"""Validation examples that are enough for a handful of weights."""
DECIMALS = 6


@dataclass(frozen=True)
class FittedWeights:
    """Weights on the simplex, and the mean −log softmax(Σ w_k e_k)_y with equal weights before and with them after."""

    weights: tuple[float, ...]
    before: float
    after: float


def fit_weights(states: Sequence[Tensor], tables: Sequence[ItemTable], targets: Tensor) -> FittedWeights:
    """The weights that minimise the mean −log softmax(Σ w_k e_k)_y over the simplex, T being 1.

    The function is convex in w: a log-sum-exp of linear functions minus a linear one. Value and gradient are computed
    tile by tile in float64. The weights have 6 decimals and sum to 1 (to rounding); they are equal where no better ones
    were found.

    Args:
        states: [N, d_k] of each member, for the same N ≥ 1 examples; `tables`: the members'.
        targets: [N] in 1…V.
    """
    from scipy.optimize import minimize

    loss = _MixedLoss(states, tables, targets)
    equal = np.full(len(tables), 1 / len(tables))
    before = loss(equal)[0]
    minimum = minimize(
        loss,
        equal,
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * len(tables),  # with the constraint: the simplex
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-12, "maxiter": 200},
    )
    positive = np.clip(minimum.x, 0, None)
    weights = np.round(positive / positive.sum(), DECIMALS)
    weights[weights.argmax()] += 1 - weights.sum()  # the largest absorbs the rounding
    weights = np.round(weights, DECIMALS)
    after = loss(weights)[0]
    if not after < before:
        weights, after = equal, before
    return FittedWeights(tuple(weights.tolist()), before, after)


@torch.no_grad()
def validation_states(
    models: Sequence[SequentialModel], dataset: Dataset, device: torch.device, most: int = MOST_EXAMPLES
) -> tuple[list[Tensor], Tensor]:
    """States [N, d_k] of each member, and targets [N], of at most `most` validation examples from all shards.

    Puts the models into eval mode on `device`. The result does not depend on the number of ranks.
    """
    models = [model.to(device).eval() for model in models]
    states: list[list[Tensor]] = [[] for _ in models]
    targets = []
    num_of_shard = -(-most // dataset.num_shards)
    for shard in range(dataset.num_shards):
        num_left = num_of_shard
        for batch in map(to_batch, dataset.stream("valid", batch_size=BATCH_ROWS, shards=[shard])):
            histories, of_batch = question(batch.to(device))
            for parts, model in zip(states, models, strict=True):
                parts.append(model.encode_last(histories)[:num_left])
            targets.append(of_batch[:num_left])
            num_left -= len(targets[-1])
            if num_left == 0:
                break
    return [torch.cat(parts) for parts in states], torch.cat(targets)


class _MixedLoss:
    """w ↦ (mean NLL, its gradient), for w [m]."""

    def __init__(self, states: Sequence[Tensor], tables: Sequence[ItemTable], targets: Tensor) -> None:
        self._states = torch.cat([part.detach().double() for part in states], dim=1)
        self._item_weight = torch.cat([table.weight.detach().double() for table in tables], dim=1)
        self._biases = item_biases(tables)
        self._widths = torch.tensor([part.shape[1] for part in states], device=self._states.device)
        self._targets = targets

    def __call__(self, w: np.ndarray) -> tuple[float, np.ndarray]:
        weights = torch.tensor(w, dtype=torch.float64, device=self._states.device, requires_grad=True)
        states = self._states * weights.repeat_interleave(self._widths)
        total, count = cross_entropy(states, self._item_weight, self._targets, item_bias=self._biases @ weights)
        (gradient,) = torch.autograd.grad(total / count, weights)
        return (total / count).item(), gradient.cpu().numpy()
