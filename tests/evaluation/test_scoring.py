"""Evaluation of models: the right history, the right target, the right mode."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from csrec_dist.evaluation import evaluate
from csrec_dist.models import MODELS, SequentialModel, build, config_class

NUM_ITEMS = 23


@dataclass(frozen=True)
class Rows:
    items: Tensor
    lengths: Tensor
    weights: Tensor


def pad(rows: list[list[int]], weights: list[float], width: int = 9) -> Rows:
    items = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return Rows(items, torch.tensor([len(row) for row in rows]), torch.tensor(weights))


def identity(tensor: Tensor) -> Tensor:
    return tensor


def make(name: str) -> SequentialModel:
    model = build(config_class(name).model_validate({"width": 8}), NUM_ITEMS, 8, 3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return model


ROWS = [[3, 4, 5], [1, 2], [9, 8, 7, 6, 5, 4, 3, 2, 1], [5, 5, 5, 6], [20, 23, 20]]


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_metrics_equal_those_of_each_history_alone(name: str, exclude_seen: bool) -> None:
    model = make(name)
    result = evaluate(
        model,
        [pad(ROWS[:2], [1, 1]), pad(ROWS[2:], [1, 1, 1])],
        top_n=[2, 10],
        exclude_seen=exclude_seen,
        reduce=identity,
    )
    model.eval()
    ranks = []
    for *history, target in ROWS:
        scores = model.score([history])[0].tolist()
        if exclude_seen:
            scores = [-math.inf if item in history else score for item, score in enumerate(scores)]
        better = [item for item in range(1, NUM_ITEMS + 1) if item != target and scores[item] >= scores[target]]
        ranks.append(1 + len(better))
    for n in (2, 10):
        assert result[f"recall@{n}"] == pytest.approx(sum(rank <= n for rank in ranks) / 5)
        gains = [1 / math.log2(rank + 1) for rank in ranks if rank <= n]
        assert result[f"ndcg@{n}"] == pytest.approx(sum(gains) / 5)
    assert result["mrr"] == pytest.approx(sum(1 / rank for rank in ranks) / 5)
    assert exclude_seen is False or ranks[4] == NUM_ITEMS


class Spy(SequentialModel):
    """Remembers what it was shown, and whether it was in evaluation mode without gradients."""

    def encode(self, histories: Tensor) -> Tensor:
        self.shown = histories.clone()
        self.quiet = not self.training and not torch.is_grad_enabled()
        return self.item_table(histories)


def spy() -> Spy:
    model = Spy(config_class("gru4rec").model_validate({"width": 8}), NUM_ITEMS, 8)
    torch.nn.init.normal_(model.item_table.weight)
    return model


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_shown_histories_only_and_left_as_it_was(training: bool) -> None:
    model = spy().train(training)
    evaluate(model, [pad(ROWS, [1] * 5)], top_n=[1], exclude_seen=False, reduce=identity)
    assert model.quiet
    assert model.training is training
    assert [[item for item in row if item] for row in model.shown.tolist()] == [row[:-1] for row in ROWS]


def test_the_mode_comes_back_after_an_error() -> None:
    model = spy().train()
    with pytest.raises(AssertionError):
        evaluate(model, [pad([[3]], [1])], top_n=[1], exclude_seen=False, reduce=identity)
    assert model.training


def test_rows_that_fill_a_batch_count_for_nothing() -> None:
    model = spy()
    plain = evaluate(model, [pad(ROWS, [1] * 5)], top_n=[2], exclude_seen=True, reduce=identity)
    filled = evaluate(
        model,
        [pad([*ROWS, [], [7], [1, 2]], [1, 1, 1, 1, 1, 0, 0, 0]), pad([[]], [0], width=2)],
        top_n=[2],
        exclude_seen=True,
        reduce=identity,
    )
    assert filled == plain


def test_ranks_add_up_their_sums_once() -> None:
    model = spy()
    whole = evaluate(model, [pad(ROWS, [1] * 5)], top_n=[2], exclude_seen=False, reduce=identity)
    other: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        other.append(tensor.clone())
        return tensor

    evaluate(model, [pad(ROWS[:1], [1])], top_n=[2], exclude_seen=False, reduce=keep)
    both = evaluate(
        model, [pad(ROWS[1:], [1] * 4)], top_n=[2], exclude_seen=False, reduce=lambda tensor: tensor + other[0]
    )
    assert both == pytest.approx(whole, rel=1e-14)
    without = evaluate(model, [], top_n=[2], exclude_seen=False, reduce=lambda tensor: tensor + other[0])
    assert len(other) == 1
    assert without["mrr"] > 0


def test_the_item_bias_is_ranked_too() -> None:
    model = spy()
    model.item_table.bias = torch.nn.Parameter(torch.zeros(NUM_ITEMS))
    with torch.no_grad():
        model.item_table.bias[6] = 1e6
    result = evaluate(model, [pad([[1, 7], [2, 7]], [1, 1])], top_n=[1], exclude_seen=False, reduce=identity)
    assert result["recall@1"] == 1


def test_no_example_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="No example was evaluated"):
        evaluate(spy(), [], top_n=[1], exclude_seen=False, reduce=identity)
