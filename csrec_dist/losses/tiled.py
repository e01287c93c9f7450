"""A loss and its gradients tile by tile: for each block of examples the statistics, the losses and the gradients."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from csrec_dist.losses.divergences import Statistics, Terms, exp_, exp_floored_
from csrec_dist.losses.problem import Gradients, Problem
from csrec_dist.losses.soft_labels import FactoredLabels, Tempered, TemperedLabels
from csrec_dist.losses.tiles import Tile, Tiling, Workspace, choose_tiling
from csrec_dist.process_state import cpu_multiplies_bf16

SAFE_LOGIT = 40.0
"""Logits within ±40 are exponentiated as they are: sums of e^±40 and their ratios are normal fp32 numbers."""


class RoundedFactors:
    """Factors of logits in bf16, for a CPU that multiplies it: sums are taken in fp32, and results rounded to bf16."""

    def __init__(self, factors: FactoredLabels, scale: float = 1.0) -> None:
        self._states, self.item_weight = (factors.states * scale).bfloat16(), factors.item_weight.bfloat16()
        self._item_bias = None if factors.item_bias is None else factors.item_bias * scale

    def tile(self, rows: slice, items: slice, *, out: Tensor) -> Tensor:
        """Write scale · logits of examples `rows` and item rows `items` into `out` [R, C] and return it."""
        out.copy_(self._states[rows] @ self.item_weight[items].T)
        return out if self._item_bias is None else out.add_(self._item_bias[items])

    def at(self, rows: slice, items: Tensor, dtype: torch.dtype) -> Tensor:
        """The same of one item row for each example of `rows`: [R]. So rounding puts no loss below 0."""
        factors = self._states[rows].to(dtype), self.item_weight[items].to(dtype)
        logits = (factors[0] * factors[1]).sum(1).bfloat16().to(dtype)
        return logits if self._item_bias is None else logits + self._item_bias[items].to(dtype)


@dataclass(frozen=True)
class Multiplied:
    """The factors whose products are a problem's tiles: as they are, or rounded to bf16."""

    student: FactoredLabels | RoundedFactors
    labels: TemperedLabels | RoundedFactors | None

    @classmethod
    def of(cls, problem: Problem) -> "Multiplied":
        """Rounded if the problem asks for it and the processor gains by it; labels of other forms stay as they are."""
        weights, labels = problem.weights, problem.labels
        is_rounded = problem.precision == "medium" and weights.device.type == "cpu" and weights.dtype == torch.float32
        if not is_rounded or not cpu_multiplies_bf16():
            return cls(problem.student, labels)
        if isinstance(labels, Tempered) and isinstance(labels.labels, FactoredLabels):
            return cls(RoundedFactors(problem.student), RoundedFactors(labels.labels, labels.scale))
        return cls(RoundedFactors(problem.student), labels)


class BlockGradients:
    """A row block's share of a product's gradients, added up tile by tile: scale [R] · coefficients [R, C].

    `item_weight` has the type in which gradients are multiplied; they are summed over the tiles in that of `states`.
    """

    def __init__(self, states: Tensor, item_weight: Tensor, gradients: Gradients, rows: slice, scale: Tensor) -> None:
        self._item_weight, self._gradients, self._rows = item_weight, gradients, rows
        self._scale = scale.unsqueeze(1)
        scaled_states = states[rows] * self._scale
        self._of_states = torch.zeros_like(scaled_states)
        self._scaled_states = scaled_states.to(item_weight.dtype)

    def add(self, items: slice, coefficients: Tensor) -> None:
        """Add a tile to the gradients of states and item weight."""
        coefficients = coefficients.to(self._item_weight.dtype)
        if self._gradients.states is not None:
            _add_product(self._of_states, coefficients, self._item_weight[items])
        if self._gradients.item_weight is not None:
            _add_product(self._gradients.item_weight[items], coefficients.T, self._scaled_states)

    def add_bias(self, items: slice, coefficients: Tensor) -> None:
        """Add a tile to the gradient of the bias."""
        if self._gradients.item_bias is not None:
            self._gradients.item_bias[items].addmv_(coefficients.T, self._scale.squeeze(1))

    def finish(self) -> None:
        """Write the states' gradient, after all tiles."""
        if self._gradients.states is not None:
            torch.mul(self._of_states, self._scale, out=self._gradients.states[self._rows])


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


