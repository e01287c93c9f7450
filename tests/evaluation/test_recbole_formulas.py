"""Our metrics against RecBole's definitions, computed from the matrix of hits as that library does."""

import numpy as np
import pytest
import torch

from csrec_dist.evaluation import MetricSums, target_ranks


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
    ranks = target_ranks(torch.eye(50), torch.from_numpy(scores).float().T.contiguous(), torch.from_numpy(targets))
    sums = MetricSums(top_n)
    sums.update(ranks, torch.ones(50))
    found, theirs = sums.compute(), recbole(hits(scores, targets, max(top_n)))
    for name, values in theirs.items():
        for n in top_n:
            assert found[f"{name}@{n}"] == pytest.approx(values[n - 1], rel=1e-12), (name, n)
