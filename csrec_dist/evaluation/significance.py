"""Whether two models differ: a paired t-test and a bootstrap interval over the same examples."""

from dataclasses import dataclass

import numpy as np

LEVEL = 0.05
NUMBERS_AT_ONCE = 2**23


@dataclass(frozen=True)
class Paired:
    """Two models on the same examples; `difference` is the second's mean minus the first's, `low` and `high` its
    95 % bootstrap interval, and `p_value` that of the two-sided paired t-test."""

    count: int
    first: float
    second: float
    low: float
    high: float
    p_value: float

    @property
    def difference(self) -> float:
        """Mean of the paired differences."""
        return self.second - self.first

    @property
    def is_significant(self) -> bool:
        """Whether p < 0.05."""
        return self.p_value < LEVEL


def paired(first: np.ndarray, second: np.ndarray, *, num_resamples: int = 2000, seed: int = 0) -> Paired:
    """Compare two models' values [N] on the same N ≥ 2 examples.

    The interval is the percentile bootstrap of the mean difference: examples are drawn in pairs, from `seed`.

    Raises:
        ValueError: fewer than two examples, or unequal numbers of them.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"pairs of at least two examples are needed, got {len(first)} and {len(second)}")
    differences = second.astype(np.float64) - first
    low, high = np.quantile(_resampled_means(differences, num_resamples, seed), [0.025, 0.975])
    return Paired(
        count=len(first),
        first=float(first.mean()),
        second=float(second.mean()),
        low=float(low),
        high=float(high),
        p_value=_p_value(differences),
    )


def _resampled_means(differences: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """Means [resamples] of examples drawn with replacement: scipy.stats.bootstrap's, which takes a second to import."""
    random, num = np.random.default_rng(seed), len(differences)
    size = max(1, NUMBERS_AT_ONCE // num)
    sizes = [min(size, num_resamples - start) for start in range(0, num_resamples, size)]
    return np.concatenate([differences[random.integers(num, size=(each, num))].mean(1) for each in sizes])


def _p_value(differences: np.ndarray) -> float:
    """The t-test's; where all differences are one number, which it cannot divide by: 1 if that is 0, else 0."""
    if np.ptp(differences) == 0:
        return float(differences[0] == 0)
    from scipy.special import stdtr

    num = len(differences)
    statistic = differences.mean() / (differences.std(ddof=1) / num**0.5)
    return float(2 * stdtr(num - 1, -abs(statistic)))
