"""Paired comparison against formulas by hand, and the error rates it promises."""

import math

import numpy as np
import pytest
from scipy import stats

from csrec_dist.evaluation.significance import holm, mean_interval, paired, resamples_of, standard_error


def test_the_p_value_is_that_of_students_formula() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(size=40), random.normal(0.3, 1, size=40)
    found = paired(first, second)
    differences = second - first
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(40))
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(t), 39), rel=1e-9)
    assert found.difference == pytest.approx(differences.mean())
    assert (found.first, found.second, found.count) == (pytest.approx(first.mean()), pytest.approx(second.mean()), 40)


def test_the_interval_is_that_of_resampled_pairs() -> None:
    random = np.random.default_rng(1)
    first = random.normal(size=200)
    second = first + random.normal(0.1, 0.05, size=200)
    found = paired(first, second, num_resamples=4000)
    means = [(second - first)[random.integers(200, size=200)].mean() for _ in range(4000)]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-3)
    assert found.low > 0.08  # unpaired it would be ten times as wide


def test_the_interval_and_the_p_value_are_those_of_scipy() -> None:
    random = np.random.default_rng(5)
    first, second = random.normal(size=(2, 150))
    found = paired(first, second, num_resamples=500, seed=7)
    options = {"n_resamples": 500, "method": "percentile", "rng": np.random.default_rng(7)}
    theirs = stats.bootstrap((second - first,), np.mean, **options).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)
    assert found.p_value == pytest.approx(stats.ttest_rel(second, first).pvalue, rel=1e-9)


def test_one_example_a_user_is_the_usual_test() -> None:
    random = np.random.default_rng(6)
    first, second = random.normal(size=(2, 90))
    assert paired(first, second, users=random.permutation(90) + 7).p_value == pytest.approx(
        stats.ttest_rel(second, first).pvalue, rel=1e-9
    )
    for of_several in (standard_error, mean_interval):
        with pytest.raises(ValueError, match="at least two users are needed"):
            of_several(first, users=np.zeros(len(first), int))
    assert standard_error(first) == pytest.approx(stats.sem(first), rel=1e-12)


def test_users_are_the_sample() -> None:
    """Ten copies of each user's example say as much as one: a test over rows would be ten times as sure."""
    random = np.random.default_rng(7)
    first, second = random.normal(size=(2, 50))
    users = np.tile(np.arange(50), 10)
    one, copied = paired(first, second), paired(np.tile(first, 10), np.tile(second, 10), users=users)
    assert (copied.count, copied.num_users) == (500, 50)
    assert (copied.p_value, copied.low, copied.high) == pytest.approx((one.p_value, one.low, one.high), rel=1e-9)
    assert paired(np.tile(first, 10), np.tile(second, 10)).p_value < one.p_value / 2
    assert mean_interval(np.tile(first, 10), users=users) == pytest.approx(mean_interval(first))


def test_users_count_by_their_examples() -> None:
    """Of users with more and fewer examples: the mean over the examples of those that were drawn."""
    random = np.random.default_rng(3)
    users = np.repeat(np.arange(4), [1, 2, 5, 30])
    values = random.normal(size=38) + users
    drawn = np.random.default_rng(7).integers(4, size=(500, 4))
    sums, sizes = np.bincount(users, values), np.bincount(users)
    expected = np.quantile(sums[drawn].sum(1) / sizes[drawn].sum(1), [0.025, 0.975])
    mean, low, high = mean_interval(values, users=users, num_resamples=500, seed=7)
    assert (mean, low, high) == pytest.approx((values.mean(), *expected), rel=1e-12)


def test_users_with_a_common_effect_are_marked_once_in_twenty_times() -> None:
    random = np.random.default_rng(8)
    marked = {"users": 0, "rows": 0}
    for _ in range(300):
        users = np.repeat(np.arange(60), random.integers(1, 9, 60))
        differences = random.normal(size=60)[users] + 0.3 * random.normal(size=len(users))
        zeros = np.zeros(len(users))
        found = paired(zeros, differences, users=users, num_resamples=200)
        marked["users"] += found.is_significant
        marked["rows"] += paired(zeros, differences, num_resamples=2).is_significant
    assert 5 <= marked["users"] <= 32
    assert marked["rows"] > 60


def test_holms_correction_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_seed_decides_the_interval() -> None:
    random = np.random.default_rng(2)
    first, second = random.normal(size=50), random.normal(size=50)
    assert paired(first, second, seed=3) == paired(first, second, seed=3)
    assert paired(first, second, seed=3) != paired(first, second, seed=4)


def test_models_that_do_not_differ_are_marked_once_in_twenty_times() -> None:
    random = np.random.default_rng(3)
    found = [paired(*random.normal(size=(2, 60)), num_resamples=200) for _ in range(400)]
    marked = sum(each.is_significant for each in found)
    outside = sum(not each.low <= 0 <= each.high for each in found)
    assert 8 <= marked <= 36
    assert 8 <= outside <= 44


@pytest.mark.parametrize(("shift", "p_value"), [(0.0, 1.0), (0.5, 0.125), (0.1, 0.125)])
@pytest.mark.filterwarnings("error")
def test_equal_differences_are_no_division_by_zero(shift: float, p_value: float) -> None:
    """Their signs alone are evidence: two of the sixteen ways in which four can fall are as extreme."""
    first = np.array([0.0, 1.0, 0.25, 1.0])
    found = paired(first, first + shift)
    assert found.p_value == p_value
    assert (found.low, found.high) == pytest.approx((shift, shift), rel=1e-12)


@pytest.mark.parametrize(("first", "second"), [([1.0], [2.0]), ([1.0, 2.0], [1.0, 2.0, 3.0])])
def test_what_cannot_be_paired_is_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(ValueError, match=r"pairs of examples are|at least two users are"):
        paired(np.array(first), np.array(second))


def test_one_user_cannot_be_tested() -> None:
    with pytest.raises(ValueError, match="two users"):
        paired(np.zeros(3), np.ones(3), users=np.ones(3))


def test_many_rows_have_fewer_resamples() -> None:
    assert resamples_of(1000) == 2000
    assert resamples_of(2**20) == 256
    assert resamples_of(10**9) == 200