class ExampleBlock:
    """The examples `rows` of a problem, their tiles in the buffers of a workspace."""

    def __init__(self, problem: Problem, multiplied: Multiplied, tiling: Tiling, space: Workspace, rows: slice) -> None:
        self.problem, self.multiplied, self.tiling, self.space, self.rows = problem, multiplied, tiling, space, rows
        self.num_rows = rows.stop - rows.start
        self.shifts: Tensor | None = None
        self._filled = False

    def tile(self, index: int, items: slice) -> Tile:
        """The buffers of a tile, with the content that the last pass left in them."""
        return self.space.tile(index, self.num_rows, items.stop - items.start)

    def filled_tile(self, index: int, items: slice) -> Tile:
        """The same, with the student's logits z in the first and the labels' t in the second."""
        tile = self.tile(index, items)
        self.multiplied.student.tile(self.rows, items, out=tile[0])
        if self.multiplied.labels is not None:
            self.multiplied.labels.tile(self.rows, items, out=tile[1])
        return tile

    def find_shifts(self) -> None:
        """Set the shifts of this block to the largest logit of each example: a pass over all tiles."""
        num_sides = 2 if self.problem.labels is not None and self.problem.labels.is_shifted else 1
        self.shifts = self.problem.weights.new_full((num_sides, self.num_rows), -torch.inf)
        for index, items in enumerate(self.tiling.item_slices()):
            for shift, logits in zip(self.shifts, self.filled_tile(index, items), strict=False):
                torch.maximum(shift, logits.amax(1), out=shift)
        self.problem.catalog.all_max(self.shifts)
        self._filled = self.tiling.is_kept

    def reduced_tile(self, index: int, items: slice, sums: Tensor) -> Tile:
        """Replace a tile by what its divergence keeps of it, and add it to `sums` [num_sums, R]."""
        tile = (self.tile if self._filled else self.filled_tile)(index, items)
        if self.problem.costs is not None:
            self.problem.costs.tile(self.rows, items, tile[2], tile[3])
        if self.shifts is None:
            self.problem.divergence.reduce(tile, sums, exp_)
            return tile
        for shift, logits in zip(self.shifts, tile, strict=False):
            logits.sub_(shift.unsqueeze(1))
        self.problem.divergence.reduce(tile, sums, exp_floored_)
        return tile

    def statistics(self) -> Statistics:
        """Pass 1: the sums over the catalog, in terms of the shifted logits."""
        problem, (student, labels) = self.problem, (self.multiplied.student, self.multiplied.labels)
        shifts = [None, None] if self.shifts is None else [*self.shifts, None]
        target = problem.at_targets(student, self.rows, shifts[0])
        label = None if labels is None else problem.at_targets(labels, self.rows, shifts[1])
        sums = problem.weights.new_zeros(problem.divergence.num_sums, self.num_rows)
        for tile, items in enumerate(self.tiling.item_slices()):
            self.reduced_tile(tile, items, sums)
        self._filled = False
        return Statistics(target, label, sums).over(problem.catalog)

    def add_gradients(self, terms: Terms, of_student: Gradients, of_costs: Gradients | None) -> None:
        """Pass 2: add this block's share to the gradients, from kept tiles or from recomputed ones."""
        student, costs, weights = self.problem.student, self.problem.costs, self.problem.weights[self.rows]
        scale = terms.scale * weights
        block = BlockGradients(student.states, self.multiplied.student.item_weight, of_student, self.rows, scale)
        unused = weights.new_zeros(self.problem.divergence.num_sums, self.num_rows)
        cost_block = None
        if costs is not None and of_costs is not None:
            cost_block = BlockGradients(costs.states, costs.item_weight, of_costs, self.rows, scale)
        for index, items in enumerate(self.tiling.item_slices()):
            tile = self.tile(index, items) if self.tiling.is_kept else self.reduced_tile(index, items, unused)
            # part₀ + ratio₁ · part₁ + …: the logits' gradients but for `scale`, which is applied to the sums, and for
            # the target's term, which is added once at the end (see divergences.py).
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


def losses_and_gradients(problem: Problem, needed: Sequence[bool]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Weighted sums of the losses, and the gradients of the first of them.

    The sums are over this rank's own examples; the gradients are those of the sums of all ranks of the catalog group:
    complete for the item tables, and this slice's share for the states. The ranks go through the same row blocks.

    Returns:
        The sums [3] over the examples of the loss, of CE and of the divergence; and the gradients of the student's
        states, item weight and item bias, and with costs of their states, item weight and maxima: None where `needed`
        (3 or 6 answers) is false.
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
    # Tiles are chosen for the largest slice, so that the ranks of a catalog group have the same blocks of examples.
    most = problem.catalog.most_rows
    tiling = choose_tiling(student.num_examples, most, num_kept, weights.dtype, weights.device)
    tiling = replace(tiling, num_items=student.num_items)
    space = Workspace(tiling, num_kept, weights)
    # The host of a GPU would have to wait for it to learn whether shifts are needed: there they are always computed.
    safe = weights.device.type == "cpu" and _is_safe(problem)
    multiplied = Multiplied.of(problem)
    for rows in tiling.row_blocks():
        block = ExampleBlock(problem, multiplied, tiling, space, rows)
        if not safe:
            block.find_shifts()
        terms = problem.divergence.combine(block.statistics())
        totals += problem.sums(terms, rows)
        if any(gradient is not None for gradient in gradients):
            block.add_gradients(terms, of_student, of_costs)
    return totals, gradients


def _is_safe(problem: Problem) -> bool:
    """Whether no logit can overflow without a shift, on any slice."""
    bound = problem.student.bound()
    if problem.labels is not None:
        bound = torch.maximum(bound, problem.labels.bound())
    return problem.catalog.all_true(bound <= SAFE_LOGIT)
