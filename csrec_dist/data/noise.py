"""Noise ε in observed interactions (Eq. 1): an item other than the preferred one, drawn by a known law."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

NoiseKind = Literal["uniform", "popularity", "position"]
NOISE_KINDS: tuple[NoiseKind, ...] = get_args(NoiseKind)

LIST_LENGTH = 100
"""Items in the list that `position` noise clicks on."""
WHOLE = 2**52
"""What the integer weights of a law add up to, but for rounding: sums stay exact in float64."""

Replaced = tuple[np.ndarray, np.ndarray]


def noise_law(kind: NoiseKind, popularity: np.ndarray) -> np.ndarray:
    """Probability of each item to be the noise, [V] float64 that adds up to 1.

    uniform: all items alike. popularity: in proportion to `popularity`. position: of a list of the `LIST_LENGTH`
    most popular items (fewer where the catalog is smaller; ties by number; none of popularity 0), the one at
    place k with weight 1/k, as users click on what stands on top.

    Args:
        popularity: [V] ≥ 0, not all 0; row i is item i + 1's.
    """
    weights = _WEIGHTS[kind](np.asarray(popularity, np.float64))
    return weights / weights.sum()


class NoiseSource:
    """Replaces items by others of a law: item j in place of item i with probability law[j] / (1 − law[i])."""

    def __init__(self, law: np.ndarray) -> None:
        """A source for the law [V]; ValueError when it leaves some item without another one to draw."""
        self.weights = np.rint(law * WHOLE).astype(np.int64)
        self._ends = np.cumsum(self.weights)
        if (self.weights == self._ends[-1]).any():
            raise ValueError("the law of the noise gives all weight to one item")

    def others(self, items: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Items [n] of 1…V, each other than `items` [n], from uniform `draws` [n] of [0, 1).

        The item's own weight is cut out of the line on which the draw falls, so nothing is drawn twice.
        """
        own, ends = self.weights[items - 1], self._ends[items - 1]
        room = self._ends[-1] - own
        places = np.minimum((draws * room).astype(np.int64), room - 1)
        places += np.where(places >= ends - own, own, 0)
        return (np.searchsorted(self._ends, places, side="right") + 1).astype(items.dtype)

    def replace(self, items: np.ndarray, rate: float, random: np.random.RandomState) -> Replaced:
        """The items [n] with each replaced at probability `rate`, and which are: bool [n]."""
        replaced = random.random_sample(len(items)) < rate
        noisy = items.copy()
        noisy[replaced] = self.others(items[replaced], random.random_sample(int(replaced.sum())))
        return noisy, replaced


def _uniform(popularity: np.ndarray) -> np.ndarray:
    return np.ones_like(popularity)


def _popularity(popularity: np.ndarray) -> np.ndarray:
    return popularity


def _position(popularity: np.ndarray) -> np.ndarray:
    shown = np.argsort(-popularity, kind="stable")[:LIST_LENGTH]
    weights = np.zeros_like(popularity)
    weights[shown] = np.where(popularity[shown] > 0, 1 / np.arange(1, len(shown) + 1), 0)
    return weights


_WEIGHTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uniform": _uniform,
    "popularity": _popularity,
    "position": _position,
}
