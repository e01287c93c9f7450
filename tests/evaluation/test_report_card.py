"""The one pass over a model's logits, against each model alone and plain Python."""

import math
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from csrec_dist.data.batches import Batch
from csrec_dist.evaluation import evaluate, logits
from csrec_dist.evaluation.diversity import DiversitySums, compare_members, differences
from csrec_dist.evaluation.groups import ItemPopularity
from csrec_dist.evaluation.options import EvaluationOptions
from csrec_dist.evaluation.per_row import RANKS_SCHEMA, Columns, TargetFacts
from csrec_dist.evaluation.report_card import ReportCard, average_popularity, coverage, gini
from csrec_dist.evaluation.scoring import Ensemble
from csrec_dist.models import SequentialModel, build, config_class
from csrec_dist.runs.run import hidden_targets
from tests.helpers.dense_logits import dense

NUM_ITEMS = 23
CPU = torch.device("cpu")
ROWS = [[3, 4, 5], [1, 2], [9, 8, 7, 6, 5, 4, 3, 2, 1], [5, 5, 5, 6], [20, 23, 20], [7, 8, 9, 1, 2, 3, 11]]
RATINGS = np.array([5, 4, 3.5, np.nan, 1, 4], np.float32)
TRUE = np.array([5, 1, 0, 6, 22, 3], np.int32)
SHARES = [0.6, 0.3, 0.1]
"""Of the members whose weights were fitted."""
POPULARITY = ItemPopularity(np.arange(NUM_ITEMS, 0, -1))


def identity(tensor: Tensor) -> Tensor:
    return tensor


def batch(rows: list[list[int]], first: int = 0) -> Batch:
    items = torch.tensor([row + [0] * (9 - len(row)) for row in rows])
    numbers = torch.arange(first, first + len(rows))
    return Batch(items, torch.tensor([len(row) for row in rows]), torch.ones(len(rows)), numbers, numbers + 1, numbers)


def model(seed: int = 3) -> SequentialModel:
    made = build(config_class("gru4rec").model_validate({"width": 8}), NUM_ITEMS, 8, seed)
    with torch.no_grad():
        made.item_table.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return made.eval()


def options(**changes: Any) -> EvaluationOptions:
    return EvaluationOptions.model_validate({"top_n": [2, 10]} | changes)


def facts(ratings: np.ndarray = RATINGS, true: np.ndarray | None = None, leaked: tuple[int, ...] = ()) -> TargetFacts:
    true_targets = np.zeros(len(ratings), np.int32) if true is None else true
    return TargetFacts(ratings, true_targets, np.isin(np.arange(len(ratings)), leaked))


def report_card(
    question: EvaluationOptions,
    target_facts: TargetFacts,
    models: list[SequentialModel],
    combine: str | None = None,
    cut: int = 2,
) -> tuple[dict[str, Any], dict[str, list]]:
    """What is computed, and all columns, in two batches."""
    card = ReportCard(question, 8, POPULARITY, CPU)
    rule = {}
    if combine is not None:
        weights = SHARES[: len(models)] if combine == "weighted" else [1 / len(models)] * len(models)
        rule["ensemble"] = Ensemble(combine, weights)
    blocks = list(card.shard(models, [batch(ROWS[:cut]), batch(ROWS[cut:], cut)], target_facts, **rule))
    return card.compute(identity), joined(blocks)


def joined(blocks: list[Columns]) -> dict[str, list]:
    return {name: np.concatenate([block[name] for block in blocks]).tolist() for name in blocks[0]}


def scores_by_hand(one: SequentialModel, exclude_seen: bool = False) -> list[list[float]]:
    """Scores of items 1…V of each row's history, seen items at −inf if they are left out."""
    results = []
    for *history, _ in ROWS:
        scores = one.score([history])[0, 1:].tolist()
        results.append([-math.inf if exclude_seen and j + 1 in history else score for j, score in enumerate(scores)])
    return results


