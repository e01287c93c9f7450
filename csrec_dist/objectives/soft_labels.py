"""Soft labels as the objectives read them: factored or dense, one tile of logits at a time."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def product(states: Tensor, item_weight: Tensor, item_bias: Tensor | None, scale: float, out: Tensor) -> Tensor:
    """Write scale · (states [R, K] · item_weight [C, K]ᵀ + item_bias [C]) into `out` [R, C] and return it.

    The factors are cast to the type of `out`, in which the product is accumulated.
    """
    left, right = states.to(out.dtype), item_weight.to(out.dtype).T
    if item_bias is None:
        return torch.addmm(out, left, right, beta=0, alpha=scale, out=out)
    return torch.addmm(item_bias.to(out.dtype), left, right, beta=scale, alpha=scale, out=out)


@dataclass(frozen=True)
class FactoredLabels:
    """Untempered logits kept as factors: logits = states · item_weightᵀ + item_bias.

    `states` is [N, K], `item_weight` [V, K] with item i+1 in row i, `item_bias` [V] or None. For the
    mean logits of M members of width d, K = M·d and the factor 1/M is already in `states` (and in the
    bias). Raises ValueError when the shapes disagree.
    """

    states: Tensor
    item_weight: Tensor
    item_bias: Tensor | None = None

    def __post_init__(self) -> None:
        states, weight, bias = self.states, self.item_weight, self.item_bias
        fits = states.ndim == 2 and weight.ndim == 2 and states.shape[1] == weight.shape[1]
        if not fits or (bias is not None and bias.shape != weight.shape[:1]):
            raise ValueError(
                "factored labels need states [N, K], item_weight [V, K] and item_bias [V] or None, got "
                f"{list(states.shape)}, {list(weight.shape)} and {None if bias is None else list(bias.shape)}"
            )

    @property
    def num_examples(self) -> int:
        """N."""
        return self.states.shape[0]

    @property
    def num_items(self) -> int:
        """V."""
        return self.item_weight.shape[0]

    def to(self, device: torch.device | str) -> "FactoredLabels":
        """The same labels on `device`."""
        bias = None if self.item_bias is None else self.item_bias.to(device)
        return FactoredLabels(self.states.to(device), self.item_weight.to(device), bias)

    def __getitem__(self, rows: Any) -> "FactoredLabels":
        """The labels of some examples: a slice, or a tensor of indices or of booleans."""
        return FactoredLabels(self.states[rows], self.item_weight, self.item_bias)

    def tile(self, rows: slice, items: slice, *, scale: float = 1.0, out: Tensor | None = None) -> Tensor:
        """scale · logits of examples `rows` and item rows `items`, [R, C], in `out` if it is given."""
        left, right = self.states[rows], self.item_weight[items]
        out = left.new_empty(left.shape[0], right.shape[0]) if out is None else out
        return product(left, right, None if self.item_bias is None else self.item_bias[items], scale, out)

    def at(self, rows: slice, items: Tensor, dtype: torch.dtype) -> Tensor:
        """The logit of one item row for each example of `rows`: [R], summed in `dtype`."""
        logits = (self.states[rows].to(dtype) * self.item_weight[items].to(dtype)).sum(1)
        return logits if self.item_bias is None else logits + self.item_bias[items].to(dtype)

    def bound(self) -> Tensor:
        """A scalar that no logit exceeds in absolute value, by Cauchy–Schwarz, at the cost of the factors."""
        bound = torch.linalg.vector_norm(self.states.float(), dim=1).max()
        bound = bound * torch.linalg.vector_norm(self.item_weight.float(), dim=1).max()
        return bound if self.item_bias is None else bound + self.item_bias.float().abs().max()


@dataclass(frozen=True)
class DenseLabels:
    """Untempered logits [N, V] of every example and item, column i being item i+1.

    Raises ValueError when `logits` has not two dimensions.
    """

    logits: Tensor

    def __post_init__(self) -> None:
        if self.logits.ndim != 2:
            raise ValueError(f"dense labels need logits [N, V], got {list(self.logits.shape)}")

    @property
    def num_examples(self) -> int:
        """N."""
        return self.logits.shape[0]

    @property
    def num_items(self) -> int:
        """V."""
        return self.logits.shape[1]

    def to(self, device: torch.device | str) -> "DenseLabels":
        """The same labels on `device`."""
        return DenseLabels(self.logits.to(device))

    def __getitem__(self, rows: Any) -> "DenseLabels":
        """The labels of some examples: a slice, or a tensor of indices or of booleans."""
        return DenseLabels(self.logits[rows])

    def tile(self, rows: slice, items: slice, *, scale: float = 1.0, out: Tensor | None = None) -> Tensor:
        """scale · logits of examples `rows` and item rows `items`, [R, C], in `out` if it is given."""
        stored = self.logits[rows, items]
        out = torch.empty_like(stored) if out is None else out
        out.copy_(stored)
        return out if scale == 1.0 else out.mul_(scale)

    def at(self, rows: slice, items: Tensor, dtype: torch.dtype) -> Tensor:
        """The logit of one item row for each example of `rows`: [R], in `dtype`."""
        return self.logits[rows].gather(1, items.unsqueeze(1)).squeeze(1).to(dtype)

    def bound(self) -> Tensor:
        """The largest absolute logit, a scalar."""
        least, largest = torch.aminmax(self.logits)
        return torch.maximum(-least, largest).float()


SoftLabels = FactoredLabels | DenseLabels
"""The forms that give any tile of the full catalog's logits. A truncated form would answer for its kept
items and the log-sum-exp of the row instead, and only the forward divergence is finite on it."""
