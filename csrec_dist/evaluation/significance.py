"""Whether two models differ: a paired t-test and a bootstrap interval over the same examples."""

from dataclasses import dataclass

import numpy as np

LEVEL = 0.05
CONFIDENCE = 0.95
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
    from scipy import stats

    differences = second.astype(np.float64) - first
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=num_resamples,
        batch=max(1, NUMBERS_AT_ONCE // len(differences)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Paired(
        count=len(first),
        first=float(first.mean()),
        second=float(second.mean()),
        low=float(interval.low),
        high=float(interval.high),
        p_value=_p_value(first, second, differences),
    )


def _p_value(first: np.ndarray, second: np.ndarray, differences: np.ndarray) -> float:
    """The t-test's; where all differences are one number, which it cannot divide by: 1 if that is 0, else 0."""
    if np.ptp(differences) == 0:
        return float(differences[0] == 0)
    from scipy import stats

    return float(stats.ttest_rel(second, first).pvalue)