def rank_by_hand(scores: list[float], target: int) -> int:
    return sum(score >= scores[target - 1] for score in scores)


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_the_plain_metrics_are_those_of_evaluate(exclude_seen: bool) -> None:
    results, _ = report_card(options(exclude_seen=exclude_seen), facts(np.full(6, np.nan, np.float32)), [model()])
    plain = evaluate(model(), [batch(ROWS)], top_n=[2, 10], exclude_seen=exclude_seen, reduce=identity)
    assert results["test"] == pytest.approx(plain, rel=1e-14)


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_columns_hold_each_row(exclude_seen: bool) -> None:
    _, columns = report_card(options(exclude_seen=exclude_seen), facts(true=TRUE), [model()])
    scores = scores_by_hand(model(), exclude_seen)
    assert columns.keys() == set(RANKS_SCHEMA.names)
    assert columns["row"] == list(range(6))
    assert columns["user"] == list(range(1, 7))
    assert columns["target"] == [row[-1] for row in ROWS]
    assert columns["rank"] == [rank_by_hand(row, items[-1]) for row, items in zip(scores, ROWS, strict=True)]
    assert columns["history_length"] == [2, 1, 8, 3, 2, 6]
    assert columns["rating"] == pytest.approx(RATINGS.tolist(), nan_ok=True)
    assert columns["popularity_decile"] == [1 + (row[-1] - 1) * 10 // NUM_ITEMS for row in ROWS]
    assert columns["true_target"] == TRUE.tolist()
    assert columns["true_rank"] == [
        rank_by_hand(row, target) if target else 0 for row, target in zip(scores, TRUE.tolist(), strict=True)
    ]


def test_groups_hold_the_right_rows() -> None:
    results, columns = report_card(options(), facts(leaked=(1, 2, 5)), [model()])
    ranks = columns["rank"]

    def recall(rows: list[int]) -> float | None:
        return sum(ranks[row] <= 10 for row in rows) / len(rows) if rows else None

    expected: dict[str, dict[str, list[int]]] = {
        "rating": {"at_least_4": [0, 1, 5], "below_4": [2, 4]},
        "popularity": {"popular_20%": [0, 1, 2], "rest_80%": [3, 4, 5]},
        "history_length": {"1-5": [0, 1, 3, 4], "6-10": [2, 5]},
        "leak": {"clean": [0, 3, 4], "leaked": [1, 2, 5]},
        "repeat": {"new": [0, 1, 2, 3, 5], "repeated": [4]},
        "popularity_decile": {str(decile): [] for decile in range(1, 11)},
    }
    for row, items in enumerate(ROWS):
        expected["popularity_decile"][str(1 + (items[-1] - 1) * 10 // NUM_ITEMS)].append(row)
    assert results["groups"].keys() == expected.keys()
    for name, groups in expected.items():
        assert list(results["groups"][name]) == list(groups)
        for group, rows in groups.items():
            assert results["groups"][name][group]["count"] == len(rows)
            assert results["groups"][name][group]["recall@10"] == pytest.approx(recall(rows)), (name, group)
    assert results["test"]["recall+@10"] == pytest.approx(recall([0, 1, 5]))
    assert results["test"]["recall-@10"] == pytest.approx(recall([2, 4]))
    assert results["test"]["ndcg+@2"] == results["groups"]["rating"]["at_least_4"]["ndcg@2"]


def test_repeated_targets_rank_last_where_seen_items_are_left_out_and_are_counted() -> None:
    results, columns = report_card(options(exclude_seen=True), facts(), [model()])
    assert columns["rank"][4] == NUM_ITEMS
    repeat = results["groups"]["repeat"]
    assert (repeat["repeated"]["count"], repeat["repeated"]["recall@10"]) == (1, 0)
    assert repeat["new"]["recall@10"] == pytest.approx(results["test"]["recall@10"] * 6 / 5)
    assert hidden_targets(results["groups"], exclude_seen=True).startswith(
        "1 of 6 test targets are in their own history"
    )
    assert hidden_targets(results["groups"], exclude_seen=False) == ""


def test_without_repeated_targets_there_is_no_such_group() -> None:
    rows = [row for place, row in enumerate(ROWS) if place != 4]
    card = ReportCard(options(), 8, POPULARITY, CPU)
    deque(card.shard([model()], [batch(rows)], facts(RATINGS[:5])), maxlen=0)
    groups = card.compute(identity)["groups"]
    assert "repeat" not in groups
    assert hidden_targets(groups, exclude_seen=True) == ""


def test_a_log_without_ratings_has_no_filtered_metrics() -> None:
    results, _ = report_card(options(), facts(np.full(6, np.nan, np.float32)), [model()])
    assert "rating" not in results["groups"]
    assert not [name for name in results["test"] if "+" in name or "-" in name]


def test_a_log_without_disliked_targets_says_so_by_a_count_of_zero() -> None:
    results, _ = report_card(options(), facts(np.full(6, 5, np.float32)), [model()])
    empty = results["groups"]["rating"]["below_4"]
    assert empty["count"] == 0
    assert {value for name, value in empty.items() if name != "count"} == {None}
    assert results["test"]["recall+@10"] == results["test"]["recall@10"]
    assert "recall-@10" not in results["test"]


def test_true_targets_are_scored_where_they_are_known() -> None:
    results, columns = report_card(options(), facts(true=TRUE), [model()])
    ranks = [rank for rank, target in zip(columns["true_rank"], TRUE, strict=True) if target]
    assert results["test"]["recall_true@2"] == pytest.approx(sum(rank <= 2 for rank in ranks) / 5)
    assert results["test"]["mrr_true"] == pytest.approx(sum(1 / rank for rank in ranks) / 5)
    assert not [name for name in report_card(options(), facts(), [model()])[0]["test"] if "true" in name]


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_lists_and_calibration_equal_lists_by_hand(exclude_seen: bool) -> None:
    results, _ = report_card(options(top_n=(2, 50), exclude_seen=exclude_seen), facts(), [model()])
    scores = scores_by_hand(model(), exclude_seen)
    lists = [[j + 1 for j in np.argsort(-np.array(row)) if row[j] > -math.inf] for row in scores]
    for n in (2, 50):
        listed = [item for row in lists for item in row[:n]]
        assert results["lists"][f"coverage@{n}"] == pytest.approx(len(set(listed)) / NUM_ITEMS)
        mean = sum(NUM_ITEMS + 1 - item for item in listed) / len(listed)
        assert results["lists"][f"average_popularity@{n}"] == pytest.approx(mean)
    whole = torch.tensor(scores_by_hand(model())).softmax(1)
    assert results["calibration"]["confidence"] == pytest.approx(float(whole.max(1).values.mean()), rel=1e-6)
    hits = [int(row.argmax()) + 1 == items[-1] for row, items in zip(whole, ROWS, strict=True)]
    assert results["calibration"]["accuracy"] == pytest.approx(sum(hits) / 6)


def test_empty_lists_have_no_popularity() -> None:
    counts = np.zeros(5, np.int64)
    assert (coverage(counts), gini(counts), average_popularity(counts, np.arange(5))) == (0, 0, 0)


def test_extras_can_be_left_out() -> None:
    results, _ = report_card(options(lists=False, calibration=False), facts(), [model()])
    assert results.keys() == {"test", "groups"}


@pytest.mark.parametrize("rule", ["logit_mean", "weighted", "prob_mean"])
def test_members_rank_together_by_their_rule(rule: str) -> None:
    members = [model(1), model(2), model(3)]
    _, columns = report_card(options(), facts(), members, combine=rule)
    parts = torch.stack([torch.tensor(scores_by_hand(one)) for one in members])
    shares = torch.tensor(SHARES if rule == "weighted" else [1 / 3] * 3, dtype=parts.dtype)
    together = torch.einsum("m,mnv->nv", shares, parts.softmax(2) if rule == "prob_mean" else parts)
    assert columns["rank"] == [rank_by_hand(row, items[-1]) for row, items in zip(together.tolist(), ROWS, strict=True)]


def test_blocks_and_batches_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, columns = report_card(options(), facts(true=TRUE), [model()])
    monkeypatch.setitem(logits.TILE_BYTES, "cpu", 2 * 16 * 4)
    monkeypatch.setitem(logits.BLOCK_ROWS, "cpu", 2)
    parts, others = report_card(options(), facts(true=TRUE), [model()], cut=5)
    assert others.keys() == columns.keys()
    for name, values in columns.items():
        assert others[name] == pytest.approx(values, nan_ok=True), name
    assert parts["test"] == pytest.approx(whole["test"], rel=1e-12)
    assert parts["lists"] == whole["lists"]
    assert parts["calibration"]["ece"] == pytest.approx(whole["calibration"]["ece"], abs=1e-6)


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_members_are_compared_row_by_row(monkeypatch: pytest.MonkeyPatch, exclude_seen: bool) -> None:
    monkeypatch.setitem(logits.TILE_BYTES, "cpu", 1)
    members = [model(1), model(2), model(3)]
    sums = DiversitySums(["a", "b", "c"], [3])
    columns = joined(
        list(compare_members(members, [batch(ROWS[:4]), batch(ROWS[4:], 4)], sums, exclude_seen=exclude_seen))
    )
    scores = [dense(torch.tensor(scores_by_hand(one))) for one in members]
    histories = torch.tensor([row[:-1] + [0] * (9 - len(row)) for row in ROWS])
    expected = differences(scores, [3], histories if exclude_seen else None).mean(1)
    assert columns["row"] == list(range(6))
    assert columns["disagreement@3"] == pytest.approx(expected[:, 0].tolist())
    assert columns["jensen_shannon"] == pytest.approx(expected[:, 1].tolist(), abs=1e-6)
    assert sums.compute()["disagreement@3"] == pytest.approx(float(expected[:, 0].mean()))
