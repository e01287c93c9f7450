"""The tiled evaluation: statistics of a row block, its losses and its gradients, as one differentiable operation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.losses.divergences import Divergence, Statistics, Terms, exp_floored_
from csrec_dist.losses.soft_labels import FactoredLabels, TemperedLabels, product
from csrec_dist.losses.tiles import Plan, Tile, Workspace, plan

SAFE_LOGIT = 40.0
"""Logits within ±40 are exponentiated as they are: sums of e^±40 and their ratios are normal fp32 numbers."""


@dataclass(frozen=True)
class NoiseCosts:
    """c_ij = log(1 + exp(−h_ij)) + log V + maxima_j, with h = states [N, r] · item_weight [V, r]ᵀ.

    `states` are the rows of M at the examples' targets, `item_weight` is N, and `maxima` [V] are max_k h_kj: all in
    the computing type. `num_items` is V of the whole catalog.
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
    """Everything an evaluation reads. The student's factors [N, d], [V, d], [V] have the computing type.

    All tables are those of this rank's slice of the catalog, and the examples those of all ranks of its group.
    """

    catalog: CatalogSlice
    student: FactoredLabels
    index: Tensor
    """[N] item rows of the targets, in the slice; 0 where the target is in another rank's."""
    here: Tensor
    """[N], whether the target is in this rank's slice."""
    weights: Tensor
    """[N] in the computing type."""
    own_weights: Tensor
    """[N] weights of this rank's own examples, 0 for those of others: whose losses are summed here."""
    labels: TemperedLabels | None
    divergence: Divergence
    costs: NoiseCosts | None

    def only_here(self, values: Tensor, rows: slice) -> Tensor:
        """The values [R] of the targets of examples `rows`, 0 for those in another rank's slice."""
        return values if self.catalog.is_whole else values.masked_fill(~self.here[rows], 0)


@dataclass
class Gradients:
    """The gradients with respect to a product's factors [N, K], [V, K] and [V]; None where none was asked for."""

    states: Tensor | None
    item_weight: Tensor | None
    item_bias: Tensor | None

    @classmethod
    def zeros(cls, factors: Sequence[Tensor | None], needed: Sequence[bool]) -> "Gradients":
        """Zero gradients for those factors that are there and needed."""
        made = (
            torch.zeros_like(f, memory_format=torch.contiguous_format) if n and f is not None else None
            for f, n in zip(factors, needed, strict=True)
        )
        return cls(*made)

    @property
    def all(self) -> tuple[Tensor | None, ...]:
        """All three, in order."""
        return self.states, self.item_weight, self.item_bias


class BlockGradients:
    """A row block's share of a product's gradients, added up tile by tile: scale [R] · coefficients [R, C]."""

    def __init__(self, states: Tensor, item_weight: Tensor, gradients: Gradients, rows: slice, scale: Tensor) -> None:
        self._item_weight, self._gradients, self._rows = item_weight, gradients, rows
        self._scale = scale.unsqueeze(1)
        self._scaled_states = states[rows] * self._scale
        self._of_states = torch.zeros_like(self._scaled_states)

    def add(self, items: slice, coefficients: Tensor) -> None:
        """Add a tile to the gradients of states and item weight."""
        if self._gradients.states is not None:
            self._of_states.addmm_(coefficients, self._item_weight[items])
        if self._gradients.item_weight is not None:
            self._gradients.item_weight[items].addmm_(coefficients.T, self._scaled_states)

    def add_bias(self, items: slice, coefficients: Tensor) -> None:
        """Add a tile to the gradient of the bias."""
        if self._gradients.item_bias is not None:
            self._gradients.item_bias[items].addmv_(coefficients.T, self._scale.squeeze(1))

    def finish(self) -> None:
        """Write the states' gradient, after all tiles."""
        if self._gradients.states is not None:
            torch.mul(self._of_states, self._scale, out=self._gradients.states[self._rows])


