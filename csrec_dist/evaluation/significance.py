"""Whether two models differ: a paired t-test and a bootstrap interval over the users of the same examples, by metric.

Several windows of one user are no independent examples, so users are the sample: the bootstrap draws users, each with
all its examples, and the t-test's variance is that of the users' sums (Liang and Zeger, 1986). Where each user has one
example, both are the usual ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

LEVEL = 0.05
ROUNDING = 1e-12
"""A standard error below this share of the mean is nothing but rounding."""
NUMBERS_AT_ONCE = 2**23
MOST_DRAWS = 2**28
MOST_RESAMPLES, FEWEST_RESAMPLES = 2000, 200
METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "recall": np.ones_like,
    "ndcg": lambda ranks: 1 / np.log2(ranks + 1),
    "mrr": lambda ranks: 1 / ranks,
}
"""The gain of a rank up to the cut-off: the metrics of evaluation/metrics.py, without torch."""
SIGNS = {"+": 0, "-": 1}  # the filtered and the adverse metrics, by their number in `rating_group`


@dataclass(frozen=True)
class Paired:
    """Two models on the same examples of `num_users` users; `difference` is the second's mean minus the first's, `low`
    and `high` its 95 % bootstrap interval, and `p_value` that of the two-sided paired t-test."""

    count: int
    num_users: int
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


def paired(
    first: np.ndarray,
    second: np.ndarray,
    *,
    users: np.ndarray | None = None,
    num_resamples: int | None = None,
    seed: int = 0,
) -> Paired:
    """Compare two models' values [N] on the same N examples, of at least two users.

    `users` [N] numbers the user of each example; None: each has its own. The interval is the percentile bootstrap of
    the mean difference: users are drawn, from `seed`, as many times as `resamples_of` their number by default.

    Raises:
        ValueError: fewer than two users, or unequal numbers of examples.
    """
    if len(first) != len(second):
        raise ValueError(f"pairs of examples are needed, got {len(first)} and {len(second)}")
    sums, sizes = _several(second.astype(np.float64) - first, users)
    low, high = np.quantile(_resampled_means(sums, sizes, num_resamples, seed), [0.025, 0.975])
    return Paired(
        count=len(first),
        num_users=len(sums),
        first=float(first.mean()),
        second=float(second.mean()),
        low=float(low),
        high=float(high),
        p_value=_p_value(sums, sizes),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, adjusted (Holm, 1979): with those below 0.05, the probability that any of the true
    null hypotheses is rejected is at most 0.05, whatever the tests have in common."""
    order = np.argsort(p_values, kind="stable")
    factors = len(order) - np.arange(len(order))
    adjusted = np.empty(len(order))
    # The k-th smallest of m p-values times m − k + 1; a larger one never gets a smaller adjusted value.
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * np.asarray(p_values, np.float64)[order]), 1)
    return adjusted.tolist()


