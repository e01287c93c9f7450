"""What a loss is computed from, and the gradients that are written: the same for tiles and for kernels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.losses.divergences import Divergence, Terms
from csrec_dist.losses.soft_labels import FactoredLabels, TemperedLabels, product
from csrec_dist.options import MatmulPrecision


class HasLogits(Protocol):
    """Logits of single items: of a student, or of labels at one temperature."""

    def at(self, rows: slice, items: Tensor, dtype: torch.dtype) -> Tensor:
        """The logit of one item row for each example of `rows`: [R], in `dtype`."""


@dataclass(frozen=True)
class NoiseCosts:
    """c_ij = log(1 + exp(−h_ij)) + log V + maxima_j, with h = states [N, r] · item_weight [V, r]ᵀ.

    `states` are the rows of M at the examples' targets, `item_weight` is N, and `maxima` [V] are max_k h_kj: all in
    the type of computation. `num_items` is V of the whole catalog.
    """

    states: Tensor
    item_weight: Tensor
    maxima: Tensor
    num_items: int

    def tile(self, rows: slice, items: slice, costs: Tensor, slopes: Tensor) -> None:
        """Write c of examples `rows` and item rows `items` into `costs` [R, C] and ∂c/∂h into `slopes`."""
        negated = product(self.states[rows], self.item_weight[items], None, -1.0, slopes)
        torch.logaddexp(negated, negated.new_zeros(()), out=costs)
        costs += self.maxima[items] + math.log(self.num_items)
        negated.sigmoid_().neg_()


@dataclass(frozen=True)
class Problem:
    """Everything that a loss is computed from. The student's factors [N, d], [V, d], [V] have the type of computation.

    Tables are this rank's slice of the catalog; the examples are those of all ranks of its group.
    """

    catalog: CatalogSlice
    student: FactoredLabels
    index: Tensor
    """[N]: rows of the targets in this rank's slice; 0 where the target is in another rank's."""
    here: Tensor
    """[N]: whether the target is in this rank's slice."""
    weights: Tensor
    """[N] in the type of computation."""
    local_weights: Tensor
    """[N]: the weights of this rank's own examples, 0 for those of other ranks: only its own losses are summed here."""
    labels: TemperedLabels | None
    divergence: Divergence
    costs: NoiseCosts | None
    precision: MatmulPrecision = "highest"
    """Of the products with the tables."""

    def only_here(self, values: Tensor, rows: slice) -> Tensor:
        """The values [R] of the targets of examples `rows`, 0 for those in another rank's slice."""
        return values if self.catalog.is_whole else values.masked_fill(~self.here[rows], 0)

    def sums(self, terms: Terms, rows: slice) -> Tensor:
        """Of examples `rows` the weighted sums [3] of the loss, of CE and of the divergence."""
        shares, weights = self.divergence.shares, self.local_weights[rows]
        cross_entropy, divergence = torch.dot(weights, terms.cross_entropy), torch.dot(weights, terms.divergence)
        return torch.stack([cross_entropy * shares[0] + divergence * shares[1], cross_entropy, divergence])

    def at_targets(self, factors: HasLogits, rows: slice, shift: Tensor | None) -> Tensor:
        """The logit of each example's target [R], less `shift`; 0 where it is in another rank's slice."""
        if not self.student.num_items:
            return self.weights.new_zeros(rows.stop - rows.start)
        logits = factors.at(rows, self.index[rows], self.weights.dtype)
        return self.only_here(logits if shift is None else logits - shift, rows)


@dataclass
class Gradients:
    """The gradients with respect to a product's factors [N, K], [V, K] and [V]; None where none is needed."""

    states: Tensor | None
    item_weight: Tensor | None
    item_bias: Tensor | None

    @classmethod
    def zeros(cls, factors: Sequence[Tensor | None], needed: Sequence[bool]) -> "Gradients":
        """Zero gradients for those factors that are there and needed."""
        gradients = (
            torch.zeros_like(f, memory_format=torch.contiguous_format) if n and f is not None else None
            for f, n in zip(factors, needed, strict=True)
        )
        return cls(*gradients)

    @property
    def all(self) -> tuple[Tensor | None, ...]:
        """All three, in order."""
        return self.states, self.item_weight, self.item_bias
