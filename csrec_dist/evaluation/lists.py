"""What the recommended lists are like as a whole: coverage, concentration and popularity of what they hold."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class ListCounts:
    """How often each of V items stands in the top-n lists, for each n; counts add up over batches and ranks.

    Memory: one integer for each item and n.
    """

    def __init__(self, top_n: Sequence[int], num_items: int, device: torch.device | str = "cpu") -> None:
        self.top_n = tuple(top_n)
        self.tensor = torch.zeros(len(top_n), num_items, dtype=torch.int64, device=device)
        """[number of cut-offs, V]"""

    def update(self, items: Tensor) -> None:
        """Add lists [N, n ≥ the longest cut-off, or V] of items, best first; 0 stands for no item."""
        for place, n in enumerate(self.top_n):
            held = items[:, :n]
            self.tensor[place] += torch.bincount(held[held > 0] - 1, minlength=self.tensor.shape[1])

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
    """Share of the catalog that is recommended at all, from how often [V] each item is."""
    return float((counts > 0).mean())


def gini(counts: np.ndarray) -> float:
    """Gini index of how often [V] the items are recommended: 0 if all alike, (V − 1)/V if it is one item only.

    Σᵢ (2i − V − 1) xᵢ / (V Σᵢ xᵢ) over the counts in ascending order, i = 1…V; items never recommended count.
    """
    ordered = np.sort(counts).astype(np.float64)
    num_items = len(ordered)
    weights = 2.0 * np.arange(1, num_items + 1) - num_items - 1
    return float((weights * ordered).sum() / (num_items * ordered.sum()))


def average_popularity(counts: np.ndarray, popularity: np.ndarray) -> float:
    """Mean training count of what the lists hold, from how often [V] each item stands in one."""
    return float((counts.astype(np.float64) * popularity).sum() / counts.sum())