class RowBlock:
    """The examples `rows` of a problem, their tiles in the buffers of a workspace."""

    def __init__(self, problem: Problem, plan: Plan, space: Workspace, rows: slice) -> None:
        self.problem, self.plan, self.space, self.rows = problem, plan, space, rows
        self.num_rows = rows.stop - rows.start
        self.shifts: Tensor | None = None
        self._filled = False

    def tile(self, index: int, items: slice) -> Tile:
        """The buffers of a tile, with what the last step left in them."""
        return self.space.tile(index, self.num_rows, items.stop - items.start)

    def filled_tile(self, index: int, items: slice) -> Tile:
        """The same, with the student's logits z in the first and the labels' t in the second."""
        tile = self.tile(index, items)
        self.problem.student.tile(self.rows, items, out=tile[0])
        if self.problem.labels is not None:
            self.problem.labels.tile(self.rows, items, out=tile[1])
        return tile

    def find_shifts(self) -> None:
        """Set the shifts of this block to the largest logit of each example: a pass over all tiles."""
        num_sides = 2 if self.problem.labels is not None and self.problem.labels.is_shifted else 1
        self.shifts = self.problem.weights.new_full((num_sides, self.num_rows), -torch.inf)
        for index, items in enumerate(self.plan.item_slices()):
            for shift, logits in zip(self.shifts, self.filled_tile(index, items), strict=False):
                torch.maximum(shift, logits.amax(1), out=shift)
        self.problem.catalog.all_max(self.shifts)
        self._filled = self.plan.kept

    def reduced_tile(self, index: int, items: slice, sums: Tensor) -> Tile:
        """Bring a tile to what its divergence keeps of it, and add it to `sums` [num_sums, R]."""
        tile = (self.tile if self._filled else self.filled_tile)(index, items)
        if self.problem.costs is not None:
            self.problem.costs.tile(self.rows, items, tile[2], tile[3])
        if self.shifts is None:
            self.problem.divergence.reduce(tile, sums, torch.exp_)
            return tile
        for shift, logits in zip(self.shifts, tile, strict=False):
            logits.sub_(shift.unsqueeze(1))
        self.problem.divergence.reduce(tile, sums, exp_floored_)
        return tile

    def statistics(self) -> Statistics:
        """Pass 1: the sums over the catalog, in terms of the shifted logits."""
        problem = self.problem
        target = self._at_targets(problem.student, 0)
        label = None if problem.labels is None else self._at_targets(problem.labels, 1)
        sums = problem.weights.new_zeros(problem.divergence.num_sums, self.num_rows)
        for tile, items in enumerate(self.plan.item_slices()):
            self.reduced_tile(tile, items, sums)
        self._filled = False
        return Statistics(target, label, sums).over(problem.catalog)

    def _at_targets(self, factors: FactoredLabels | TemperedLabels, side: int) -> Tensor:
        """z or t of each example's target [R], shifted; 0 where it is in another rank's slice."""
        problem = self.problem
        if not problem.student.num_items:
            return problem.weights.new_zeros(self.num_rows)
        found = factors.at(self.rows, problem.index[self.rows], problem.weights.dtype)
        if self.shifts is not None and side < len(self.shifts):
            found = found - self.shifts[side]
        return problem.only_here(found, self.rows)

    def add_gradients(self, terms: Terms, of_student: Gradients, of_costs: Gradients | None) -> None:
        """Pass 2: add this block's share to the gradients, from kept tiles or from tiles made again."""
        student, costs, weights = self.problem.student, self.problem.costs, self.problem.weights[self.rows]
        scale = terms.scale * weights
        block = BlockGradients(student.states, student.item_weight, of_student, self.rows, scale)
        unused = weights.new_zeros(self.problem.divergence.num_sums, self.num_rows)
        cost_block = None
        if costs is not None and of_costs is not None:
            cost_block = BlockGradients(costs.states, costs.item_weight, of_costs, self.rows, scale)
        for index, items in enumerate(self.plan.item_slices()):
            tile = self.tile(index, items) if self.plan.kept else self.reduced_tile(index, items, unused)
            first, *others = self.problem.divergence.parts(tile)
            for part, ratio in zip(others, terms.ratios, strict=True):
                first.addcmul_(part, ratio.unsqueeze(1))
            block.add(items, first)
            block.add_bias(items, first)
            if cost_block is not None:
                mass, slope = self.problem.divergence.cost_parts(tile)
                cost_block.add(items, slope)
                cost_block.add_bias(items, mass)
        block.finish()
        if cost_block is not None:
            cost_block.finish()
        self._add_at_targets(terms.target * weights, of_student)

    def _add_at_targets(self, coefficient: Tensor, gradients: Gradients) -> None:
        student, index = self.problem.student, self.problem.index[self.rows]
        if not student.num_items:
            return
        coefficient = self.problem.only_here(coefficient, self.rows)
        if gradients.states is not None:
            gradients.states[self.rows].addcmul_(student.item_weight[index], coefficient.unsqueeze(1))
        if gradients.item_weight is not None:
            gradients.item_weight.index_add_(0, index, student.states[self.rows] * coefficient.unsqueeze(1))
        if gradients.item_bias is not None:
            gradients.item_bias.index_add_(0, index, coefficient)


