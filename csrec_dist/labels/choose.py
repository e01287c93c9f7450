"""The bytes and the error of each form and number type of labels, measured on a sample; and the choice among them.

Letters: S sampled examples, D the sum of the members' widths, n items of this rank's slice, m members. Sums over
items are over the whole catalog.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise, product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from csrec_dist.data.batches import Batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.errors import UserError
from csrec_dist.labels.combine import member_states
from csrec_dist.labels.contents import label_bytes
from csrec_dist.labels.format import LabelError, Measured
from csrec_dist.labels.labeller import Labeller
from csrec_dist.labels.options import DTYPES, FORMS, DType, Form, LabelOptions
from csrec_dist.labels.top_k import ONE, TopKRows, item_blocks, log_sums

SAMPLE_SEED = 0
MOST_EXAMPLES = 256
FEWEST_EXAMPLES = 8
SAMPLE_GROUPS = 64
"""Row groups that are read for the sample, or one of each shard."""
SAMPLE_NUMBERS = 1 << 23
"""S · V, which bounds S in large catalogs."""
ROWS_BYTES = 16 * 2**20
"""Float64 logits of the examples that are compared at once; one example may take more."""
DIGITS = 3
NOISE = 1e-10
"""Smaller figures come from the order of sums alone; they are written as 0, so that any number of ranks agrees."""


class Reading(NamedTuple):
    """How a student reads the labels: at which temperature, and in which direction of KL."""

    temperature: float = 1.0
    kl: str = "reverse"


UNTEMPERED = Reading()


def candidates(options: LabelOptions, kl: str) -> list[tuple[Form, DType]]:
    """Forms and number types to choose from: those that fit how members are combined and the direction."""
    forms = [form for form in FORMS if options.form in ("auto", form)]
    if options.form == "auto":
        unfit = {"topk"} if kl != "forward" else set()
        unfit |= {"dense", "topk"} if options.combine == "prob_mean" else set()
        forms = [form for form in forms if form not in unfit]
    return list(product(forms, [dtype for dtype in DTYPES if options.dtype in ("auto", dtype)]))


def choose_form(
    labeller: Labeller, options: LabelOptions, reading: Reading, has_bias: bool
) -> tuple[Form, DType, Measured | None]:
    """The form and number type to store, and what was measured; every rank calls this and gets the same answer.

    `reading` decides which errors matter. Of the candidates whose divergence is within the tolerance, the one with the
    fewest bytes is chosen, and among equals the one with the least divergence. With slices of the catalog, dense labels
    are measured, but not chosen.

    Raises:
        UserError: no candidate is within the tolerance, or the sample has numbers that the given type cannot hold.
    """
    possible = candidates(options, reading.kl)
    if not labeller.dataset.splits["train"].num_examples:
        return *possible[0], None
    sample = _Sample.of(labeller, options.keep, reading, has_bias)
    if not len(sample.targets):
        return *possible[0], None
    errors = sample.errors(possible)
    measured = Measured(
        **reading._asdict(),
        tolerance=options.tolerance if options.is_auto else None,
        num_examples=len(sample.targets),
        errors=tuple(errors),
    )
    if not options.is_auto:
        return *possible[0], measured if errors else None
    best = _smallest(errors, options.tolerance, labeller.catalog.is_whole)
    return best.form, best.dtype, measured


def _smallest(errors: Sequence[LabelError], tolerance: float, is_whole: bool) -> LabelError:
    """The candidate with the fewest bytes within the tolerance; UserError when there is none."""
    whole = [error for error in errors if error.form != "dense" or is_whole]
    fitting = [error for error in whole if error.divergence <= tolerance]
    if not fitting:
        listed = ", ".join(f"{error.form} {error.dtype} {error.divergence:g}" for error in errors) or "none can be held"
        raise UserError(
            f"labels.tolerance: no form is within {tolerance:g} nats ({listed}); choose dtype auto or float32, or a "
            "larger tolerance."
        )
    return min(fitting, key=lambda error: (error.bytes, error.divergence))


@dataclass(frozen=True)
class _Sample:
    """Sampled examples: their combined states [S, D] and targets [S], and what their logits are computed with."""

    labeller: Labeller
    reading: Reading
    has_bias: bool
    top_k: TopKRows
    states: Tensor
    targets: Tensor

    @classmethod
    def of(cls, labeller: Labeller, keep: int, reading: Reading, has_bias: bool) -> "_Sample":
        """Encode the sample on all ranks together: each encodes the same examples with its own members."""
        num_items = labeller.dataset.num_items
        size = max(FEWEST_EXAMPLES, min(MOST_EXAMPLES, SAMPLE_NUMBERS // num_items))
        batch = sampled_rows(labeller.dataset, size).to(labeller.device)
        states, targets = member_states(labeller.local_models, batch), batch.targets[batch.targets > 0]
        chosen = torch.from_numpy(np.random.default_rng(SAMPLE_SEED).permutation(len(targets))[:size])
        chosen = chosen.to(labeller.device)
        gathered = labeller.gather_states([part[chosen] for part in states])
        keep, blocks = min(keep, num_items), item_blocks(labeller, has_bias)
        top_k = TopKRows(blocks, labeller.catalog, keep, reading.temperature)
        return cls(labeller, reading, has_bias, top_k, gathered, targets[chosen])

    @cached_property
    def exact(self) -> list[Tensor]:
        """The labels' logits [S, n] in float64; for prob_mean each member's."""
        return self._logits(self.states)

    def errors(self, candidates: list[tuple[Form, DType]]) -> list[LabelError]:
        """The error of each way of storing the labels; those whose numbers do not fit their type are left out."""
        totals = dict.fromkeys(candidates, (0.0, 0.0, 0.0))
        num_rows = max(1, ROWS_BYTES // (8 * self.top_k.num_items))
        for first in range(0, len(self.targets), num_rows):
            rows = slice(first, first + num_rows)
            part = replace(self, states=self.states[rows], targets=self.targets[rows])
            for candidate, (largest, differences, divergences) in totals.items():
                figures = part._figures(*candidate)
                totals[candidate] = max(largest, figures[0]), differences + figures[1], divergences + figures[2]
        finite = {candidate: figures for candidate, figures in totals.items() if math.isfinite(sum(figures))}
        return [self._error(*candidate, *figures) for candidate, figures in finite.items()]

    def _error(self, form: Form, dtype: DType, largest: float, differences: float, divergences: float) -> LabelError:
        num_examples, keep = len(self.targets), self.top_k.keep if form == "topk" else None
        figures = {
            "largest": largest,
            "mean": differences / num_examples,
            "divergence": divergences / num_examples,
        }
        rounded = {name: float(f"{value:.{DIGITS}g}") if value > NOISE else 0.0 for name, value in figures.items()}
        dataset, combination = self.labeller.dataset, self.labeller.combination
        sizes = dataset.splits["train"].num_examples, dataset.num_items, combination.widths, self.has_bias
        num_bytes = label_bytes(form, *sizes, combination.combine, dtype=dtype, keep=keep)
        return LabelError(form=form, dtype=dtype, keep=keep, bytes=num_bytes, **rounded)

    def _figures(self, form: Form, dtype: DType) -> tuple[float, float, float]:
        """The largest difference of logits, and the sums over the examples of mean differences and of divergences."""
        if form == "topk":
            largest, mean, log_q = self._top_k_figures(dtype)
        else:
            if form == "factored":
                logits = self._logits(self.states.to(getattr(torch, dtype)))
            else:
                logits = [part.float().to(getattr(torch, dtype)).double() for part in self.exact]
            largest, mean = self._differences(logits)
            log_q = self._log_q(logits)
        reference, approximate = self._mixed(self._log_q(self.exact)), self._mixed(log_q)
        of, to = (reference, approximate) if self.reading.kl == "forward" else (approximate, reference)
        return largest, mean * len(self.targets), self._sum((of.exp() * (of - to)).sum())

    def _logits(self, states: Tensor) -> list[Tensor]:
        combine, widths = self.labeller.combination.combine, self.labeller.combination.widths
        columns = [slice(0, sum(widths))]
        if combine == "prob_mean":
            columns = [slice(first, stop) for first, stop in pairwise(accumulate(widths, initial=0))]
        rows = self.top_k.rows
        shape = len(states), rows.stop - rows.start
        logits = [torch.zeros(shape, dtype=torch.float64).to(states.device) for _ in columns]
        for block in self.top_k.blocks:
            of_block, of_slice = block.within(rows)
            for number, (part, of_member) in enumerate(zip(logits, columns, strict=True)):
                part[:, of_slice] = states[:, of_member].double() @ block.weight[of_block, of_member].double().T
                if block.bias is not None:
                    bias = block.bias if block.bias.ndim == 1 else block.bias[:, number]
                    part[:, of_slice] += bias[of_block].double()
        return logits

    def _log_q(self, logits: list[Tensor]) -> Tensor:
        """log q [S, n] at the temperature."""
        logs = []
        for part in logits:
            tempered = part / self.reading.temperature
            logs.append(tempered - self.top_k.catalog.log_sum_exp(tempered.logsumexp(1)).unsqueeze(1))
        fitted = self.labeller.combination.weights
        weights = fitted if len(logs) > 1 and fitted else [1 / len(logs)] * len(logs)
        parts = [log + math.log(share) for log, share in zip(logs, weights, strict=True) if share > 0]
        return torch.stack(parts).logsumexp(0)

    def _top_k_figures(self, dtype: DType) -> tuple[float, float, Tensor]:
        """Largest and mean difference of the stored logits, and log q with the other items' mass spread evenly."""
        top_k, num_items = self.top_k(self.states, self.targets), self.top_k.num_items
        values = top_k["values"].to(getattr(torch, dtype)).float()
        sums = log_sums(values, top_k["sums"], self.reading.temperature).double()
        logs = values.double() / self.reading.temperature - sums.unsqueeze(1)
        # At least one unit of the whole-number sums, so that its logarithm is finite.
        others = (1 - logs.exp().sum(1)).clamp_min(1 / ONE) / max(num_items - self.top_k.keep, 1)
        first, stop = self.top_k.rows.start, self.top_k.rows.stop
        log_q = others.log().unsqueeze(1).repeat(1, stop - first)
        columns = top_k["items"].long() - 1 - first
        row, position = ((columns >= 0) & (columns < stop - first)).nonzero(as_tuple=True)
        log_q[row, columns[row, position]] = logs[row, position]
        gaps = (values - top_k["values"]).abs()
        return float(gaps.max()), float(gaps.double().mean()), log_q

    def _differences(self, logits: list[Tensor]) -> tuple[float, float]:
        """Largest and mean difference of logits from the exact ones."""
        gaps = torch.stack([(a - b).abs() for a, b in zip(logits, self.exact, strict=True)])
        largest = gaps.max() if gaps.numel() else gaps.new_zeros(())
        mean = self._sum(gaps.sum()) / (len(gaps) * len(self.targets) * self.top_k.num_items)
        return float(self.top_k.catalog.all_max(largest)), mean

    def _mixed(self, log_q: Tensor) -> Tensor:
        """log r [S, n] of Eq. 19."""
        columns = self.targets - 1 - self.top_k.rows.start
        (row,) = ((columns >= 0) & (columns < log_q.shape[1])).nonzero(as_tuple=True)
        log_r = log_q - math.log(2)
        log_r[row, columns[row]] = log_q[row, columns[row]].exp().log1p() - math.log(2)
        return log_r

    def _sum(self, number: Tensor) -> float:
        return float(self.top_k.catalog.all_sum(number))


def sampled_rows(dataset: Dataset, most: int) -> Batch:
    """About `most` training rows, or fewer, sampled from all shards: some row groups of each, and rows of these."""
    random = np.random.default_rng(SAMPLE_SEED)
    rows: list[np.ndarray] = []
    num_groups = max(1, SAMPLE_GROUPS // dataset.num_shards)
    share = -(-most // (dataset.num_shards * num_groups))
    for number in random.permutation(dataset.num_shards)[:most].tolist():
        shard = dataset.open_shard("train", number)
        for group in random.permutation(len(shard.group_rows))[:num_groups].tolist():
            block = shard.read_group(group)
            chosen = random.permutation(len(block))[:share].tolist()
            rows += [block.values[block.starts[row] : block.starts[row + 1]] for row in chosen]
    items = np.zeros((len(rows), dataset.window), np.int64)
    for number, row in enumerate(rows):
        items[number, : len(row)] = row
    blank = torch.zeros(len(rows), dtype=torch.int64)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    return Batch(torch.from_numpy(items), lengths, torch.ones(len(rows)), blank, blank, blank)
