"""Differences between members against sets and scipy."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from csrec_dist.evaluation.diversity import DiversitySums, differences, disagreement
from tests.helpers.dense_logits import dense


def compared(members: list[torch.Tensor], top_n: list[int], seen: torch.Tensor | None = None) -> torch.Tensor:
    """The differences of members with these logits [N, V]."""
    return differences([dense(logits) for logits in members], top_n, seen)


def members(num: int, num_rows: int = 9, num_items: int = 14) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(num)
    return [3 * torch.randn(num_rows, num_items, generator=generator) for _ in range(num)]


@pytest.mark.parametrize("num", [2, 3, 4])
def test_values_equal_sets_and_scipy(num: int) -> None:
    logits, top_n = members(num), [1, 5, 14]
    found = compared(logits, top_n)
    assert found.shape == (9, num * (num - 1) // 2, 4)
    for place, (one, other) in enumerate(itertools.combinations([part.double().numpy() for part in logits], 2)):
        for row in range(9):
            for column, n in enumerate(top_n):
                overlap = set(np.argsort(-one[row])[:n]) & set(np.argsort(-other[row])[:n])
                assert found[row, place, column] == pytest.approx(1 - len(overlap) / n)
            p, q = (np.exp(scores[row]) / np.exp(scores[row]).sum() for scores in (one, other))
            assert found[row, place, 3] == pytest.approx(jensenshannon(p, q) ** 2, rel=1e-6)


def test_equal_members_do_not_differ_and_opposite_ones_differ_most() -> None:
    logits = members(2)[0]
    assert compared([logits, logits], [3]).abs().max() < 1e-12
    apart = [torch.tensor([[200.0, 0.0, -200.0]]), torch.tensor([[-200.0, 0.0, 200.0]])]
    assert compared(apart, [1]).flatten().tolist() == pytest.approx([1, math.log(2)])


def test_the_divergence_is_symmetric_and_ignores_shifts() -> None:
    logits = members(2)
    assert torch.allclose(compared(logits, [3]), compared(logits[::-1], [3]), atol=1e-15)
    shifted = [logits[0] + 7, logits[1] - 3]
    assert torch.allclose(compared(shifted, [3]), compared(logits, [3]), atol=1e-6)


def test_seen_items_are_not_recommended_and_the_logits_stay() -> None:
    logits = [torch.tensor([[9.0, 8.0, 1.0, 0.0]]), torch.tensor([[9.0, 8.0, 0.0, 1.0]])]
    kept = [part.clone() for part in logits]
    seen = torch.tensor([[1, 2]])
    assert compared(logits, [1, 2])[0, 0, :2].tolist() == [0, 0]
    assert compared(logits, [1, 2], seen)[0, 0, :2].tolist() == [1, 0]
    assert compared(logits, [3], seen)[0, 0, 0] == 0  # only two items are left, and both recommend them
    assert all(torch.equal(part, before) for part, before in zip(logits, kept, strict=True))


def test_lists_longer_than_the_catalog_agree() -> None:
    assert compared(members(2, num_items=4), [10])[:, 0, 0].tolist() == [0] * 9
    assert disagreement(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64), 2).tolist() == [0]


def test_sums_give_means_of_pairs_and_of_all() -> None:
    values = compared(members(3), [2])
    sums = DiversitySums(["a", "b", "c"], [2])
    sums.update(values[:4])
    sums.update(values[4:])
    found = sums.compute()
    assert found["count"] == 9
    assert [pair["members"] for pair in found["pairs"]] == [["a", "b"], ["a", "c"], ["b", "c"]]
    for place, pair in enumerate(found["pairs"]):
        assert pair["jensen_shannon"] == pytest.approx(float(values[:, place, 1].mean()))
    for column, name in enumerate(("disagreement@2", "jensen_shannon")):
        assert found[name] == pytest.approx(float(values[:, :, column].mean()))
