"""Soft labels as the losses read them: factored, dense or a mixture, one tile of logits at a time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from csrec_dist.distributed.catalog import CatalogSlice, SharedRows
from csrec_dist.losses.tiles import choose_tiling
from csrec_dist.losses.top_k_labels import TopKLabels


class TemperedLabels(Protocol):
    """Labels at one temperature T, ready to be read by tiles of t: the labels are softmax(t)."""

    is_shifted: ClassVar[bool]
    """Whether a row's largest t has to be subtracted before exponentials are taken, because t may be large."""

    def tile(self, rows: slice, items: slice, *, out: Tensor) -> Tensor:
        """t of examples `rows` and item rows `items`, written into `out` [R, C]."""

    def at(self, rows: slice, items: Tensor, dtype: torch.dtype) -> Tensor:
        """t of one item row for each example of `rows`: [R], in `dtype`."""

    def bound(self) -> Tensor:
        """A scalar that no t exceeds in absolute value."""


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
        if not self.num_items:
            return self.states.new_zeros((), dtype=torch.float32)
        bound = torch.linalg.vector_norm(self.states.float(), dim=1).max()
        bound = bound * torch.linalg.vector_norm(self.item_weight.float(), dim=1).max()
        return bound if self.item_bias is None else bound + self.item_bias.float().abs().max()

    def shared(self, rows: SharedRows) -> "FactoredLabels":
        """The labels of a catalog group's examples on this rank's slice; tables may be the slice or whole."""
        bias = None if self.item_bias is None else rows.part.cut(self.item_bias)
        return FactoredLabels(rows.gather(self.states), rows.part.cut(self.item_weight), bias)

    def tempered(self, scale: float, like: Tensor, catalog: CatalogSlice) -> "Tempered":
        """The labels at temperature 1/scale; `like` has the type and the device of the tiles."""
        return Tempered(self, scale)


@dataclass(frozen=True)
class DenseLabels:
    """Untempered logits [N, V] of every example and item, column i being item i+1, all finite.

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
        logits = self.logits[rows, items]
        out = torch.empty_like(logits) if out is None else out
        out.copy_(logits)
        return out if scale == 1.0 else out.mul_(scale)

    def at(self, rows: slice, items: Tensor, dtype: torch.dtype) -> Tensor:
        """The logit of one item row for each example of `rows`: [R], in `dtype`."""
        return self.logits[rows].gather(1, items.unsqueeze(1)).squeeze(1).to(dtype)

    def bound(self) -> Tensor:
        """The largest absolute logit, a scalar."""
        if not self.logits.numel():
            return self.logits.new_zeros((), dtype=torch.float32)
        least, largest = torch.aminmax(self.logits)
        return torch.maximum(-least, largest).float()

    def shared(self, rows: SharedRows) -> "DenseLabels":
        """The labels of a catalog group's examples on this rank's slice, of each rank's whole rows."""
        return DenseLabels(rows.exchange_columns(self.logits))

    def tempered(self, scale: float, like: Tensor, catalog: CatalogSlice) -> "Tempered":
        """The labels at temperature 1/scale; `like` has the type and the device of the tiles."""
        return Tempered(self, scale)


@dataclass(frozen=True)
class Tempered:
    """Labels with logits, at temperature 1/scale: t = scale · logits."""

    labels: FactoredLabels | DenseLabels
    scale: float
    is_shifted: ClassVar[bool] = True

    def tile(self, rows: slice, items: slice, *, out: Tensor) -> Tensor:
        """t of examples `rows` and item rows `items`, written into `out` [R, C]."""
        return self.labels.tile(rows, items, scale=self.scale, out=out)

    def at(self, rows: slice, items: Tensor, dtype: torch.dtype) -> Tensor:
        """t of one item row for each example of `rows`: [R], in `dtype`."""
        return self.labels.at(rows, items, dtype) * self.scale

    def bound(self) -> Tensor:
        """A scalar that no t exceeds in absolute value."""
        return self.labels.bound() * self.scale


