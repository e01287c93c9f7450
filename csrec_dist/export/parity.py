"""Whether exported files give the model's own lists, and how much of them an approximate index finds.

Shapes: B histories, L positions, S seen items, n best items.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from csrec_dist.errors import UserError
from csrec_dist.evaluation import top_items
from csrec_dist.models import SequentialModel

TOLERANCE = 1e-5
"""Of the largest score: what scores may differ by between two runtimes that add up in different orders."""
BATCH_SIZES = (1, 1, 2, 5, 32)
"""Of the first batches that are checked; the others are as large as the last of these."""
CUT_OFF = 10

Search = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From histories [B, L] and seen items [B, S], int64 padded with 0, to items [B, n] and scores [B, n]."""


class Lists(NamedTuple):
    """Items [B, n] and their scores [B, n]; item 0 and score −inf where a list is shorter."""

    items: np.ndarray
    scores: np.ndarray


@dataclass
class Check:
    """What was compared. `tolerance` is that of a score; `equal_items` of `items` stand in the model's own order."""

    histories: int = 0
    lists: int = 0
    items: int = 0
    equal_items: int = 0
    largest_score: float = 0.0
    largest_difference: float = 0.0
    common: int = 0
    common_at_cut_off: int = 0
    items_at_cut_off: int = 0

    @property
    def tolerance(self) -> float:
        """The largest difference of scores that counts as equal."""
        return TOLERANCE * self.largest_score

    def exact(self) -> dict[str, Any]:
        """The comparison of files that hold to the model's lists."""
        return {
            "histories": self.histories,
            "lists": self.lists,
            "items": self.items,
            "equal_items": self.equal_items,
            "ties_in_other_order": self.items - self.equal_items,
            "largest_score": self.largest_score,
            "largest_difference": self.largest_difference,
            "allowed_difference": self.tolerance,
        }

    def approximate(self, top_n: int) -> dict[str, Any]:
        """The comparison of an index that may miss items: the share of the model's best items that it finds."""
        cut_off = min(CUT_OFF, top_n)
        return {
            "histories": self.histories,
            "lists": self.lists,
            f"recall@{cut_off}": self.common_at_cut_off / self.items_at_cut_off,
            f"recall@{top_n}": self.common / self.items,
        }


def batches(histories: Sequence[Sequence[int]], max_length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Histories [B, L] of the latest `max_length` items and all distinct items of them [B, S], the shortest first.

    So batches differ in B, L and S.
    """
    ordered = sorted(histories, key=len)
    start = 0
    for size in [*BATCH_SIZES, *[BATCH_SIZES[-1]] * len(ordered)]:
        batch = ordered[start : start + size]
        if not batch:
            return
        yield padded([history[-max_length:] for history in batch]), padded([sorted(set(history)) for history in batch])
        start += size


def padded(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Rows of numbers as int64 [B, longest], 0 behind each."""
    filled = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, numbers in zip(filled, rows, strict=True):
        row[: len(numbers)] = numbers
    return filled


def compare(
    model: SequentialModel, search: Search, histories: Sequence[Sequence[int]], top_n: int, *, exact: bool = True
) -> Check:
    """Compare the lists of the files with the model's, after each history, with and without its items.

    Raises:
        UserError: where `exact`, a list is not the model's. Items may stand elsewhere in it only where their scores
            differ by no more than TOLERANCE of the largest.
    """
    check = Check(histories=len(histories))
    differences: list[float] = []
    for batch, items in batches(histories, model.max_length):
        for seen in (np.zeros((len(batch), 1), np.int64), items):
            expected, scores_of = _model_lists(model, batch, seen, top_n)
            exported = Lists(*search(batch, seen))
            _count(check, expected, exported)
            if exact:
                differences.append(_difference(exported, expected, scores_of(exported.items), seen))
    if exact:
        check.largest_difference = float(np.max(differences))  # which, unlike max, keeps NaN
        if not check.largest_difference <= check.tolerance:
            raise UserError(
                f"The exported files do not give the model's lists for {len(histories)} histories: scores or what they "
                f"belong to differ by up to {check.largest_difference:.3g}, where {check.tolerance:.3g} is allowed. "
                "Nothing was written. Choose another format, or the versions of constraints.txt."
            )
    return check


@torch.no_grad()
def _model_lists(
    model: SequentialModel, histories: np.ndarray, seen: np.ndarray, top_n: int
) -> tuple[Lists, Callable[[np.ndarray], np.ndarray]]:
    """The model's lists, and its scores [B, n] of any items [B, n]."""
    table = model.item_table
    states = model.encode_last(torch.from_numpy(histories))
    items, scores = top_items(states, table, top_n, seen=torch.from_numpy(seen))

    def scores_of(items: np.ndarray) -> np.ndarray:
        rows = torch.from_numpy(items).clamp(min=1) - 1
        products = (table.weight.detach()[rows] @ states.unsqueeze(2)).squeeze(2)
        return (products if table.bias is None else products + table.bias.detach()[rows]).numpy()

    return Lists(items.masked_fill(scores == -torch.inf, 0).numpy(), scores.numpy()), scores_of


def _difference(exported: Lists, expected: Lists, scores_of_exported: np.ndarray, seen: np.ndarray) -> float:
    """The largest difference between the exported scores and the model's at the same position, or of the same item.

    Infinite where a list is shorter or longer, names an item twice, or one that was seen.
    """
    is_item, ordered = expected.items > 0, np.sort(exported.items, axis=1)
    is_twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)
    is_seen = (exported.items[:, :, None] == seen[:, None, :]).any(2) & is_item
    if ((exported.items > 0) != is_item).any() or is_twice.any() or is_seen.any():
        return float("inf")
    differences = [
        np.abs(exported.scores[is_item] - scores[is_item]) for scores in (expected.scores, scores_of_exported)
    ]
    return float(np.concatenate(differences).max(initial=0.0))


def _count(check: Check, expected: Lists, exported: Lists) -> None:
    """Add the lists of a batch to what was compared."""
    assert expected.items.shape == exported.items.shape, "lists are padded to the length that was requested"
    is_item = expected.items > 0
    check.lists += len(expected.items)
    check.items += int(is_item.sum())
    check.equal_items += int(((expected.items == exported.items) & is_item).sum())
    check.largest_score = max(check.largest_score, float(np.abs(expected.scores[is_item]).max(initial=0.0)))
    check.common += _num_common(expected.items, exported.items)
    check.common_at_cut_off += _num_common(expected.items[:, :CUT_OFF], exported.items[:, :CUT_OFF])
    check.items_at_cut_off += int(is_item[:, :CUT_OFF].sum())


def _num_common(first: np.ndarray, second: np.ndarray) -> int:
    """How many items two lists share, summed over the rows."""
    return sum(np.setdiff1d(np.intersect1d(*pair), 0).size for pair in zip(first, second, strict=True))
