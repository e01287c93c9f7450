"""A loss and its gradients by Triton kernels: what `tiled.losses_and_gradients` does, without a tile in memory.

Shapes: N examples, V item rows of this rank's slice, d and K widths of student and labels, S splits of a kernel's
loop. The sums of the splits are added in their order, then over the ranks that share the catalog, as tiles are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from csrec_dist import kernels
from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.losses.configurations import Configuration, chunk, configuration
from csrec_dist.losses.divergences import Forward, OneHot, Reverse, Statistics, Terms
from csrec_dist.losses.problem import Gradients, Problem
from csrec_dist.losses.soft_labels import FactoredLabels, Tempered

ITEMS_OF_SPLIT = 2560
MOST_SPLITS = 16
"""Examples alone are too few programs for a GPU, so the sums over the catalog are split. How often follows from V
alone, never from N or the device: so the order of sums is the same for every batch and on all ranks."""
PIECE_BYTES = 56 << 20
"""Of the logits' gradients that are in memory at a time, until they have been multiplied with both factors."""
ROUNDED_BYTES = 32 << 20
"""Tables of which copies in bf16 take no more are rounded once, and not again for each tile; the bits are the same."""
MOST_ROWS = 1 << 14
"""Examples of a piece."""
PROGRAMS = 528
"""Four on each multiprocessor of an H100."""
ROWS_OF_MERGE = 64
"""Examples of a program that adds up the sums of the splits."""
KERNELS = "csrec_dist.losses.kernels"
LOSSES = {OneHot: 0, Reverse: 1, Forward: 2}


def takes(problem: Problem) -> bool:
    """Whether there are kernels for this problem: fp32, one-hot or factored labels, a known GPU and widths."""
    device, labels = problem.weights.device, problem.labels
    if device.type != "cuda" or problem.weights.dtype != torch.float32 or problem.costs is not None:
        return False
    factored = labels is None or (isinstance(labels, Tempered) and isinstance(labels.labels, FactoredLabels))
    if not factored or type(problem.divergence) not in LOSSES or _configuration(problem) is None:
        return False
    return group_has_kernels(problem.catalog, device)


_ANSWERS: dict[tuple[int, ...], bool] = {}
"""Of `group_has_kernels`. The ranks of a group alone ask for it, and together: all of them know the answer or none."""


def group_has_kernels(catalog: CatalogSlice, device: torch.device) -> bool:
    """Whether all ranks that share the catalog have kernels for their device, which does not change: asked once."""
    if catalog.is_whole:
        return kernels.run_on(device)
    ranks = catalog.group.ranks
    if ranks not in _ANSWERS:
        _ANSWERS[ranks] = on_all_ranks(catalog, kernels.run_on(device), device)
    return _ANSWERS[ranks]


def on_all_ranks(catalog: CatalogSlice, has_kernels: bool, device: torch.device) -> bool:
    """Whether all ranks that share the catalog have kernels.

    Kernels and tiles meet in other collectives: with GPUs of two kinds the ranks would wait for each other for ever.
    One rank has nobody to ask, and its host does not wait.
    """
    return has_kernels if catalog.is_whole else catalog.all_true(torch.tensor(has_kernels, device=device))


