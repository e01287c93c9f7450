"""Whether two models differ: a paired t-test and a bootstrap interval over the same examples, by metric."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

LEVEL = 0.05
NUMBERS_AT_ONCE = 2**23
MOST_DRAWS = 2**28
MOST_RESAMPLES, FEWEST_RESAMPLES = 2000, 200
METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "recall": np.ones_like,
    "ndcg": lambda ranks: 1 / np.log2(ranks + 1),
    "mrr": lambda ranks: 1 / ranks,
}
"""What a rank up to the cut-off is worth: the metrics of evaluation/metrics.py, without torch."""
SIGNS = {"+": 0, "-": 1}  # the filtered and the adverse metrics, by their number in `rating_group`


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


def paired(first: np.ndarray, second: np.ndarray, *, num_resamples: int | None = None, seed: int = 0) -> Paired:
    """Compare two models' values [N] on the same N ≥ 2 examples.

    The interval is the percentile bootstrap of the mean difference: examples are drawn in pairs, from `seed`, as many
    times as `resamples_of` their number by default.

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


def resamples_of(num_rows: int) -> int:
    """Resamples of a bootstrap over this many rows: fewer where there are many, which need fewer."""
    return max(FEWEST_RESAMPLES, min(MOST_RESAMPLES, MOST_DRAWS // max(num_rows, 1)))


def mean_interval(values: np.ndarray, *, num_resamples: int | None = None, seed: int = 0) -> tuple[float, float, float]:
    """The mean of values [N], and the ends of its 95 % percentile bootstrap interval."""
    low, high = np.quantile(_resampled_means(values.astype(np.float64), num_resamples, seed), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def _resampled_means(differences: np.ndarray, num_resamples: int | None, seed: int) -> np.ndarray:
    """Means [resamples] of examples drawn with replacement: scipy.stats.bootstrap's, which takes a second to import."""
    random, num = np.random.default_rng(seed), len(differences)
    num_resamples = num_resamples or resamples_of(num)
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


@dataclass(frozen=True)
class Line:
    """One metric: two models paired on the same rows, and the difference for each seed."""

    metric: str  # as in metrics.json
    paired: Paired
    differences: tuple[float, ...]


def compare_ranks(
    first: np.ndarray,
    second: np.ndarray,
    groups: np.ndarray,
    *,
    top_n: Sequence[int],
    num_resamples: int | None = None,
    seed: int = 0,
) -> list[Line]:
    """Recall, NDCG and MRR at each n of two sides, from the ranks [S, N] of the targets: S seeds, N rows in one order.

    `groups` [N] are those that `rating_group` numbers, for the filtered and the adverse metrics. Metrics of fewer than
    two rows are left out.
    """
    lines = []
    for sign, metric, n in product(["", *SIGNS], METRICS, top_n):
        rows = groups == SIGNS[sign] if sign else np.ones(len(groups), bool)
        if rows.sum() > 1 and not (sign and metric == "mrr"):
            values = [metric_values(metric, side[:, rows], n) for side in (first, second)]
            test = paired(values[0].mean(0), values[1].mean(0), num_resamples=num_resamples, seed=seed)
            lines.append(Line(f"{metric}{sign}@{n}", test, tuple((values[1] - values[0]).mean(1).tolist())))
    return lines


def metric_values(metric: str, ranks: np.ndarray, n: int) -> np.ndarray:
    """A metric at n of each rank, float64 in the shape of the ranks."""
    return np.where(ranks <= n, METRICS[metric](ranks.astype(np.float64)), 0.0)
