"""Metrics by group of examples: by the target's rating, its popularity, and the length of the history."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from csrec_dist.data.dataset import Dataset
from csrec_dist.evaluation.metrics import metric_names, values_to_sum

NUM_DECILES = 10
POPULAR_DECILES = 2
LENGTH_BUCKETS = ((1, 5), (6, 10), (11, 15), (16, 20), (21, 50), (51, 100), (101, None))

GroupMetrics = dict[str, float | int | None]


@dataclass(frozen=True)
class ItemPopularity:
    """How often each item occurs in training: `counts` int64 [V], entry i being that of item i + 1."""

    counts: np.ndarray

    @classmethod
    def read(cls, dataset: Dataset) -> Self:
        """The counts of a dataset's items.parquet."""
        table = pq.read_table(dataset.file("items.parquet"), columns=["item", "count"])
        counts = np.zeros(dataset.num_items, np.int64)
        counts[table["item"].to_numpy() - 1] = table["count"].to_numpy()
        return cls(counts)

    @cached_property
    def deciles(self) -> np.ndarray:
        """int8 [V]: 1 for the most popular tenth of the items … 10; of equally popular items the lower id comes first.

        Deciles 1 and 2 together are the popular fifth of the paper's Figure 1.
        """
        order = np.argsort(-self.counts, kind="stable")
        deciles = np.empty(len(order), np.int8)
        deciles[order] = 1 + np.arange(len(order)) * NUM_DECILES // len(order)
        return deciles


class GroupSums:
    """Weighted sums of all metrics for each of G groups, in one float64 tensor that adds up over batches and ranks."""

    def __init__(self, names: Sequence[str], top_n: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.names = tuple(names)
        self.top_n = tuple(top_n)
        self.tensor = torch.zeros(len(names), 1 + len(metric_names(top_n)), dtype=torch.float64, device=device)
        """[G, 1 + number of metrics]: of each group the sum of weights, then the sums of its metrics."""

    def update(self, groups: Tensor, ranks: Tensor, weights: Tensor) -> None:
        """Add examples with their groups [N] in 0…G−1 (any other number: no group), ranks [N] and weights [N]."""
        members = groups.unsqueeze(1) == torch.arange(len(self.names), device=groups.device)
        weighted = members.double() * weights.double().unsqueeze(1)
        self.tensor += weighted.T @ values_to_sum(ranks, self.top_n).T

    def compute(self) -> dict[str, GroupMetrics]:
        """The count and mean metrics of each group; 0 and None where it is empty."""
        metrics = metric_names(self.top_n)
        groups: dict[str, GroupMetrics] = {}
        for name, (count, *sums) in zip(self.names, self.tensor.tolist(), strict=True):
            means = [value / count if count else None for value in sums]
            groups[name] = {"count": round(count), **dict(zip(metrics, means, strict=True))}
        return groups

    def joined(self, parts: dict[str, slice]) -> "GroupSums":
        """Coarser groups, each made of neighbouring ones: exact, since sums add up."""
        coarse = GroupSums(list(parts), self.top_n)
        coarse.tensor = torch.stack([self.tensor[part].sum(0) for part in parts.values()])
        return coarse


def length_buckets(longest: int) -> list[str]:
    """Names of the buckets that a history of 1…longest items can fall into."""
    return [f"{low}+" if high is None else f"{low}-{high}" for low, high in LENGTH_BUCKETS if low <= longest]


def length_group(lengths: Tensor) -> Tensor:
    """Index of each history's bucket [N] in `LENGTH_BUCKETS`, from its number of items [N]."""
    ends = torch.tensor([high for _, high in LENGTH_BUCKETS if high is not None], device=lengths.device)
    return torch.bucketize(lengths, ends)
