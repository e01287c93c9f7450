"""Metrics against worked examples, hand tables and another library."""

import doctest
import math
import random

import pytest
import torch

from csrec_dist.distributed.catalog import PlainTable
from csrec_dist.evaluation import MetricSums, metrics, ndcg, recall, reciprocal_rank, target_ranks


def test_the_worked_examples_hold() -> None:
    results = doctest.testmod(metrics, extraglobs={"torch": torch})
    assert results.attempted >= 7
    assert results.failed == 0


def mean_by_hand(ranks: list[int], weights: list[float], n: int) -> dict[str, float]:
    total = sum(weights)
    kept = [(rank, weight) for rank, weight in zip(ranks, weights, strict=True) if rank <= n]
    return {
        f"recall@{n}": sum(weight for _, weight in kept) / total,
        f"ndcg@{n}": sum(weight * math.log(2) / math.log(rank + 1) for rank, weight in kept) / total,
        f"mrr@{n}": sum(weight / rank for rank, weight in kept) / total,
        "mrr": sum(weight / rank for rank, weight in zip(ranks, weights, strict=True)) / total,
    }


@pytest.mark.parametrize("n", [1, 5, 10])
def test_means_equal_a_hand_table(n: int) -> None:
    draw = random.Random(n)
    ranks = [draw.randint(1, 30) for _ in range(200)]
    weights = [float(draw.choice([0, 1, 2])) for _ in range(200)]
    sums = MetricSums([n])
    sums.update(torch.tensor(ranks), torch.tensor(weights))
    assert sums.compute() == pytest.approx(mean_by_hand(ranks, weights, n), rel=1e-12)


def test_one_user() -> None:
    sums = MetricSums([1, 3])
    sums.update(torch.tensor([3]), torch.tensor([1.0]))
    assert sums.compute() == pytest.approx(
        {
            "recall@1": 0,
            "ndcg@1": 0,
            "mrr@1": 0,
            "recall@3": 1,
            "ndcg@3": 0.5,
            "mrr@3": 1 / 3,
            "mrr": 1 / 3,
        }
    )


def test_batches_and_ranks_of_any_size_add_up() -> None:
    ranks = torch.randint(1, 40, (97,), generator=torch.Generator().manual_seed(0))
    weights = (torch.arange(97) % 5 > 0).float()
    whole = MetricSums([5, 10])
    whole.update(ranks, weights)
    for num_ranks in (2, 3, 8):
        parts = [MetricSums([5, 10]) for _ in range(num_ranks)]
        for start in range(0, 97, 10):
            parts[start % num_ranks].update(ranks[start : start + 10], weights[start : start + 10])
        reduced = MetricSums([5, 10])
        reduced.tensor = torch.stack([part.tensor for part in parts]).sum(0)
        assert reduced.compute() == pytest.approx(whole.compute(), rel=1e-14)


def test_sums_stay_exact_where_single_precision_would_not() -> None:
    sums = MetricSums([1])
    sums.tensor += 2.0**25
    sums.update(torch.tensor([1]), torch.tensor([1.0]))
    assert sums.tensor.tolist() == [2.0**25 + 1] * 5


def test_weight_zero_leaves_an_example_out() -> None:
    sums = MetricSums([5])
    sums.update(torch.tensor([1, 9]), torch.tensor([0.0, 1.0]))
    assert sums.compute() == {"recall@5": 0.0, "ndcg@5": 0.0, "mrr@5": 0.0, "mrr": 1 / 9}


def test_no_example_is_an_error() -> None:
    sums = MetricSums([5])
    sums.update(torch.tensor([1]), torch.tensor([0.0]))
    with pytest.raises(ValueError, match="No example was evaluated"):
        sums.compute()


def test_torchmetrics_agrees() -> None:
    retrieval = pytest.importorskip("torchmetrics.functional.retrieval")
    generator = torch.Generator().manual_seed(0)
    scores = 0.1 + torch.rand(20, 40, generator=generator)  # positive: it takes an item scored ≤ 0 for no hit
    targets = torch.randint(1, 41, (20,), generator=generator)
    ranks = target_ranks(torch.eye(20), PlainTable.whole(scores.T.contiguous()), targets)
    for row in range(20):
        relevant = torch.zeros(40, dtype=torch.bool)
        relevant[targets[row] - 1] = True
        rank = ranks[row : row + 1]
        assert float(reciprocal_rank(rank)) == pytest.approx(
            float(retrieval.retrieval_reciprocal_rank(scores[row], relevant))
        )
        for n in (1, 5, 40):
            theirs = {
                recall: retrieval.retrieval_recall(scores[row], relevant, top_k=n),
                ndcg: retrieval.retrieval_normalized_dcg(scores[row], relevant.long(), top_k=n),
                reciprocal_rank: retrieval.retrieval_reciprocal_rank(scores[row], relevant, top_k=n),
            }
            for metric, value in theirs.items():
                assert float(metric(rank, n)) == pytest.approx(float(value), rel=1e-5), metric


@pytest.mark.parametrize("n", [1, 5, 20])
def test_means_over_rows_agree_with_torchmetrics(n: int) -> None:
    retrieval = pytest.importorskip("torchmetrics.retrieval")
    generator = torch.Generator().manual_seed(n)
    scores = 0.1 + torch.rand(60, 40, generator=generator)
    targets = torch.randint(1, 41, (60,), generator=generator)
    sums = MetricSums([n])
    for rows in torch.arange(60).split(17):
        ranks = target_ranks(torch.eye(len(rows)), PlainTable.whole(scores[rows].T.contiguous()), targets[rows])
        sums.update(ranks, torch.ones(len(rows)))
    names = {"recall": "RetrievalRecall", "ndcg": "RetrievalNormalizedDCG", "mrr": "RetrievalMRR"}
    relevant = torch.arange(1, 41) == targets.unsqueeze(1)
    queries = torch.arange(60).unsqueeze(1).expand(60, 40)
    for name, theirs in names.items():
        metric = getattr(retrieval, theirs)(top_k=n)
        metric.update(scores.flatten(), relevant.flatten(), indexes=queries.flatten())
        assert sums.compute()[f"{name}@{n}"] == pytest.approx(float(metric.compute()), rel=1e-5), name