def losses_and_gradients(problem: Problem, needed: Sequence[bool]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The same as `tiled.losses_and_gradients`."""
    student = problem.student
    gradients = Gradients.zeros((student.states, student.item_weight, student.item_bias), needed[:3])
    if student.num_examples == 0:
        return problem.weights.new_zeros(3), gradients.all
    blocks = _configuration(problem)
    assert blocks is not None, "there are no kernels for these widths"
    launches = Kernels(problem, blocks)
    shifts, statistics = launches.statistics()
    terms = problem.divergence.combine(statistics.over(problem.catalog))
    if any(gradient is not None for gradient in gradients.all):
        launches.add_gradients(shifts, terms, gradients)
    return problem.sums(terms, slice(0, student.num_examples)), gradients.all


def _configuration(problem: Problem) -> Configuration | None:
    labels = problem.labels
    label_width = 0 if labels is None else labels.labels.states.shape[1]  # type: ignore[attr-defined]
    return configuration(problem.precision, problem.student.states.shape[1], label_width)


def _splits(total: int, most: int, block: int) -> tuple[int, int]:
    """How many parts, at most `most`, and the rows of a part: whole blocks, but for the last part."""
    size = -(-total // (most * block)) * block
    return -(-total // size), size


def _slices(total: int, most: int, block: int) -> Iterator[slice]:
    """Even slices of at most `most` rows, in whole blocks."""
    size = _splits(total, -(-total // (most // block * block)), block)[1] if total else 1
    return (slice(first, min(first + size, total)) for first in range(0, total, size))


@dataclass(frozen=True)
class SingleLogits:
    """The logits scale · (states · item_weightᵀ + item_bias) as kernels make them, one of a row at a time.

    `is_rounded`: their factors are rounded to bf16 and so are these, or else a loss could be below 0.
    """

    states: Tensor
    item_weight: Tensor
    item_bias: Tensor | None
    scale: float
    is_rounded: bool

    def at(self, rows: slice, items: Tensor, dtype: torch.dtype) -> Tensor:
        """The logit of one item row for each example of `rows`: [R], in `dtype`."""
        left, right = self.states[rows], self.item_weight[items]
        if self.is_rounded:
            left, right = left.bfloat16(), right.bfloat16()
        logits = (left.to(dtype) * right.to(dtype)).sum(1)
        return self.scale * (logits if self.item_bias is None else logits + self.item_bias[items].to(dtype))


class Kernels:
    """The kernels' launches for one problem."""

    def __init__(self, problem: Problem, blocks: Configuration) -> None:
        self.problem, self._blocks = problem, blocks
        student, labels = problem.student, problem.labels
        self._student = [student.states.contiguous(), student.item_weight.contiguous(), student.item_bias]
        self._labels: list[Tensor | None] = [None, None, None]
        self._scale = 1.0
        if labels is not None:
            assert isinstance(labels, Tempered)
            assert isinstance(labels.labels, FactoredLabels)
            factors, self._scale = labels.labels, labels.scale
            self._labels = [factors.states.contiguous(), factors.item_weight.contiguous(), factors.item_bias]
        self._num_examples, self._num_items = student.num_examples, student.num_items
        if problem.precision == "medium" and self._rounded_bytes <= ROUNDED_BYTES:
            for side in (self._student, self._labels):
                side[:2] = [None if factor is None else factor.to(torch.bfloat16) for factor in side[:2]]

    @property
    def _rounded_bytes(self) -> int:
        tables = self._student[1], self._labels[1]
        return sum(2 * table.numel() for table in tables if table is not None)

    def statistics(self) -> tuple[Tensor, Statistics]:
        """The shifts [sides, N] of student and labels, which are the largest logits, and the sums above them."""
        problem, sides = self.problem, 1 if self.problem.labels is None else 2
        merged = self._sums(2 if sides == 1 else 5)
        shifts, sums = merged[:sides], merged[sides:]
        if not problem.catalog.is_whole:
            # The sums are above this slice's largest logits m; above the group's M they are exp(m − M) times as large.
            own = shifts.clone()
            problem.catalog.all_max(shifts)
            rise = own - shifts
            factors = rise.exp()
            if sides == 2:
                # Σ (z' − t') exp: each difference moves by its two shifts, too; before the other sums are rescaled.
                side = int(isinstance(problem.divergence, Forward))
                sums[2] = (sums[2] + sums[side] * (rise[0] - rise[1])) * factors[side]
            sums[:sides] *= factors
        label = None
        if sides == 2:
            label = problem.at_targets(self._logits(self._labels, self._scale), self._all, shifts[1])
        return shifts, Statistics(problem.at_targets(self._logits(self._student), self._all, shifts[0]), label, sums)

    def _logits(self, side: Sequence[Tensor | None], scale: float = 1.0) -> "SingleLogits":
        states, item_weight, item_bias = side
        assert states is not None
        assert item_weight is not None
        return SingleLogits(states, item_weight, item_bias, scale, self.problem.precision == "medium")

    def _sums(self, num_sums: int) -> Tensor:
        """What `merge_kernel` writes [num_sums, N]: of the splits of this slice, of which no items have none."""
        blocks, number, size = self._blocks.statistics, 0, 0
        if self._num_items:
            most = min(MOST_SPLITS, -(-self._num_items // ITEMS_OF_SPLIT))
            number, size = _splits(self._num_items, most, blocks.items)
        partials = self.problem.weights.new_empty(number, num_sums, self._num_examples)
        if number:
            sizes = self._num_examples, self._num_items, size, self._scale
            self._launch("statistics", self._num_examples, number, [partials, *sizes])
        merged = partials.new_empty(num_sums, self._num_examples)
        constants = {"LOSS": LOSSES[type(self.problem.divergence)], "BN": ROWS_OF_MERGE}
        grid = -(-self._num_examples // ROWS_OF_MERGE), 1, 1
        arguments = [partials, merged, self._num_examples, number]
        kernels.launch(KERNELS, "merge_kernel", grid, arguments, constants, 4, 1)
        return merged

    def add_gradients(self, shifts: Tensor, terms: Terms, gradients: Gradients) -> None:
        """Add the gradients of Σ weights · losses, a piece of the logits' gradients at a time."""
        columns, (states, weight, _) = self.columns(shifts, terms), self._student
        assert states is not None
        assert weight is not None
        dtype = torch.bfloat16 if self.problem.precision == "medium" else torch.float32
        room = PIECE_BYTES // dtype.itemsize
        buffer = states.new_empty(min(room, self._num_examples * self._num_items), dtype=dtype)
        for rows in _slices(self._num_examples, MOST_ROWS, 16):
            left, most = states[rows].to(dtype), room // (rows.stop - rows.start)
            for items in _slices(self._num_items, most, self._blocks.coefficients.items):
                piece = self.piece(rows, items, columns, buffer)
                _add_products(gradients, rows, items, piece, left, weight[items].to(dtype))

    def columns(self, shifts: Tensor, terms: Terms) -> list[Tensor]:
        """What a piece needs to know of the examples, each [N]: shifts, scales, ratios, targets and their scales."""
        problem, weights = self.problem, self.problem.weights
        target = problem.only_here(terms.target * weights, self._all)
        index = problem.index if problem.catalog.is_whole else problem.index.masked_fill(~problem.here, -1)
        ratios = terms.ratios[0] if terms.ratios else terms.scale
        return [shifts[0], shifts[-1], terms.scale * weights, ratios, target, index]

    def piece(self, rows: slice, items: slice, columns: list[Tensor], buffer: Tensor) -> Tensor:
        """The gradients [R, C] of the logits of some examples and items."""
        num_rows, num_items = rows.stop - rows.start, items.stop - items.start
        piece, blocks = buffer[: num_rows * num_items].view(num_rows, num_items), self._blocks.coefficients
        number, size = _splits(num_items, max(1, PROGRAMS * blocks.examples // num_rows), blocks.items)
        sizes = num_rows, num_items, size, self._scale, rows.start, items.start
        self._launch("coefficients", num_rows, number, [*columns, piece, *sizes])
        return piece

    def _launch(self, name: str, num_examples: int, number: int, arguments: Sequence[Any]) -> None:
        """Launch a kernel whose programs have some of the examples each, and one of `number` splits of the items."""
        blocks, (states, *_), (labels, *_) = getattr(self._blocks, name), self._student, self._labels
        assert states is not None
        width, label_width = states.shape[1], 1 if labels is None else labels.shape[1]
        constants = {
            "D": width,
            "K": label_width,
            "LOSS": LOSSES[type(self.problem.divergence)],
            "HAS_BIAS": self._student[2] is not None,
            "HAS_LABEL_BIAS": self._labels[2] is not None,
            "BN": blocks.examples,
            "BV": blocks.items,
            "D_CHUNK": chunk(width, blocks),
            "K_CHUNK": chunk(label_width, blocks),
            "MODE": blocks.mode,
        }
        factors = (states if factor is None else factor for factor in (*self._student, *self._labels))
        grid = -(-num_examples // blocks.examples), number, 1
        arguments = [*factors, *arguments]
        kernels.launch(KERNELS, f"{name}_kernel", grid, arguments, constants, blocks.warps, blocks.stages)

    @property
    def _all(self) -> slice:
        return slice(0, self._num_examples)


def _add_products(
    gradients: Gradients, rows: slice, items: slice, piece: Tensor, states: Tensor, item_weight: Tensor
) -> None:
    """Add to the gradients what a piece [R, C] of the logits' gradients gives with the factors [R, d] and [C, d]."""
    if gradients.states is not None:
        _add_product(gradients.states[rows], piece, item_weight)
    if gradients.item_weight is not None:
        _add_product(gradients.item_weight[items], piece.T, states)
    if gradients.item_bias is not None:
        gradients.item_bias[items] += piece.sum(0, dtype=torch.float32)


def _add_product(sums: Tensor, left: Tensor, right: Tensor) -> None:
    """sums += left · right, added up in fp32 whatever the factors are."""
    if left.dtype == torch.float32:
        sums.addmm_(left, right)
    elif left.device.type == "cuda":
        torch.addmm(sums, left, right, out_dtype=torch.float32, out=sums)
    else:
        sums.addmm_(left.float(), right.float())
