"""Metrics by group against hand tables: ratings, popularity, history length, empty groups, one user."""

import math
import random

import numpy as np
import pytest
import torch

from csrec_dist.data.dataset import Dataset
from csrec_dist.evaluation.groups import (
    GroupSums,
    ItemPopularity,
    length_buckets,
    length_group,
)
from csrec_dist.evaluation.per_row import rating_group


def test_filtered_metrics_divide_by_the_targets_that_are_rated_high() -> None:
    ranks = torch.tensor([1, 3, 20, 2, 4, 1])
    ratings = np.array([5.0, 4.0, 4.5, 3.9, 1.0, math.nan], np.float32)
    sums = GroupSums(["high", "low"], [10], "cpu")
    sums.update(torch.from_numpy(rating_group(ratings, 4)), ranks, torch.ones(6))
    found = sums.compute()
    assert found["high"]["count"] == 3
    assert found["high"]["recall@10"] == pytest.approx(2 / 3)
    assert found["high"]["ndcg@10"] == pytest.approx((1 + 1 / 2) / 3)
    assert found["low"]["count"] == 2
    assert found["low"]["recall@10"] == 1
    assert found["low"]["ndcg@10"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / 2)
    assert found["low"]["mrr"] == pytest.approx((1 / 2 + 1 / 4) / 2)


@pytest.mark.parametrize(("threshold", "expected"), [(4, [0, 1, 1]), (3.5, [0, 0, 1]), (5.5, [1, 1, 1])])
def test_the_threshold_itself_counts_as_high(threshold: float, expected: list[int]) -> None:
    assert rating_group(np.array([4.0, 3.5, 0.0], np.float32), threshold).tolist() == expected


def test_empty_groups_have_count_zero_and_no_value() -> None:
    sums = GroupSums(["a", "b"], [1, 5])
    sums.update(torch.tensor([1, 1, -1]), torch.tensor([1, 2, 1]), torch.tensor([1.0, 1.0, 1.0]))
    assert sums.compute()["a"] == {"count": 0, **dict.fromkeys(sums_names(), None)}
    assert sums.compute()["b"]["count"] == 2
    assert sums.compute()["b"]["recall@1"] == 0.5


def sums_names() -> list[str]:
    return ["recall@1", "ndcg@1", "mrr@1", "recall@5", "ndcg@5", "mrr@5", "mrr"]


def test_one_user_is_in_one_group() -> None:
    sums = GroupSums(["a", "b", "c"], [5])
    sums.update(torch.tensor([2]), torch.tensor([3]), torch.tensor([1.0]))
    assert [group["count"] for group in sums.compute().values()] == [0, 0, 1]
    assert sums.compute()["c"]["ndcg@5"] == 0.5


def test_groups_equal_a_count_by_hand_and_add_up_over_ranks() -> None:
    draw = random.Random(0)
    rows = [(draw.randint(-1, 3), draw.randint(1, 30), float(draw.randint(0, 1))) for _ in range(300)]
    parts = [GroupSums("abcd", [5]) for _ in range(3)]
    for start in range(0, 300, 20):
        groups, ranks, weights = zip(*rows[start : start + 20], strict=True)
        parts[start // 20 % 3].update(torch.tensor(groups), torch.tensor(ranks), torch.tensor(weights))
    parts[0].tensor = parts[0].tensor + parts[1].tensor + parts[2].tensor
    for place, found in enumerate(parts[0].compute().values()):
        held = [rank for group, rank, weight in rows if group == place and weight]
        assert found["count"] == len(held)
        assert found["recall@5"] == pytest.approx(sum(rank <= 5 for rank in held) / len(held), rel=1e-14)
        assert found["mrr"] == pytest.approx(sum(1 / rank for rank in held) / len(held), rel=1e-14)


def test_joined_groups_are_the_sums_of_their_parts() -> None:
    sums = GroupSums("abc", [5])
    sums.update(torch.tensor([0, 1, 1, 2]), torch.tensor([1, 2, 9, 4]), torch.ones(4))
    joined = sums.joined({"first": slice(0, 2), "rest": slice(2, 3)}).compute()
    assert [group["count"] for group in joined.values()] == [3, 1]
    assert joined["first"]["recall@5"] == pytest.approx(2 / 3)
    assert joined["rest"] == sums.compute()["c"]


def test_deciles_follow_the_training_counts_and_ties_the_ids() -> None:
    counts = np.array([3, 9, 3, 0, 7, 3, 3, 1, 100, 0, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    deciles = ItemPopularity(counts).deciles
    ordered = sorted(range(20), key=lambda item: (-counts[item], item))
    assert [deciles[item] for item in ordered] == [1 + place // 2 for place in range(20)]
    assert {int(item) for item in np.flatnonzero(deciles <= 2)} == {8, 1, 4, 0}


@pytest.mark.parametrize("num_items", [1, 3, 9, 10, 11, 57, 1000])
def test_two_deciles_are_the_popular_fifth_of_any_catalog(num_items: int) -> None:
    counts = np.random.default_rng(num_items).integers(0, 5, num_items)
    popular = ItemPopularity(counts).deciles <= 2
    assert popular.sum() == math.ceil(0.2 * num_items)
    assert counts[popular].min() >= counts[~popular].max(initial=0)


def test_popularity_is_read_from_the_training_rows(small_dataset: str) -> None:
    dataset = Dataset(small_dataset)
    counts = np.zeros(dataset.num_items, np.int64)
    for shard in range(dataset.num_shards):
        for block in dataset.open_shard("train", shard).blocks():
            np.add.at(counts, block.values - 1, 1)
    assert ItemPopularity.read(dataset).counts.tolist() == counts.tolist()


def test_history_lengths_fall_into_their_buckets() -> None:
    names = length_buckets(1000)
    assert names == ["1-5", "6-10", "11-15", "16-20", "21-50", "51-100", "101+"]
    for name, (low, high) in zip(
        names, [(1, 5), (6, 10), (11, 15), (16, 20), (21, 50), (51, 100), (101, 999)], strict=True
    ):
        assert [names[place] for place in length_group(torch.tensor([low, high])).tolist()] == [name, name]
    assert length_buckets(19) == names[:4]
    assert length_buckets(5) == names[:1]
