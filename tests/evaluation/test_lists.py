"""Coverage, Gini index and average popularity of lists, against definitions and other libraries' formulas."""

import itertools

import numpy as np
import pytest
import torch

from csrec_dist.evaluation.report_card import ListCounts, average_popularity, coverage, gini


def gini_by_definition(counts: list[int]) -> float:
    """Mean absolute difference of all pairs over twice the mean."""
    pairs = [abs(one - other) for one, other in itertools.product(counts, repeat=2)]
    return sum(pairs) / len(pairs) / (2 * sum(counts) / len(counts))


@pytest.mark.parametrize("counts", [[1], [5, 5, 5], [0, 0, 7], [3, 0, 9, 1, 1, 4], [2, 1]])
def test_gini_is_half_the_relative_mean_difference(counts: list[int]) -> None:
    assert gini(np.array(counts)) == pytest.approx(gini_by_definition(counts), abs=1e-12)


def recbole(lists: np.ndarray, num_items: int, popularity: np.ndarray) -> dict[str, float]:
    """ItemCoverage, GiniIndex and AveragePopularity as RecBole defines them, on a matrix of lists."""
    found, counts = np.unique(lists, return_counts=True)
    ordered = np.sort(counts)
    places = np.arange(num_items - len(ordered) + 1, num_items + 1)
    return {
        "coverage": len(found) / num_items,
        "gini": float(((2 * places - num_items - 1) * ordered).sum() / lists.size / num_items),
        "average_popularity": float(np.mean([popularity[row - 1].mean() for row in lists])),
    }


@pytest.mark.parametrize("n", [1, 3, 8])
def test_recbole_agrees(n: int) -> None:
    random = np.random.default_rng(n)
    lists = np.stack([random.permutation(25)[:8] + 1 for _ in range(40)])
    popularity = random.integers(0, 50, 25)
    counts = ListCounts([n], 25)
    for start in range(0, 40, 7):
        counts.update(torch.from_numpy(lists[start : start + 7]))
    found = counts.compute(popularity)
    for name, value in recbole(lists[:, :n], 25, popularity).items():
        assert found[f"{name}@{n}"] == pytest.approx(value, rel=1e-12), name


def test_a_hand_table() -> None:
    counts = ListCounts([1, 2], 4)
    counts.update(torch.tensor([[1, 2], [1, 3], [1, 2]]))
    popularity = np.array([10, 4, 1, 0])
    found = counts.compute(popularity)
    assert found == {
        "coverage@1": 1 / 4,
        "gini@1": 3 / 4,
        "average_popularity@1": 10.0,
        "coverage@2": 3 / 4,
        "gini@2": pytest.approx(gini_by_definition([3, 2, 1, 0])),
        "average_popularity@2": pytest.approx((3 * 10 + 2 * 4 + 1) / 6),
    }


def test_places_without_an_item_count_for_nothing() -> None:
    counts = ListCounts([3], 3)
    counts.update(torch.tensor([[2, 0, 0], [2, 3, 0]]))
    assert counts.tensor.tolist() == [[0, 2, 1]]


def test_the_parts_by_themselves() -> None:
    assert coverage(np.array([0, 3, 1, 0])) == 0.5
    assert average_popularity(np.array([1, 0, 3]), np.array([8, 100, 4])) == 5
