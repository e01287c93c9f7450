"""Soft labels that know only some items of each row: their logits, and the log-sum-exp of the whole row."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from csrec_dist.distributed.catalog import CatalogSlice, SharedRows

LEAST = -60.0
"""The least log-probability of a kept item that still counts, as for the student's logits."""
NOT_KEPT = -80.0
"""t of an item that is not kept. Its exponential is too small for any sum, and yet a normal number: exponentials that
underflow take thirty times as long."""


@dataclass(frozen=True)
class TopKLabels:
    """K kept items of every example with their untempered logits, for one temperature T.

    `values` [N, K] and `items` [N, K] (1…V, no item twice in a row); `logsumexp` [N] is log Σ exp(e_j / T) over the
    whole row, in which kept logits count as they are in `values`. A kept item thus has q_j = exp(value / T −
    logsumexp), and the others have the rest of 1. An example's target must be among its kept items, so that its label
    is known. `num_items` is V; on a slice of the catalog it is the slice's size, whose rows begin at item `first` + 1,
    while the kept items are still those of the whole row.

    Raises ValueError when shapes disagree, for K outside 1…V, or T ≤ 0.
    """

    values: Tensor
    items: Tensor
    logsumexp: Tensor
    temperature: float
    num_items: int
    first: int = 0
    is_whole: bool | None = None

    def __post_init__(self) -> None:
        values, items, sums = self.values, self.items, self.logsumexp
        fits = values.ndim == 2 and values.shape == items.shape and sums.shape == values.shape[:1]
        fits = fits and values.shape[1] >= 1 and self.temperature > 0
        if self.is_whole is None:
            fits = fits and values.shape[1] <= self.num_items
            object.__setattr__(self, "is_whole", values.shape[1] == self.num_items)
        if not fits:
            raise ValueError(
                "top-k labels need values [N, K] and items [N, K] with 1 <= K <= V, logsumexp [N] and a temperature "
                f"above 0, got {list(values.shape)}, {list(items.shape)}, {list(sums.shape)} and {self.temperature} "
                f"for {self.num_items} items"
            )

    @property
    def num_examples(self) -> int:
        """N."""
        return self.values.shape[0]

    def to(self, device: torch.device | str) -> "TopKLabels":
        """The same labels on `device`."""
        return self._with(*(tensor.to(device) for tensor in (self.values, self.items, self.logsumexp)))

    def __getitem__(self, rows: Any) -> "TopKLabels":
        """The labels of some examples: a slice, or a tensor of indices or of booleans."""
        return self._with(self.values[rows], self.items[rows], self.logsumexp[rows])

    def keep(self, targets: Tensor) -> Tensor:
        """Whether each example's target [N] is among its kept items: [N] booleans."""
        return (self.items == targets.unsqueeze(1)).any(1)

    def shared(self, rows: SharedRows) -> "TopKLabels":
        """The labels of a catalog group's examples, to be read on this rank's slice."""
        values, items, sums = (rows.gather(tensor) for tensor in (self.values, self.items, self.logsumexp))
        shard = rows.part
        return TopKLabels(values, items, sums, self.temperature, shard.num_rows, shard.first, self.is_whole)

    def tempered(self, scale: float, like: Tensor, catalog: CatalogSlice) -> "TemperedTopK":
        """The labels at their own temperature, which is 1/scale; `like` has the type and the device of the tiles."""
        assert math.isclose(scale * self.temperature, 1), "labels of one temperature were read at another"
        log_q = self.values.to(like.dtype).mul(scale).sub_(self.logsumexp.to(like.dtype).unsqueeze(1))
        return TemperedTopK(self, log_q.clamp_min_(LEAST))

    def _with(self, values: Tensor, items: Tensor, logsumexp: Tensor) -> "TopKLabels":
        return TopKLabels(values, items, logsumexp, self.temperature, self.num_items, self.first, self.is_whole)


@dataclass(frozen=True)
class TemperedTopK:
    """Kept items with t = log q [N, K] ≤ 0, which needs no shift before exponentials are taken."""

    labels: TopKLabels
    log_q: Tensor
    is_shifted: ClassVar[bool] = False

    @cached_property
    def columns(self) -> Tensor:
        """Rows [N, K] of the kept items in the slice; outside 0 … n−1 for items of other slices."""
        return self.labels.items.long() - 1 - self.labels.first

    def tile(self, rows: slice, items: slice, *, out: Tensor) -> Tensor:
        """t of examples `rows` and item rows `items`, NOT_KEPT where an item is not kept, written into `out` [R, C]."""
        columns = self.columns[rows] - items.start
        elsewhere = (columns < 0) | (columns >= out.shape[1])
        log_q = self.log_q[rows].masked_fill(elsewhere, NOT_KEPT)
        return out.fill_(NOT_KEPT).scatter_reduce_(1, columns.clamp_(0, out.shape[1] - 1), log_q, "amax")

    def at(self, rows: slice, items: Tensor, dtype: torch.dtype) -> Tensor:
        """t of one item row for each example of `rows`: [R], in `dtype`; NaN where it is not kept."""
        is_item = self.columns[rows] == items.unsqueeze(1)
        log_q = self.log_q[rows].to(dtype).masked_fill(~is_item, 0).sum(1)
        return log_q.masked_fill(~is_item.any(1), math.nan)

    def bound(self) -> Tensor:
        """0: whatever t is, its exponential is at most 1."""
        return self.log_q.new_zeros((), dtype=torch.float32)