def evaluate(problem: Problem, needed: Sequence[bool]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Weighted sums of the losses, and the gradients of the first of them.

    The sums are over this rank's own examples, and the gradients those of the sums of all ranks of the catalog group:
    whole for the item tables, and the slice's share for the states. The ranks go through the same row blocks.

    Returns the sums [3] over the examples of the loss, of CE and of the divergence, and the gradients with respect
    to those of the student's states, item weight and item bias, and of the costs' states, item weight and
    maxima where there are costs, that are `needed` (3 or 6 answers).
    """
    student, costs, weights = problem.student, problem.costs, problem.weights
    of_student = Gradients.zeros((student.states, student.item_weight, student.item_bias), needed[:3])
    of_costs = None
    if costs is not None:
        of_costs = Gradients.zeros((costs.states, costs.item_weight, costs.maxima), needed[3:])
    totals = weights.new_zeros(3)
    gradients = of_student.all + (of_costs.all if of_costs else ())
    if student.num_examples == 0:
        return totals, gradients
    num_kept = problem.divergence.num_kept
    most = problem.catalog.most_rows
    cut = replace(
        plan(student.num_examples, most, num_kept, weights.dtype, weights.device), num_items=student.num_items
    )
    space = Workspace(cut, num_kept, weights)
    # To learn whether shifts are needed, the host of a GPU would wait for it: there they are always found.
    safe = weights.device.type == "cpu" and _is_safe(problem)
    for rows in cut.row_blocks():
        block = RowBlock(problem, cut, space, rows)
        if not safe:
            block.find_shifts()
        terms = problem.divergence.combine(block.statistics())
        totals += _weighted_sums(terms, problem.own_weights[rows], problem.divergence.shares)
        if any(gradient is not None for gradient in gradients):
            block.add_gradients(terms, of_student, of_costs)
    return totals, gradients


def _is_safe(problem: Problem) -> bool:
    """Whether no logit can overflow without a shift, on any slice."""
    bound = problem.student.bound()
    if problem.labels is not None:
        bound = torch.maximum(bound, problem.labels.bound())
    return problem.catalog.all_true(bound <= SAFE_LOGIT)


def _weighted_sums(terms: Terms, weights: Tensor, shares: tuple[float, float]) -> Tensor:
    cross_entropy, divergence = torch.dot(weights, terms.cross_entropy), torch.dot(weights, terms.divergence)
    return torch.stack([cross_entropy * shares[0] + divergence * shares[1], cross_entropy, divergence])


class TiledLoss(torch.autograd.Function):
    """Computes the loss and, where a gradient will be asked for, the gradients in the same go.

    So nothing of the examples × items problem is kept for the backward pass, which only multiplies. `factors` are
    those whose gradients `evaluate` gives, in its order, of which `problem` holds detached copies.
    """

    @staticmethod
    def forward(
        ctx: Any, problem: Problem, with_gradients: bool, *factors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        needed = [with_gradients and need for need in ctx.needs_input_grad[2:]]
        device = problem.weights.device
        with torch.autocast(device.type, enabled=False):
            totals, gradients = evaluate(problem, needed)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if factor is None else factor.dtype for factor in factors]
        total, cross_entropy, divergence = totals.unbind()
        ctx.mark_non_differentiable(cross_entropy, divergence)
        return total.clone(), cross_entropy, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (
            None if gradient is None else (gradient * grads[0]).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return None, None, *scaled