def resamples_of(num_rows: int) -> int:
    """Resamples of a bootstrap over this many rows: fewer where there are many, which need fewer."""
    return max(FEWEST_RESAMPLES, min(MOST_RESAMPLES, MOST_DRAWS // max(num_rows, 1)))


def mean_interval(
    values: np.ndarray, *, users: np.ndarray | None = None, num_resamples: int | None = None, seed: int = 0
) -> tuple[float, float, float]:
    """The mean of values [N], and the ends of its 95 % percentile bootstrap interval over `users` (as in `paired`).

    Raises ValueError for fewer than two users, as `standard_error` does.
    """
    sums, sizes = _several(values, users)
    low, high = np.quantile(_resampled_means(sums, sizes, num_resamples, seed), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def standard_error(values: np.ndarray, users: np.ndarray | None = None) -> float:
    """The standard error of the mean of values [N], with users [N], at least two, as the sample."""
    sums, sizes = _several(values, users)
    return _standard_error(sums, sizes)


def _several(values: np.ndarray, users: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """As `_by_user`; ValueError for fewer than two users, who are no sample."""
    sums, sizes = _by_user(values.astype(np.float64), users)
    if len(sums) < 2:
        raise ValueError(f"examples of at least two users are needed, got {len(values)} of {len(sums)}")
    return sums, sizes


def _by_user(values: np.ndarray, users: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The sum of each user's values, and their number: [U] each."""
    if users is None:
        return values, np.ones(len(values))
    _, numbers = np.unique(users, return_inverse=True)
    return np.bincount(numbers, values), np.bincount(numbers).astype(np.float64)


def _resampled_means(sums: np.ndarray, sizes: np.ndarray, num_resamples: int | None, seed: int) -> np.ndarray:
    """Means [resamples] over the examples of users drawn with replacement: where each has one example, those of
    scipy.stats.bootstrap, which takes a second to import."""
    rng, num = np.random.default_rng(seed), len(sums)
    num_resamples = num_resamples or resamples_of(num)
    at_once = max(1, NUMBERS_AT_ONCE // num)
    means = []
    for start in range(0, num_resamples, at_once):
        drawn = rng.integers(num, size=(min(at_once, num_resamples - start), num))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    return np.concatenate(means)


def _p_value(sums: np.ndarray, sizes: np.ndarray) -> float:
    """The p-value of the t-test; where all users have one difference, and so no variance, that of the sign test."""
    mean, error = sums.sum() / sizes.sum(), _standard_error(sums, sizes)
    if error <= ROUNDING * abs(mean):
        return 1.0 if mean == 0 else 2.0 ** (1 - len(sums))
    from scipy.special import stdtr

    return float(2 * stdtr(len(sums) - 1, -abs(mean / error)))


def _standard_error(sums: np.ndarray, sizes: np.ndarray) -> float:
    """The standard error of Σ sums / Σ sizes as a ratio estimator over users, by its residuals sum − size · mean."""
    num, total = len(sums), sizes.sum()
    residuals = sums - sizes * (sums.sum() / total)
    return float((num / (num - 1) * (residuals**2).sum()) ** 0.5 / total)


@dataclass(frozen=True)
class Line:
    """One metric: two models paired on the same rows, and the difference for each seed."""

    metric: str  # as in metrics.json
    paired: Paired
    differences: tuple[float, ...]

    @property
    def num_higher(self) -> int:
        """For how many of the seeds the second model is better."""
        return sum(difference > 0 for difference in self.differences)


def compare_ranks(
    first: np.ndarray,
    second: np.ndarray,
    groups: np.ndarray,
    *,
    users: np.ndarray | None = None,
    top_n: Sequence[int],
    num_resamples: int | None = None,
    seed: int = 0,
) -> list[Line]:
    """Recall, NDCG and MRR at each n of two sides, from the ranks [S, N] of the targets: S seeds, N rows in one order.

    `groups` [N] come from `rating_group`, for the filtered and the adverse metrics; `users` [N] as in `paired`. Metrics
    of rows of fewer than two users are left out.
    """
    users = np.arange(len(groups)) if users is None else users
    lines = []
    for sign, metric, n in product(["", *SIGNS], METRICS, top_n):
        rows = groups == SIGNS[sign] if sign else np.ones(len(groups), bool)
        if len(np.unique(users[rows])) > 1 and not (sign and metric == "mrr"):
            values = [metric_values(metric, side[:, rows], n) for side in (first, second)]
            means = [side_values.mean(0) for side_values in values]
            test = paired(*means, users=users[rows], num_resamples=num_resamples, seed=seed)
            lines.append(Line(f"{metric}{sign}@{n}", test, tuple((values[1] - values[0]).mean(1).tolist())))
    return lines


def metric_values(metric: str, ranks: np.ndarray, n: int) -> np.ndarray:
    """A metric at n of each rank, float64 in the shape of the ranks."""
    return np.where(ranks <= n, METRICS[metric](ranks.astype(np.float64)), 0.0)