@dataclass(frozen=True)
class MixtureLabels:
    """Labels that are a mean of probabilities, q = Σ w_k softmax(e_k / T), of parts with logits e_k.

    They have no logits of their own, because q depends on T. `weights` are at least 0 and sum to 1. Raises ValueError
    when there is no part, when parts differ in examples or items, or for other weights.
    """

    parts: tuple[FactoredLabels | DenseLabels, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes = {(part.num_examples, part.num_items) for part in self.parts}
        sound = len(self.weights) == len(self.parts) and min(self.weights, default=-1.0) >= 0
        if len(sizes) != 1 or not sound or abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(
                "a mixture needs parts of the same examples and items and a weight for each, at least 0 and 1 in all; "
                f"got parts of {sorted(sizes)} and weights {list(self.weights)}"
            )

    @property
    def num_examples(self) -> int:
        """N."""
        return self.parts[0].num_examples

    @property
    def num_items(self) -> int:
        """V."""
        return self.parts[0].num_items

    def to(self, device: torch.device | str) -> "MixtureLabels":
        """The same labels on `device`."""
        return MixtureLabels(tuple(part.to(device) for part in self.parts), self.weights)

    def __getitem__(self, rows: Any) -> "MixtureLabels":
        """The labels of some examples: a slice, or a tensor of indices or of booleans."""
        return MixtureLabels(tuple(part[rows] for part in self.parts), self.weights)

    def shared(self, rows: SharedRows) -> "MixtureLabels":
        """The labels of a catalog group's examples on this rank's slice."""
        return MixtureLabels(tuple(part.shared(rows) for part in self.parts), self.weights)

    def tempered(self, scale: float, like: Tensor, catalog: CatalogSlice) -> "TemperedMixture":
        """The labels at temperature 1/scale, by a pass over the catalog for each part's log-sum-exp.

        `like` has the type and the device of the tiles. The ranks of the catalog group go through their slices
        together.
        """
        weighted = [(part, weight) for part, weight in zip(self.parts, self.weights, strict=True) if weight > 0]
        parts = [(part.tempered(scale, like, catalog), weight) for part, weight in weighted]
        sums = torch.stack([log_sums(part, self.num_examples, self.num_items, like) for part, _ in parts])
        sums = catalog.log_sum_exp(sums)
        log_weights = torch.cat([like.new_full((1, 1), math.log(w)) for _, w in parts])
        return TemperedMixture(tuple(part for part, _ in parts), log_weights - sums)


@dataclass(frozen=True)
class TemperedMixture:
    """A mixture at one temperature: t = log q = logsumexp_k (t_k + offset_k), which sums to 1 as it is.

    `offsets` [m, N] are log w_k − logsumexp t_k of each part and example.
    """

    parts: tuple[Tempered, ...]
    offsets: Tensor
    is_shifted: ClassVar[bool] = True
    _scratch: list[Tensor] = field(default_factory=list)

    def tile(self, rows: slice, items: slice, *, out: Tensor) -> Tensor:
        """t of examples `rows` and item rows `items`, written into `out` [R, C]."""
        first, *others = zip(self.parts, self.offsets[:, rows].unsqueeze(2), strict=True)
        first[0].tile(rows, items, out=out).add_(first[1])
        for part, offset in others:
            term = part.tile(rows, items, out=self._buffer(out)).add_(offset)
            torch.logaddexp(out, term, out=out)
        return out

    def at(self, rows: slice, items: Tensor, dtype: torch.dtype) -> Tensor:
        """t of one item row for each example of `rows`: [R], in `dtype`."""
        terms = torch.stack([part.at(rows, items, dtype) for part in self.parts])
        return torch.logsumexp(terms + self.offsets[:, rows].to(dtype), 0)

    def bound(self) -> Tensor:
        """A scalar that no t exceeds in absolute value: q is at least each of its terms, and at most 1."""
        bounds = torch.stack([part.bound() for part in self.parts])
        return (bounds + self.offsets.abs().amax(1)).min()

    def _buffer(self, like: Tensor) -> Tensor:
        """A work buffer of the tile's shape, allocated once for the largest tile."""
        if not self._scratch or self._scratch[0].numel() < like.numel():
            self._scratch[:] = [torch.empty_like(like).flatten()]
        return self._scratch[0][: like.numel()].view(like.shape)


def log_sums(labels: TemperedLabels, num_examples: int, num_items: int, like: Tensor) -> Tensor:
    """logsumexp t of every example [N], tile by tile."""
    sums = like.new_full((num_examples,), -math.inf)
    if num_examples == 0 or num_items == 0:
        return sums
    tiling = choose_tiling(num_examples, num_items, 1, like.dtype, like.device)
    space = like.new_empty(tiling.rows * tiling.items)
    for rows in tiling.row_blocks():
        for items in tiling.item_slices():
            shape = rows.stop - rows.start, items.stop - items.start
            tile = labels.tile(rows, items, out=space[: shape[0] * shape[1]].view(shape))
            torch.logaddexp(sums[rows], tile.logsumexp(1), out=sums[rows])
    return sums


SoftLabels = FactoredLabels | DenseLabels | MixtureLabels | TopKLabels
"""The first three give any tile of the full catalog's labels. Top-k labels know some items of a row and the row's
log-sum-exp, on which only the forward divergence is defined."""
CPU = torch.device("cpu")


class LabelReader(Protocol):
    """What a training reads soft labels from: first the stored fields, in a background thread, then the labels."""

    def fields(self, example_ids: Tensor | np.ndarray) -> dict[str, Tensor]:
        """What is stored for each of the examples, on the CPU."""

    def labels(self, fields: Mapping[str, Tensor], device: torch.device = CPU) -> SoftLabels:
        """The soft labels of what `fields` gave, on `device`."""
