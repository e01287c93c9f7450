"""What each objective keeps of a tile, sums over the catalog, and makes of the sums: one class for each.

For one example, z are the student's logits and t the tempered labels', both already shifted by a constant of
the example (any constant: the formulas do not see it), y is the target, p = softmax(z), q = softmax(t) and
r = ½(q + onehot(y)), the paper's Eq. 19. The gradient with respect to z always has the form

    scale · (first_j + ratio · second_j) + target · [j = y]

with two numbers `first_j`, `second_j` that a tile's first pass leaves in its buffers and three of the example.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from csrec_dist.objectives.tiles import Tile

LOG_2 = math.log(2)
FLOOR = -60.0
"""The least logit, below the row's largest, that still counts: e⁻⁶⁰ is under the rounding of any sum in float64."""

Exponentiate = Callable[[Tensor], Tensor]
"""Takes exponentials in place: `torch.exp_` or `exp_floored_`."""


def exp_floored_(logits: Tensor) -> Tensor:
    """Take exponentials in place, of at least FLOOR: subnormal numbers slow matrix products down tenfold."""
    return logits.clamp_min_(FLOOR).exp_()


@dataclass
class Statistics:
    """Sums over the catalog for a row block, each [R]: what ranks that share a catalog would add up."""

    target_logit: Tensor
    """z_y."""
    target_label: Tensor | None
    """t_y, or None without labels."""
    sums: Tensor
    """[3, R]: Σ exp z_j, Σ exp t_j, and Σ (z_j − t_j) exp z_j (reverse) or Σ (z_j − t_j) exp t_j (forward)."""


class Terms(NamedTuple):
    """The losses of a row block and the coefficients of their gradients, each [R]."""

    cross_entropy: Tensor
    divergence: Tensor
    scale: Tensor
    ratio: Tensor | None
    target: Tensor


class OneHot:
    """Cross-entropy with the one-hot target: CE = logsumexp z − z_y, ∂CE/∂z = p − onehot(y)."""

    num_kept: ClassVar[int] = 1

    @staticmethod
    def reduce(tile: Tile, sums: Tensor, exponentiate: Exponentiate) -> None:
        """Turn a tile of z into exp z and add it up in `sums`."""
        sums[0] += exponentiate(tile[0]).sum(1)

    @staticmethod
    def parts(tile: Tile) -> tuple[Tensor, Tensor | None]:
        """The tile's `first` and `second` for the gradient, in the buffers that `reduce` left."""
        return tile[0], None

    @staticmethod
    def combine(statistics: Statistics, beta: float) -> Terms:
        """Losses and gradient coefficients; `beta` is not used, and the divergence is 0."""
        mass = statistics.sums[0]
        loss = mass.log() - statistics.target_logit
        return Terms(loss, torch.zeros_like(loss), 1 / mass, None, -torch.ones_like(mass))


class Reverse:
    """(1−β) CE + β KL(p ‖ r), the paper's Eq. 20.

    KL = Σ p_j (z_j − t_j) − log Σ exp z + log Σ exp t + log 2 − p_y · softplus(−log q_y), where the last factor
    is log r_y − log ½q_y. ∂KL/∂z_j = p_j (z_j − t_j − logsumexp z + logsumexp t + log 2 − KL), and at j = y
    also −p_y · softplus(−log q_y).
    """

    num_kept: ClassVar[int] = 2

    @staticmethod
    def reduce(tile: Tile, sums: Tensor, exponentiate: Exponentiate) -> None:
        """Turn tiles of z and t into exp z and (z − t) exp z, and add up."""
        logits, labels, scratch = tile
        torch.sub(logits, labels, out=scratch)
        sums[0] += exponentiate(logits).sum(1)
        sums[1] += exponentiate(labels).sum(1)
        sums[2] += torch.mul(scratch, logits, out=labels).sum(1)

    @staticmethod
    def parts(tile: Tile) -> tuple[Tensor, Tensor | None]:
        """The tile's `first` and `second` for the gradient, in the buffers that `reduce` left."""
        return tile[1], tile[0]

    @staticmethod
    def combine(statistics: Statistics, beta: float) -> Terms:
        """Losses and gradient coefficients for 0 < β ≤ 1."""
        assert statistics.target_label is not None
        mass, label_mass, difference = statistics.sums
        log_p, log_q = statistics.target_logit - mass.log(), statistics.target_label - label_mass.log()
        at_target = log_p.exp() * softplus(-log_q)
        offset = label_mass.log() - mass.log() + LOG_2
        divergence = difference / mass + offset - at_target
        ratio = (1 - beta) / beta + offset - divergence
        return Terms(-log_p, divergence, beta / mass, ratio, beta - 1 - beta * at_target)


class Forward:
    """(1−β) CE + β KL(r ‖ p), with the constant Σ r log r of the labels.

    KL = ½ (−log p_y + logsumexp z − logsumexp t − Σ q_j (z_j − t_j) − 2 log 2 + (1+q_y) log(1+q_y) − q_y log q_y)
    and ∂KL/∂z = p − r.
    """

    num_kept: ClassVar[int] = 2

    @staticmethod
    def reduce(tile: Tile, sums: Tensor, exponentiate: Exponentiate) -> None:
        """Turn tiles of z and t into exp z and exp t, and add up."""
        logits, labels, scratch = tile
        torch.sub(logits, labels, out=scratch)
        sums[0] += exponentiate(logits).sum(1)
        sums[1] += exponentiate(labels).sum(1)
        sums[2] += scratch.mul_(labels).sum(1)

    @staticmethod
    def parts(tile: Tile) -> tuple[Tensor, Tensor | None]:
        """The tile's `first` and `second` for the gradient, in the buffers that `reduce` left."""
        return tile[0], tile[1]

    @staticmethod
    def combine(statistics: Statistics, beta: float) -> Terms:
        """Losses and gradient coefficients for 0 < β ≤ 1."""
        assert statistics.target_label is not None
        mass, label_mass, difference = statistics.sums
        log_p, log_q = statistics.target_logit - mass.log(), statistics.target_label - label_mass.log()
        q = log_q.exp()
        of_labels = (1 + q) * q.log1p() - q * log_q - 2 * LOG_2
        offset = mass.log() - label_mass.log() - difference / label_mass
        ratio = -(beta / 2) * (mass / label_mass)
        target = torch.full_like(mass, beta / 2 - 1)
        return Terms(-log_p, (offset - log_p + of_labels) / 2, 1 / mass, ratio, target)


Divergence = type[OneHot] | type[Reverse] | type[Forward]
DIVERGENCES: dict[str, Divergence] = {"reverse": Reverse, "forward": Forward}
