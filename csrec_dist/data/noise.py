"""Noise ε in observed interactions (Eq. 1): an item other than the preferred one, drawn from a known distribution."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

NoiseKind = Literal["uniform", "popularity", "position"]
NOISE_KINDS: tuple[NoiseKind, ...] = get_args(NoiseKind)

LIST_LENGTH = 100
"""Number of items in the list on which `position` noise clicks."""
WHOLE = 2**52
"""Sum of the integer weights of a distribution, up to rounding. Integers below 2**53 are exact in float64."""

Replaced = tuple[np.ndarray, np.ndarray]


def noise_law(kind: NoiseKind, popularity: np.ndarray) -> np.ndarray:
    """The probability of each item to be the noise: [V] float64 that adds up to 1.

    uniform: the same for all items. popularity: proportional to `popularity`. position: 1/k for the item at position k
    of the list of the `LIST_LENGTH` most popular items, because users click on what is listed first. Ties in the list
    are broken by number; items of popularity 0 are not listed.

    Args:
        popularity: [V] ≥ 0, not all 0; row i is item i + 1's.
    """
    weights = _WEIGHTS[kind](np.asarray(popularity, np.float64))
    return weights / weights.sum()


class NoiseSource:
    """Replaces items by others drawn from a law: item j replaces item i with probability law[j] / (1 − law[i])."""

    def __init__(self, law: np.ndarray) -> None:
        """A source for the law [V]. Raises ValueError if one item has all the weight, so that no other can be drawn."""
        self.weights = np.rint(law * WHOLE).astype(np.int64)
        self._ends = np.cumsum(self.weights)
        if (self.weights == self._ends[-1]).any():
            raise ValueError("the law of the noise gives all weight to one item")

    def others(self, items: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Draw an item of 1…V for each of `items` [n], never the same item, from uniform `numbers` [n] in [0, 1).

        A number becomes a point on the line of all weights from which the item's own interval is cut out. One number is
        thus enough, where rejection of the same item would need an unknown count of them.
        """
        item_weights, item_ends = self.weights[items - 1], self._ends[items - 1]
        totals = self._ends[-1] - item_weights
        points = np.minimum((numbers * totals).astype(np.int64), totals - 1)
        points += np.where(points >= item_ends - item_weights, item_weights, 0)
        return (np.searchsorted(self._ends, points, side="right") + 1).astype(items.dtype)

    def replace(self, items: np.ndarray, rate: float, random: np.random.RandomState) -> Replaced:
        """Replace each item [n] with probability `rate`; the items, and a mask [n] of those that were replaced."""
        replaced = random.random_sample(len(items)) < rate
        noisy = items.copy()
        noisy[replaced] = self.others(items[replaced], random.random_sample(int(replaced.sum())))
        return noisy, replaced


def _by_position(popularity: np.ndarray) -> np.ndarray:
    """A popularity list's items weigh the inverse of their position, others nothing."""
    listed = np.argsort(-popularity, kind="stable")[:LIST_LENGTH]
    weights = np.zeros_like(popularity)
    weights[listed] = np.where(popularity[listed] > 0, 1 / np.arange(1, len(listed) + 1), 0)
    return weights


_WEIGHTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uniform": np.ones_like,
    "popularity": lambda popularity: popularity,
    "position": _by_position,
}
