"""The losses as sums over the catalog: what each keeps of a tile, what it sums, and what follows from the sums.

For one example, z are the student's logits and t the tempered labels', both already shifted by a constant of
the example (any constant: the formulas do not see it), y is the target, p = softmax(z), q = softmax(t) and
r = ½(q + onehot(y)), the paper's Eq. 19. The gradient with respect to z always has the form

    scale · (part₀_j + ratio₁ · part₁_j + …) + target · [j = y]

where the numbers `part_j` are left in a tile's buffers by its first pass, and the other numbers are the example's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.losses.tiles import Tile
from csrec_dist.losses.top_k_labels import NOT_KEPT

LOG_2 = math.log(2)
FLOOR = -60.0
"""The least logit, below the row's largest, that still counts: e⁻⁶⁰ is under the rounding, in float64, of any sum that
has the largest in it. A lesser one counts as if it were this (see `ForwardOfKept`)."""

LOG2_E = 1 / LOG_2
Exponentiate = Callable[[Tensor], Tensor]
"""Takes exponentials in place: `exp_` or `exp_floored_`."""


def exp_(logits: Tensor) -> Tensor:
    """Take exponentials in place.

    On a CPU they are powers of two: torch leaves `exp` to MKL, which takes no AVX-512 on AMD's processors, and has
    `exp2` of its own. The two operations there take a third of the time of the one; x · log₂ e is rounded, which
    changes the result by a relative |x| · 6e-8 in fp32, as the rounding of x itself does.
    """
    return logits.mul_(LOG2_E).exp2_() if logits.device.type == "cpu" else logits.exp_()


def exp_floored_(logits: Tensor) -> Tensor:
    """Take exponentials in place, of at least FLOOR: subnormal numbers slow matrix products down tenfold."""
    return exp_(logits.clamp_min_(FLOOR))


@dataclass
class Statistics:
    """Sums over the catalog for a row block, each [R], which ranks that share a catalog add up."""

    target_logit: Tensor
    """z_y."""
    target_label: Tensor | None
    """t_y, or None without labels."""
    sums: Tensor
    """[num_sums, R]: Σ exp z_j, Σ exp t_j, then the divergence's own."""

    def over(self, catalog: CatalogSlice) -> "Statistics":
        """The sums over a catalog group's slices; z_y and t_y come from the slice that has y, and are 0 elsewhere."""
        if catalog.is_whole:
            return self
        of_target = [self.target_logit] if self.target_label is None else [self.target_logit, self.target_label]
        summed = catalog.all_sum(torch.cat([self.sums, torch.stack(of_target)]))
        num_sums = len(self.sums)
        label = None if self.target_label is None else summed[num_sums + 1]
        return Statistics(summed[num_sums], label, summed[:num_sums])


class Terms(NamedTuple):
    """The losses of a row block and the coefficients of their gradients, each [R]; `ratios` are of parts 1, 2, …"""

    cross_entropy: Tensor
    divergence: Tensor
    scale: Tensor
    ratios: tuple[Tensor, ...]
    target: Tensor


