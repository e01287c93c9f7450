"""The tiled evaluation: statistics of a row block, its losses, and its gradients, tile by tile."""

from dataclasses import dataclass

import torch
from torch import Tensor

from csrec_dist.objectives.divergences import Divergence, Statistics, Terms, exp_floored_
from csrec_dist.objectives.soft_labels import FactoredLabels, SoftLabels
from csrec_dist.objectives.tiles import Plan, Tile, Workspace, plan

SAFE_LOGIT = 40.0
"""Logits within ±40 are exponentiated as they are: sums of e^±40 and their ratios are normal fp32 numbers."""


@dataclass(frozen=True)
class Problem:
    """Everything an evaluation reads. The student's factors [N, d], [V, d], [V] have the computing type."""

    student: FactoredLabels
    index: Tensor
    """[N] item rows of the targets: target − 1."""
    weights: Tensor
    """[N] in the computing type."""
    labels: SoftLabels | None
    divergence: Divergence
    scale: float
    """1/T of the labels' temperature T."""
    beta: float


@dataclass
class Gradients:
    """The gradients that were asked for, with respect to the student's factors; None for the others."""

    states: Tensor | None
    item_weight: Tensor | None
    item_bias: Tensor | None

    @classmethod
    def zeros(cls, student: FactoredLabels, needed: tuple[bool, bool, bool]) -> "Gradients":
        """Zero gradients for those of states, item weight and item bias that are needed."""
        factors = (student.states, student.item_weight, student.item_bias)
        made = (
            torch.zeros_like(f, memory_format=torch.contiguous_format) if n and f is not None else None
            for f, n in zip(factors, needed, strict=True)
        )
        return cls(*made)

    @property
    def any(self) -> bool:
        """Whether there is any gradient to compute."""
        return any(g is not None for g in (self.states, self.item_weight, self.item_bias))


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
            self.problem.labels.tile(self.rows, items, scale=self.problem.scale, out=tile[1])
        return tile

    def find_shifts(self) -> None:
        """Set the shifts of this block to the largest logit of each example: a pass over all tiles."""
        num_sides = 1 if self.problem.labels is None else 2
        self.shifts = self.problem.weights.new_full((num_sides, self.num_rows), -torch.inf)
        for index, items in enumerate(self.plan.item_slices()):
            for shift, logits in zip(self.shifts, self.filled_tile(index, items), strict=False):
                torch.maximum(shift, logits.amax(1), out=shift)
        self._filled = self.plan.kept

    def reduced_tile(self, index: int, items: slice, sums: Tensor) -> Tile:
        """Bring a tile to what its divergence keeps of it, and add it to `sums` [3, R]."""
        tile = (self.tile if self._filled else self.filled_tile)(index, items)
        if self.shifts is None:
            self.problem.divergence.reduce(tile, sums, torch.exp_)
            return tile
        for shift, logits in zip(self.shifts, tile, strict=False):
            logits.sub_(shift.unsqueeze(1))
        self.problem.divergence.reduce(tile, sums, exp_floored_)
        return tile

    def statistics(self) -> Statistics:
        """Pass 1: the sums over the catalog, in terms of the shifted logits."""
        problem, index = self.problem, self.problem.index[self.rows]
        target = problem.student.at(self.rows, index, problem.weights.dtype)
        label = None
        if problem.labels is not None:
            label = problem.labels.at(self.rows, index, problem.weights.dtype) * problem.scale
        if self.shifts is not None:
            target = target - self.shifts[0]
            label = None if label is None else label - self.shifts[1]
        sums = problem.weights.new_zeros(3, self.num_rows)
        for tile, items in enumerate(self.plan.item_slices()):
            self.reduced_tile(tile, items, sums)
        self._filled = False
        return Statistics(target, label, sums)

    def add_gradients(self, terms: Terms, gradients: Gradients) -> None:
        """Pass 2: add this block's share to the gradients, from kept tiles or from tiles made again."""
        student, weights = self.problem.student, self.problem.weights[self.rows]
        scale = (terms.scale * weights).unsqueeze(1)
        scaled_states = student.states[self.rows] * scale
        of_states = torch.zeros_like(scaled_states)
        unused = weights.new_zeros(3, self.num_rows)
        for index, items in enumerate(self.plan.item_slices()):
            tile = self.tile(index, items) if self.plan.kept else self.reduced_tile(index, items, unused)
            first, second = self.problem.divergence.parts(tile)
            if second is not None and terms.ratio is not None:
                first.addcmul_(second, terms.ratio.unsqueeze(1))
            if gradients.states is not None:
                of_states.addmm_(first, student.item_weight[items])
            if gradients.item_weight is not None:
                gradients.item_weight[items].addmm_(first.T, scaled_states)
            if gradients.item_bias is not None:
                gradients.item_bias[items].addmv_(first.T, scale.squeeze(1))
        if gradients.states is not None:
            torch.mul(of_states, scale, out=gradients.states[self.rows])
        self._add_at_targets(terms.target * weights, gradients)

    def _add_at_targets(self, coefficient: Tensor, gradients: Gradients) -> None:
        student, index = self.problem.student, self.problem.index[self.rows]
        if gradients.states is not None:
            gradients.states[self.rows].addcmul_(student.item_weight[index], coefficient.unsqueeze(1))
        if gradients.item_weight is not None:
            gradients.item_weight.index_add_(0, index, student.states[self.rows] * coefficient.unsqueeze(1))
        if gradients.item_bias is not None:
            gradients.item_bias.index_add_(0, index, coefficient)


def evaluate(problem: Problem, needed: tuple[bool, bool, bool]) -> tuple[Tensor, Gradients]:
    """Weighted sums of the losses, and the gradients of the first of them.

    Returns the sums [3] over the examples of (1−β) CE + β KL, of CE and of KL, and the gradients with respect to
    those of states, item weight and item bias that are `needed`.
    """
    student, weights = problem.student, problem.weights
    gradients = Gradients.zeros(student, needed)
    totals = weights.new_zeros(3)
    if student.num_examples == 0:
        return totals, gradients
    num_kept = problem.divergence.num_kept
    cut = plan(student.num_examples, student.num_items, num_kept, weights.dtype, weights.device)
    space = Workspace(cut, num_kept, weights)
    safe = _is_safe(problem)
    for rows in cut.row_blocks():
        block = RowBlock(problem, cut, space, rows)
        if not safe:
            block.find_shifts()
        terms = problem.divergence.combine(block.statistics(), problem.beta)
        totals += _weighted_sums(terms, weights[rows], problem.beta)
        if gradients.any:
            block.add_gradients(terms, gradients)
    return totals, gradients


def _is_safe(problem: Problem) -> bool:
    """Whether no logit can overflow without a shift. On CUDA this waits for the device once."""
    bound = problem.student.bound()
    if problem.labels is not None:
        bound = torch.maximum(bound, problem.labels.bound() * problem.scale)
    return bool(bound <= SAFE_LOGIT)


def _weighted_sums(terms: Terms, weights: Tensor, beta: float) -> Tensor:
    cross_entropy, divergence = torch.dot(weights, terms.cross_entropy), torch.dot(weights, terms.divergence)
    return torch.stack([cross_entropy * (1 - beta) + divergence * beta, cross_entropy, divergence])
