"""All that is computed for a model on test, in one pass over the logits: metrics, groups, lists, calibration, ranks.

Shapes: B examples of a batch, V items.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from csrec_dist.data.batches import Batch, question
from csrec_dist.distributed.catalog import SharedRows
from csrec_dist.evaluation.groups import (
    NUM_DECILES,
    POPULAR_DECILES,
    GroupMetrics,
    GroupSums,
    ItemPopularity,
    length_buckets,
    length_group,
)
from csrec_dist.evaluation.metrics import MetricSums
from csrec_dist.evaluation.options import NUM_BINS, EvaluationOptions
from csrec_dist.evaluation.per_row import Columns, TargetFacts, rating_group
from csrec_dist.evaluation.scoring import Ensemble, logits_of
from csrec_dist.evaluation.sweep import SweepRequest, SweepResult, sweep
from csrec_dist.models import SequentialModel


class CalibrationSums:
    """Sums over equal-width bins of confidence, which add up over batches and ranks.

    Bin k of 1…15 holds the confidences in ((k − 1)/15, k/15] (Guo et al., 2017, Eq. 3).
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.tensor = torch.zeros(NUM_BINS, 3, dtype=torch.float64, device=device)
        """[bins, 3]: of each bin the sum of weights, of confidences and of hits."""

    def update(self, result: SweepResult, targets: Tensor, weights: Tensor) -> None:
        """Add examples with these log-sum-exps and top items, targets [N] in 1…V and weights [N]."""
        confidence, hit = confidences(result, targets)
        bins = (confidence * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
        weighted = (bins.unsqueeze(1) == torch.arange(NUM_BINS, device=bins.device)) * weights.double().unsqueeze(1)
        self.tensor += weighted.T @ torch.stack([torch.ones_like(confidence), confidence, hit], dim=1)

    def compute(self) -> dict[str, Any]:
        """The expected calibration error Σ share · |accuracy − confidence|, both means, and the filled bins."""
        count = float(self.tensor[:, 0].sum())
        bins = [
            {"bin": bin_number, "count": round(number), "confidence": confidence / number, "accuracy": hits / number}
            for bin_number, (number, confidence, hits) in enumerate(self.tensor.tolist(), 1)
            if number > 0
        ]
        _, confidence, accuracy = (self.tensor.sum(0) / count).tolist()
        error = float((self.tensor[:, 1] - self.tensor[:, 2]).abs().sum()) / count
        return {"ece": error, "confidence": confidence, "accuracy": accuracy, "count": round(count), "bins": bins}


def confidences(result: SweepResult, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probability of each row's softmax [N], and 1 where its item is the target, else 0 [N]; float64.

    A row with NaN has confidence 1 and no hit.
    """
    confidence = (result.top_logits.squeeze(1) - result.log_sums).double().exp()
    broken = confidence.isnan()
    return confidence.masked_fill(broken, 1.0), ((result.top_items.squeeze(1) == targets) & ~broken).double()


class ListCounts:
    """How often each of V items is in the top-n lists, for each n; counts add up over batches and ranks.

    Memory: one integer for each item and n.
    """

    def __init__(self, top_n: Sequence[int], num_items: int, device: torch.device | str = "cpu") -> None:
        self.top_n = tuple(top_n)
        self.tensor = torch.zeros(len(top_n), num_items, dtype=torch.int64, device=device)
        """[number of cut-offs, V]"""

    def update(self, items: Tensor) -> None:
        """Add lists [N, n ≥ the longest cut-off, or V] of items, best first; 0 stands for no item."""
        # Counts from item 0 on: a mask, or bincount, would have a GPU's host wait for a length.
        counts = self.tensor.new_empty(1 + self.tensor.shape[1])
        for row, n in enumerate(self.top_n):
            listed = items[:, :n].flatten()
            self.tensor[row] += counts.zero_().index_add_(0, listed, torch.ones_like(listed))[1:]

    def compute(self, popularity: np.ndarray) -> dict[str, float]:
        """coverage@n, gini@n and average_popularity@n by name, from the items' training counts [V]."""
        values: dict[str, float] = {}
        for n, row in zip(self.top_n, self.tensor.cpu().numpy(), strict=True):
            values |= {
                f"coverage@{n}": coverage(row),
                f"gini@{n}": gini(row),
                f"average_popularity@{n}": average_popularity(row, popularity),
            }
        return values


def coverage(counts: np.ndarray) -> float:
    """Share of the catalog that is recommended at all, from how often [V] each item is listed."""
    return float((counts > 0).mean())


def gini(counts: np.ndarray) -> float:
    """Gini index of how often [V] the items are recommended: 0 if all alike, (V − 1)/V if it is one item only.

    Σᵢ (2i − V − 1) xᵢ / (V Σᵢ xᵢ) over the counts in ascending order, i = 1…V; items never recommended count. 0 where
    all lists are empty.
    """
    ordered = np.sort(counts).astype(np.float64)
    num_items = len(ordered)
    weights = 2.0 * np.arange(1, num_items + 1) - num_items - 1
    return float((weights * ordered).sum() / (num_items * max(ordered.sum(), 1)))


def average_popularity(counts: np.ndarray, popularity: np.ndarray) -> float:
    """Mean training count of the listed items, from how often [V] each item is listed; 0 where all lists are empty."""
    return float((counts.astype(np.float64) * popularity).sum() / max(counts.sum(), 1))


RATED = "at_least_{:g}"
BELOW = "below_{:g}"
LEAK_GROUPS = ("clean", "leaked")
REPEAT_GROUPS = ("new", "repeated")


class ReportCard:
    """The sums behind all figures of a model on test; each rank has one, and adds the rows of its shards."""

    def __init__(
        self, options: EvaluationOptions, longest: int, popularity: ItemPopularity, device: torch.device
    ) -> None:
        """`longest` is the number of items in the longest history."""
        self._options = options
        self._popularity = popularity
        self._deciles = torch.from_numpy(popularity.deciles).long().to(device)
        top_n, num_items = options.cut_offs, len(popularity.counts)
        self._all, self._true = MetricSums(top_n, device), MetricSums(top_n, device)
        self._rating = GroupSums([RATED.format(options.min_rating), BELOW.format(options.min_rating)], top_n, device)
        self._leak = GroupSums(LEAK_GROUPS, top_n, device)
        self._repeat = GroupSums(REPEAT_GROUPS, top_n, device)
        self._decile = GroupSums([str(decile) for decile in range(1, NUM_DECILES + 1)], top_n, device)
        self._length = GroupSums(length_buckets(longest), top_n, device)
        self._grouped = (self._rating, self._leak, self._repeat, self._decile, self._length)
        self._lists = ListCounts(top_n, num_items, device) if options.lists else None
        self._calibration = CalibrationSums(device) if options.calibration else None

    @torch.no_grad()
    def shard(
        self,
        models: Sequence[SequentialModel],
        batches: Iterable[Batch],
        facts: TargetFacts,
        ensemble: Ensemble | None = None,
    ) -> Iterator[Columns]:
        """Add a shard's batches, with the facts about their targets; yields the columns of `RANKS_SCHEMA` by batch.

        Args:
            models: one model, or the members that score together; on the batches' device and in evaluation mode. Where
                they hold slices of the catalog, all ranks that share it bring equally many batches, some of them blank.
            ensemble: how several of them score together.
        """
        start = 0
        for batch in batches:
            if not batch.weights.any():
                self._add_scores(models, ensemble, batch, torch.zeros_like(batch.rows))
                continue
            batch_facts = facts[start : start + len(batch.rows)]
            start += len(batch.rows)
            true_targets = torch.tensor(batch_facts.true_targets, dtype=torch.int64).to(batch.items.device)
            ranks, true_ranks, targets = self._add_scores(models, ensemble, batch, true_targets)
            lengths, deciles = batch.lengths - 1, self._deciles[targets - 1]
            self._all.update(ranks, batch.weights)
            self._true.update(true_ranks, batch.weights * (true_targets > 0))
            rating = torch.from_numpy(rating_group(batch_facts.ratings, self._options.min_rating)).to(ranks.device)
            self._rating.update(rating, ranks, batch.weights)
            self._leak.update(torch.from_numpy(batch_facts.leaked).long().to(ranks.device), ranks, batch.weights)
            # A row's items end in its target, so one that its history has is there twice.
            is_repeated = (batch.items == targets.unsqueeze(1)).sum(1) > 1
            self._repeat.update(is_repeated.long(), ranks, batch.weights)
            self._decile.update(deciles - 1, ranks, batch.weights)
            self._length.update(length_group(lengths), ranks, batch.weights)
            columns = {"row": batch.rows, "user": batch.users, "target": targets, "rank": ranks}
            columns |= {"history_length": lengths, "popularity_decile": deciles}
            columns |= {"true_target": true_targets, "true_rank": true_ranks * (true_targets > 0)}
            values = torch.stack(list(columns.values())).cpu().numpy()  # in one copy, for which a GPU's host waits once
            yield {"rating": batch_facts.ratings, **dict(zip(columns, values, strict=True))}

    def compute(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """All figures by name; `reduce` sums a tensor over the ranks, and is called equally often on each of them.

        Raises:
            ValueError: no rank has an example.
        """
        for sums in (self._all, self._true, *self._grouped):
            sums.tensor = reduce(sums.tensor)
        for extra in (self._lists, self._calibration):
            if extra is not None:
                extra.tensor = reduce(extra.tensor)
        groups = self._groups()
        test = self._all.compute() | self._filtered(groups.get("rating"))
        if self._true.tensor[0]:  # the log knows what some users truly preferred
            for name, value in self._true.compute().items():
                metric, at, n = name.partition("@")
                test[f"{metric}_true{at}{n}"] = value
        results: dict[str, Any] = {"test": test, "groups": groups}
        if self._lists:
            results["lists"] = self._lists.compute(self._popularity.counts)
        if self._calibration:
            results["calibration"] = self._calibration.compute()
        return results

    def _add_scores(
        self,
        models: Sequence[SequentialModel],
        ensemble: Ensemble | None,
        batch: Batch,
        true_targets: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ranks [B] of targets and true targets, and the targets; adds lists and confidences to their sums."""
        histories, targets = question(batch)
        shared = models[0].item_table.catalog.share(len(histories), histories.device)
        # All ranks of the catalog group score the examples of all of them, each over its slice of the items.
        examples = _Examples(histories, targets, true_targets, batch.weights).of_group(shared)
        options, num_items = self._options, models[0].num_items
        request = SweepRequest(
            examples.ranked,
            top_n=min(max(options.cut_offs), num_items) if self._lists else 0,
            seen=examples.histories if options.exclude_seen else None,
            log_sums=self._calibration is not None,
            top=self._calibration is not None,
        )
        result = sweep(logits_of(models, histories, shared, ensemble), request)
        if self._calibration:
            self._calibration.update(result, examples.targets, examples.weights)
        if self._lists:
            is_none = (result.scores == -math.inf) | (examples.weights == 0).unsqueeze(1)
            self._lists.update(result.items.masked_fill(is_none, 0))
        ranks = result.ranks[shared.local]
        return ranks[:, 0], ranks[:, -1], targets

    def _groups(self) -> dict[str, dict[str, GroupMetrics]]:
        """Metrics and counts of each group; groups by rating, leak or repeat only if some target has one, or is one."""
        popularity = {"popular_20%": slice(0, POPULAR_DECILES), "rest_80%": slice(POPULAR_DECILES, NUM_DECILES)}
        groups = {
            "popularity": self._decile.joined(popularity).compute(),
            "popularity_decile": self._decile.compute(),
            "history_length": self._length.compute(),
        }
        leak, repeat = self._leak.compute(), self._repeat.compute()
        if leak["leaked"]["count"]:
            groups["leak"] = leak
        if repeat["repeated"]["count"]:
            groups["repeat"] = repeat
        rating = self._rating.compute()
        return {"rating": rating, **groups} if any(group["count"] for group in rating.values()) else groups

    def _filtered(self, rating: dict[str, GroupMetrics] | None) -> dict[str, float]:
        """Recall⁺ and NDCG⁺ at each n, means over the targets rated at least δ (section 4.1.2); Recall⁻ and NDCG⁻, over
        those below. An empty group has none.
        """
        if rating is None:
            return {}
        names = [f"{metric}@{n}" for n in self._options.cut_offs for metric in ("recall", "ndcg")]
        signs = zip("+-", rating.values(), strict=True)
        values = {name.replace("@", f"{sign}@"): group[name] for sign, group in signs for name in names}
        return {name: value for name, value in values.items() if value is not None}


class _Examples(NamedTuple):
    """Examples to score: those of a rank's batch, or of all ranks of its catalog group."""

    histories: Tensor
    targets: Tensor
    true_targets: Tensor
    weights: Tensor

    @property
    def ranked(self) -> Tensor:
        """The items to be ranked [N, 1]; with true targets, where the group knows one, [N, 2]."""
        columns = [self.targets, self.true_targets.clamp(min=1)]
        return torch.stack(columns if bool(self.true_targets.any()) else columns[:1], dim=1)

    def of_group(self, shared: SharedRows) -> "_Examples":
        """The examples of all ranks of the group; weights of other ranks' are 0, so that each rank counts its own."""
        targets, true_targets = shared.gather(self.targets), shared.gather(self.true_targets)
        return _Examples(shared.gather_ids(self.histories), targets, true_targets, shared.only_local(self.weights))
