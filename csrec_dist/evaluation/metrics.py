"""Metrics of next-item ranking, one relevant item per example, as weighted sums in float64."""

from collections.abc import Sequence

import torch
from torch import Tensor


def recall(ranks: Tensor, n: int) -> Tensor:
    """Recall@n of each example: 1 if the target's rank ≤ n, else 0 (also called hit rate).

    Args:
        ranks: [N] int64, 1 being best.

    Returns:
        [N] float64.

    >>> recall(torch.tensor([1, 3, 4]), 3).tolist()
    [1.0, 1.0, 0.0]
    """
    return (ranks <= n).double()


def ndcg(ranks: Tensor, n: int) -> Tensor:
    """NDCG@n of each example: 1 / log₂(rank + 1) if rank ≤ n, else 0; the ideal gain is 1.

    Arguments and result as in `recall`.

    >>> ndcg(torch.tensor([1, 3, 4]), 3).tolist()
    [1.0, 0.5, 0.0]
    """
    return recall(ranks, n) / torch.log2(ranks.double() + 1)


def reciprocal_rank(ranks: Tensor, n: int | None = None) -> Tensor:
    """Reciprocal rank of each example, whose mean is MRR: 1 / rank, or 0 beyond n if n is given.

    Arguments and result as in `recall`.

    >>> reciprocal_rank(torch.tensor([1, 4, 5])).tolist()
    [1.0, 0.25, 0.2]
    >>> reciprocal_rank(torch.tensor([1, 4, 5]), 4).tolist()
    [1.0, 0.25, 0.0]
    """
    reciprocal = 1 / ranks.double()
    return reciprocal if n is None else recall(ranks, n) * reciprocal


def metric_names(top_n: Sequence[int]) -> list[str]:
    """Names of all metrics, in the order in which they are summed."""
    return [f"{metric}@{n}" for n in top_n for metric in ("recall", "ndcg", "mrr")] + ["mrr"]


def values_to_sum(ranks: Tensor, top_n: Sequence[int]) -> Tensor:
    """What each example adds to the sums: 1 for the count, then its metrics in the order of `metric_names`.

    Args:
        ranks: [N] int64.

    Returns:
        [1 + number of metrics, N] float64.
    """
    truncated = [metric(ranks, n) for n in top_n for metric in (recall, ndcg, reciprocal_rank)]
    return torch.stack([torch.ones_like(ranks, dtype=torch.float64), *truncated, reciprocal_rank(ranks)])


class MetricSums:
    """Weighted sums of all metrics and of the weights, in one flat float64 tensor.

    Sums add up over batches and over ranks; `compute` divides once, at the end.

    >>> sums = MetricSums([2])
    >>> sums.update(torch.tensor([1, 4]), torch.tensor([1.0, 1.0]))
    >>> sums.compute()
    {'recall@2': 0.5, 'ndcg@2': 0.5, 'mrr@2': 0.5, 'mrr': 0.625}
    """

    def __init__(self, top_n: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.top_n = tuple(top_n)
        self.names = metric_names(top_n)
        self.tensor = torch.zeros(1 + len(self.names), dtype=torch.float64, device=device)
        """[1 + number of metrics]: the sum of weights, then the sums in the order of `names`."""

    def update(self, ranks: Tensor, weights: Tensor) -> None:
        """Add examples with these ranks [N] and weights [N]; weight 0 leaves an example out."""
        self.tensor += (values_to_sum(ranks, self.top_n) * weights.double()).sum(1)

    def compute(self) -> dict[str, float]:
        """Weighted means by name; ValueError when no example has been counted."""
        count, *sums = self.tensor.tolist()
        if count == 0:
            raise ValueError("No example was evaluated: the sum of weights is 0.")
        return {name: value / count for name, value in zip(self.names, sums, strict=True)}