class Divergence(Protocol):
    """The interface of a loss for its tiled evaluation."""

    @property
    def num_kept(self) -> int:
        """Numbers kept for each logit between the passes."""

    @property
    def num_sums(self) -> int:
        """Sums over the catalog for each example."""

    @property
    def shares(self) -> tuple[float, float]:
        """Factors of the cross-entropy and of the divergence in the loss."""

    def reduce(self, tile: Tile, sums: Tensor, exponentiate: Exponentiate) -> None:
        """Turn a tile of z, t and costs into what is kept of it, and add it up in `sums` [num_sums, R]."""

    def parts(self, tile: Tile) -> tuple[Tensor, ...]:
        """The parts of a reduced tile for the gradient; the first may be written over."""

    def cost_parts(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Of a reduced tile with costs c(h): exp z, and exp z · ∂c/∂h."""

    def combine(self, statistics: Statistics) -> Terms:
        """Losses and gradient coefficients."""


class _WithoutCosts:
    def cost_parts(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Never called: there are no costs."""
        raise AssertionError("this divergence has no costs")


class OneHot(_WithoutCosts):
    """Cross-entropy with the one-hot target: CE = logsumexp z − z_y, ∂CE/∂z = p − onehot(y)."""

    num_kept: ClassVar[int] = 1
    num_sums: ClassVar[int] = 1
    shares: ClassVar[tuple[float, float]] = (1.0, 0.0)

    def reduce(self, tile: Tile, sums: Tensor, exponentiate: Exponentiate) -> None:
        """Turn a tile of z into exp z and add it up in `sums`."""
        sums[0] += exponentiate(tile[0]).sum(1)

    def parts(self, tile: Tile) -> tuple[Tensor, ...]:
        """exp z."""
        return (tile[0],)

    def combine(self, statistics: Statistics) -> Terms:
        """Losses and gradient coefficients; the divergence is 0."""
        mass = statistics.sums[0]
        loss = mass.log() - statistics.target_logit
        return Terms(loss, torch.zeros_like(loss), 1 / mass, (), -torch.ones_like(mass))


@dataclass(frozen=True)
class _Mixed(_WithoutCosts):
    """(1−β) CE + β KL, with 0 < β ≤ 1."""

    beta: float
    num_kept: ClassVar[int] = 2
    num_sums: ClassVar[int] = 3

    @property
    def shares(self) -> tuple[float, float]:
        """1−β and β."""
        return 1 - self.beta, self.beta


class Reverse(_Mixed):
    """(1−β) CE + β KL(p ‖ r), the paper's Eq. 20.

    KL = Σ p_j (z_j − t_j) − log Σ exp z + log Σ exp t + log 2 − p_y · softplus(−log q_y), where the last factor
    is log r_y − log ½q_y. ∂KL/∂z_j = p_j (z_j − t_j − logsumexp z + logsumexp t + log 2 − KL), and at j = y
    also −p_y · softplus(−log q_y).
    """

    def reduce(self, tile: Tile, sums: Tensor, exponentiate: Exponentiate) -> None:
        """Turn tiles of z and t into exp z and (z − t) exp z, and add up; the third sum is that of the latter."""
        logits, labels, scratch = tile
        torch.sub(logits, labels, out=scratch)
        sums[0] += exponentiate(logits).sum(1)
        sums[1] += exponentiate(labels).sum(1)
        sums[2] += torch.mul(scratch, logits, out=labels).sum(1)

    def parts(self, tile: Tile) -> tuple[Tensor, ...]:
        """(z − t) exp z and exp z."""
        return tile[1], tile[0]

    def combine(self, statistics: Statistics) -> Terms:
        """Losses and gradient coefficients."""
        assert statistics.target_label is not None
        beta, (mass, label_mass, difference) = self.beta, statistics.sums
        log_p, log_q = statistics.target_logit - mass.log(), statistics.target_label - label_mass.log()
        at_target = log_p.exp() * softplus(-log_q)
        offset = label_mass.log() - mass.log() + LOG_2
        divergence = difference / mass + offset - at_target
        ratio = (1 - beta) / beta + offset - divergence
        return Terms(-log_p, divergence, beta / mass, (ratio,), beta - 1 - beta * at_target)


class Forward(_Mixed):
    """(1−β) CE + β KL(r ‖ p), with the constant Σ r log r of the labels.

    KL = ½ (−log p_y + logsumexp z − logsumexp t − Σ q_j (z_j − t_j) − 2 log 2 + (1+q_y) log(1+q_y) − q_y log q_y)
    and ∂KL/∂z = p − r.
    """

    def reduce(self, tile: Tile, sums: Tensor, exponentiate: Exponentiate) -> None:
        """Turn tiles of z and t into exp z and exp t, and add up; the third sum is Σ (z − t) exp t."""
        logits, labels, scratch = tile
        torch.sub(logits, labels, out=scratch)
        sums[0] += exponentiate(logits).sum(1)
        sums[1] += exponentiate(labels).sum(1)
        sums[2] += scratch.mul_(labels).sum(1)

    def parts(self, tile: Tile) -> tuple[Tensor, ...]:
        """exp z and exp t."""
        return tile[0], tile[1]

    def combine(self, statistics: Statistics) -> Terms:
        """Losses and gradient coefficients."""
        assert statistics.target_label is not None
        beta, (mass, label_mass, difference) = self.beta, statistics.sums
        log_p, log_q = statistics.target_logit - mass.log(), statistics.target_label - label_mass.log()
        q = log_q.exp()
        of_labels = (1 + q) * q.log1p() - q * log_q - 2 * LOG_2
        offset = mass.log() - label_mass.log() - difference / label_mass
        ratio = -(beta / 2) * (mass / label_mass)
        target = torch.full_like(mass, beta / 2 - 1)
        return Terms(-log_p, (offset - log_p + of_labels) / 2, 1 / mass, (ratio,), target)


@dataclass(frozen=True)
class ForwardOfKept(_Mixed):
    """(1−β) CE + β KL of what top-k labels know: r and p of each kept item, and of all other items as one.

    S are the kept items, which include y, and q_rest and p_rest the masses of the others:
    KL = Σ_S r_j log(r_j / p_j) + ½ q_rest log(½ q_rest / p_rest). It is at least 0 and at most KL(r ‖ p) over all
    items, which it equals where all are kept. ∂KL/∂z_j = p_j − r_j in S and p_j (1 − ½ q_rest / p_rest) elsewhere: how
    the other items divide their mass is left open. t = log q needs no shift. `is_whole` says that there are no others.
    Where the student's logits of all others are more than 60 below those of kept items, they count as 60 below: the
    loss stays finite, and so it does where p_rest would underflow.
    """

    is_whole: bool
    num_kept: ClassVar[int] = 3
    num_sums: ClassVar[int] = 4

    def reduce(self, tile: Tile, sums: Tensor, exponentiate: Exponentiate) -> None:
        """Turn tiles of z and t into exp z, q and the others' exp z; sums 2 and 3 are Σ (z − t) q and the last's."""
        logits, labels, others, scratch = tile
        torch.sub(logits, labels, out=scratch)
        torch.le(labels, NOT_KEPT, out=others)
        sums[0] += exponentiate(logits).sum(1)
        sums[1] += exp_(labels).sum(1)
        sums[2] += scratch.mul_(labels).sum(1)
        sums[3] += others.mul_(logits).sum(1)

    def parts(self, tile: Tile) -> tuple[Tensor, ...]:
        """exp z, that of the others, and q."""
        return tile[0], tile[2], tile[1]

    def combine(self, statistics: Statistics) -> Terms:
        """Losses and gradient coefficients."""
        assert statistics.target_label is not None
        beta, (mass, known, difference, others), log_q = self.beta, statistics.sums, statistics.target_label
        unknown = (1 - known).clamp_min(0)
        if self.is_whole:
            unknown, others = torch.zeros_like(mass), mass
        log_mass = mass.log()
        log_p, q = statistics.target_logit - log_mass, log_q.exp()
        of_kept = known * log_mass - difference - log_p + (1 + q) * q.log1p() - q * log_q
        of_others = torch.xlogy(unknown, unknown) - unknown * (others.log() - log_mass)
        ratios = -beta / 2 * unknown * (mass / others), -beta / 2 * mass
        target = torch.full_like(mass, beta / 2 - 1)
        return Terms(-log_p, (of_kept + of_others) / 2 - LOG_2, 1 / mass, ratios, target)


@dataclass(frozen=True)
class Robust:
    """CE + α KL(q ‖ p) + (1−α) KL(p ‖ q) + Σ c_j p_j, the paper's Eq. 17 and 18; without costs c_j = 0.

    With g_j = (1−α)(z_j − t_j) + c_j and d = logsumexp t − logsumexp z, the part after CE (ℓ_r) is
    Σ p_j g_j + (1−α) d − α (Σ q_j (z_j − t_j) + d), and the whole has the gradient
    p_j (1 + α + g_j − Σ p g) − α q_j − [j = y]. Neither KL mixes the one-hot target in.
    """

    alpha: float
    with_costs: bool
    num_sums: ClassVar[int] = 4
    shares: ClassVar[tuple[float, float]] = (1.0, 1.0)

    @property
    def num_kept(self) -> int:
        """exp z, exp t and g exp z; with costs exp z · ∂c/∂h too."""
        return 3 + self.with_costs

    def reduce(self, tile: Tile, sums: Tensor, exponentiate: Exponentiate) -> None:
        """Turn tiles of z, t, c and ∂c/∂h into what is kept; sums 2 and 3 are Σ g exp z and Σ (z − t) exp t."""
        logits, labels, weighted, *slope, scratch = tile
        torch.sub(logits, labels, out=scratch)
        if self.with_costs:
            weighted.add_(scratch, alpha=1 - self.alpha)
        else:
            torch.mul(scratch, 1 - self.alpha, out=weighted)
        sums[0] += exponentiate(logits).sum(1)
        sums[1] += exponentiate(labels).sum(1)
        sums[2] += weighted.mul_(logits).sum(1)
        sums[3] += scratch.mul_(labels).sum(1)
        for derivative in slope:
            derivative.mul_(logits)

    def parts(self, tile: Tile) -> tuple[Tensor, ...]:
        """g exp z, exp z and exp t."""
        return tile[2], tile[0], tile[1]

    def cost_parts(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """exp z, and exp z · ∂c/∂h."""
        return tile[0], tile[3]

    def combine(self, statistics: Statistics) -> Terms:
        """Losses and gradient coefficients."""
        alpha, (mass, label_mass, weighted, difference) = self.alpha, statistics.sums
        log_p = statistics.target_logit - mass.log()
        expected, offset = weighted / mass, label_mass.log() - mass.log()
        divergence = expected + (1 - alpha) * offset - alpha * (difference / label_mass + offset)
        ratios = 1 + alpha - expected, -alpha * (mass / label_mass)
        return Terms(-log_p, divergence, 1 / mass, ratios, -torch.ones_like(mass))


DIVERGENCES: dict[str, type[Reverse] | type[Forward]] = {"reverse": Reverse, "forward": Forward}
"""The student's divergences by the name of their direction; each is made with β. Top-k labels have the forward one
alone, `ForwardOfKept`."""
