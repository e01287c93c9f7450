"""Our metrics against RecBole: its definitions written out, and the numbers that it gave on the same scores."""

import numpy as np
import pytest
import torch

from csrec_dist.distributed.catalog import PlainTable
from csrec_dist.evaluation import MetricSums, target_ranks, top_items
from csrec_dist.evaluation.report_card import ListCounts

NUM_ROWS, NUM_ITEMS, TOP_N = 50, 60, [1, 5, 10, 20]
# What the collector and evaluator of RecBole 1.2.1 return (metric_decimal_place 15) for `golden_scores` behind a column
# of −∞ for padding, item i being counted 1 + 7 i mod 23 times in training. They take padding for one more item.
GOLDEN = {
    "recall": [0.42, 0.5, 0.66, 0.82],
    "ndcg": [0.42, 0.458092707360811, 0.507220535580033, 0.548464600235084],
    "mrr": [0.42, 0.444666666666667, 0.463444444444444, 0.475137973137973],
    "coverage": [0.524590163934426, 0.967213114754098, 0.967213114754098, 0.967213114754098],
    "gini": [0.616393442622951, 0.237508196721311, 0.151344262295082, 0.106262295081967],
    "average_popularity": [12.34, 12.636, 12.206, 12.196],
}


def golden_scores() -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [N, V] without ties, whole numbers below 2²⁴, and targets [N] in 1…V, many of them near the top."""
    rows, items = torch.arange(NUM_ROWS), torch.arange(NUM_ITEMS)
    scores = (7919 * (2 * rows[:, None] + 3) * (items + 1)) % 104729
    targets = 1 + (7 * rows**2 + 3 * rows) % NUM_ITEMS
    scores[rows, targets - 1] += 50000
    return scores.float(), targets


def hits(scores: np.ndarray, targets: np.ndarray, longest: int) -> np.ndarray:
    """pos_index: whether the item at each place of the top list is the target, [N, longest]."""
    top = np.argsort(-scores, axis=1)[:, :longest]
    return top == (targets - 1)[:, None]


def recbole(pos_index: np.ndarray) -> dict[str, np.ndarray]:
    """Recall, NDCG and MRR at 1…longest, means over the rows, with one relevant item (pos_len = 1)."""
    num_rows, longest = pos_index.shape
    pos_len = np.ones(num_rows, int)
    recall = np.cumsum(pos_index, axis=1) / pos_len[:, None]
    places = np.arange(1, longest + 1)
    ideal = np.cumsum(1 / np.log2(places + 1))
    idcg = np.stack([np.minimum(ideal, ideal[length - 1]) for length in pos_len])
    dcg = np.cumsum(np.where(pos_index, 1 / np.log2(places + 1), 0), axis=1)
    first = pos_index.argmax(axis=1)
    mrr = np.zeros((num_rows, longest))
    for row, place in enumerate(first):
        if pos_index[row, place]:
            mrr[row, place:] = 1 / (place + 1)
    return {"recall": recall.mean(0), "ndcg": (dcg / idcg).mean(0), "mrr": mrr.mean(0)}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_scores_give_the_same_metrics(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.permuted(np.tile(np.arange(60.0), (50, 1)), axis=1)
    targets = random.integers(1, 61, 50)
    top_n = [1, 5, 10, 20]
    table = PlainTable.whole(torch.from_numpy(scores).float().T.contiguous())
    ranks = target_ranks(torch.eye(50), table, torch.from_numpy(targets))
    sums = MetricSums(top_n)
    sums.update(ranks, torch.ones(50))
    found, theirs = sums.compute(), recbole(hits(scores, targets, max(top_n)))
    for name, values in theirs.items():
        for n in top_n:
            assert found[f"{name}@{n}"] == pytest.approx(values[n - 1], rel=1e-12), (name, n)


def test_recbole_s_own_numbers_on_the_same_scores() -> None:
    scores, targets = golden_scores()
    states, items = torch.eye(NUM_ROWS), scores.T.contiguous()
    sums = MetricSums(TOP_N)
    sums.update(target_ranks(states, PlainTable.whole(items), targets), torch.ones(NUM_ROWS))
    with_padding = ListCounts(TOP_N, NUM_ITEMS + 1)
    with_padding.update(top_items(states, PlainTable.whole(items), max(TOP_N))[0])
    popularity = 1 + 7 * np.arange(1, NUM_ITEMS + 2) % 23
    found = sums.compute() | with_padding.compute(popularity)
    for name, values in GOLDEN.items():
        assert [found[f"{name}@{n}"] for n in TOP_N] == pytest.approx(values, rel=1e-13), name
