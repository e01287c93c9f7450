"""Which interactions are kept: duplicates and the k-core."""

import numpy as np
import polars as pl


def drop_duplicates(interactions: pl.DataFrame, keep: str) -> pl.DataFrame:
    """Of the interactions of a user with one item, all ("keep"), or the "first" or "last" in row order.

    "exact" drops a row only where another one has its user, item, timestamp and rating: a row written twice, while an
    item that was taken twice stays.
    """
    if keep == "keep":
        return interactions
    if keep == "exact":
        return interactions.unique(["user", "item", "timestamp", "rating"], keep="first", maintain_order=True)
    return interactions.unique(["user", "item"], keep=keep, maintain_order=True)  # type: ignore[arg-type]


def k_core(users: np.ndarray, items: np.ndarray, minimum: int, iterated: bool) -> np.ndarray:
    """Indices of the interactions [n] whose user and item have at least `minimum` interactions, ascending.

    Iterated, the rule holds for what is returned; otherwise users and items are judged once, both by
    their counts in the whole log.
    """
    kept = np.arange(len(users))
    while True:
        enough = _frequent(users[kept], minimum) & _frequent(items[kept], minimum)
        if enough.all():
            return kept
        kept = kept[enough]
        if not iterated:
            return kept


def renumber(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers without gaps, 1, 2, … in the old order, and the old number of each new one (index 0 is 1's)."""
    present = np.bincount(numbers) > 0
    return np.cumsum(present)[numbers].astype(np.int32), np.flatnonzero(present)


def _frequent(numbers: np.ndarray, minimum: int) -> np.ndarray:
    return np.bincount(numbers)[numbers] >= minimum
