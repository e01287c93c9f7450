"""The costs c_ij of Eq. 17, one tile at a time: what it costs to prefer item j where the target was observed."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from csrec_dist.objectives.soft_labels import product


@dataclass(frozen=True)
class NoiseCosts:
    """c_ij = log(1 + exp(−h_ij)) + log V + maxima_j, with h = states [N, r] · item_weight [V, r]ᵀ.

    `states` are the rows of M at the examples' targets, `item_weight` is N, and `maxima` [V] are max_k h_kj: all in
    the computing type. `num_items` is V of the whole catalog, where the tables are a slice of it.
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
