"""What the check of an export lets pass, and what it does not: lists made by hand, of a model with known scores."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from csrec_dist import models
from csrec_dist.errors import UserError
from csrec_dist.export.parity import batches, compare
from csrec_dist.models import SequentialModel, config_class

HISTORIES = [[1, 2, 3], [4], [5, 6, 5, 6, 7, 8], [9, 1]]
TOP_N = 3

Change = Callable[[np.ndarray, np.ndarray], None]


@pytest.fixture(scope="module")
def model() -> SequentialModel:
    """Nine items, of which 3 and 4 always have the same score."""
    model = models.build(config_class("gru4rec").model_validate({"width": 4, "hidden": 4}), 9, 5, 0).eval()
    with torch.no_grad():
        model.item_table.weight[3] = model.item_table.weight[2]
    return model


def scored(model: SequentialModel, change: Change = lambda items, scores: None, top_n: int = TOP_N):
    """A search by full sort, whose lists `change` spoils."""

    def search(histories: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = model.score(torch.from_numpy(histories)).detach().scatter(1, torch.from_numpy(seen), -torch.inf)
        scores, items = scores.sort(dim=1, descending=True, stable=True)
        items = items.masked_fill(scores == -torch.inf, 0)[:, :top_n].numpy()
        scores = scores[:, :top_n].numpy()
        change(items, scores)
        return items, scores

    return search


def test_the_models_own_lists_pass(model: SequentialModel) -> None:
    check = compare(model, scored(model), HISTORIES, TOP_N).exact()
    assert check["histories"] == 4
    assert check["lists"] == 8
    assert check["items"] == check["equal_items"] == 24
    assert check["ties_in_other_order"] == 0
    assert check["largest_difference"] <= check["allowed_difference"] == pytest.approx(1e-5 * check["largest_score"])


def test_lists_that_run_out_of_items_pass(model: SequentialModel) -> None:
    check = compare(model, scored(model, top_n=9), HISTORIES, 9).exact()
    assert check["items"] == 4 * 9 + (9 - 3) + (9 - 1) + (9 - 4) + (9 - 2)


def test_ties_may_stand_in_any_order(model: SequentialModel) -> None:
    def other_way(items: np.ndarray, scores: np.ndarray) -> None:
        for row in items:
            pair = np.flatnonzero((row == 3) | (row == 4))
            if len(pair) == 2:
                row[pair] = row[pair[::-1]]

    check = compare(model, scored(model, other_way, 9), HISTORIES, 9).exact()
    assert check["ties_in_other_order"] > 0
    assert check["largest_difference"] <= check["allowed_difference"]


def swapped(items: np.ndarray, scores: np.ndarray) -> None:
    """The first two items of each list in the other order, with the right scores for the places."""
    items[:, :2] = items[:, 1::-1].copy()


def shifted(items: np.ndarray, scores: np.ndarray) -> None:
    scores += np.where(scores > -np.inf, 1e-3 * np.abs(scores).max(), 0)


def shortened(items: np.ndarray, scores: np.ndarray) -> None:
    items[:, -1], scores[:, -1] = 0, -np.inf


def lost(items: np.ndarray, scores: np.ndarray) -> None:
    """The scores of batches with more than one history are no numbers."""
    if len(scores) > 1:
        scores[:] = np.nan


@pytest.mark.parametrize("change", [swapped, shifted, shortened, lost])
def test_other_lists_do_not(model: SequentialModel, change: Change) -> None:
    with pytest.raises(UserError, match="do not give the model's lists for 4 histories"):
        compare(model, scored(model, change), HISTORIES, TOP_N)


def repeated(items: np.ndarray, scores: np.ndarray) -> None:
    """Item 3 in the place of 4, too, which has the same score."""
    items[items == 4] = 3


def lengthened(items: np.ndarray, scores: np.ndarray) -> None:
    """One more item where nothing is left: one that was seen."""
    for row, of_row in zip(items, scores, strict=True):
        for place in np.flatnonzero(row == 0)[:1]:
            row[place], of_row[place] = min(set(range(1, 10)) - set(row.tolist())), -9.0


def seen_instead(items: np.ndarray, scores: np.ndarray) -> None:
    """Item 4 in the place of 3, which has the same score, where 4 was left out."""
    for row in items:
        if 4 not in row:
            row[row == 3] = 4


@pytest.mark.parametrize(("change", "histories"), [(repeated, [[5]]), (lengthened, [[5]]), (seen_instead, [[4]])])
def test_nor_do_lists_with_right_scores_of_wrong_items(
    model: SequentialModel, change: Change, histories: list[list[int]]
) -> None:
    assert compare(model, scored(model, top_n=9), histories, 9).lists == 2
    with pytest.raises(UserError, match="differ by up to inf"):
        compare(model, scored(model, change, 9), histories, 9)


def test_recall_is_the_share_of_the_best_items(model: SequentialModel) -> None:
    def lose_the_last(items: np.ndarray, scores: np.ndarray) -> None:
        items[:, -1] = 0

    check = compare(model, scored(model, lose_the_last), HISTORIES, TOP_N, exact=False)
    assert check.approximate(TOP_N) == {"histories": 4, "lists": 8, "recall@3": pytest.approx(2 / 3)}


def test_batches_differ_in_size_and_length_and_lose_no_history() -> None:
    histories = [list(range(1, 2 + k % 30)) for k in range(60)]
    found = list(batches(histories, max_length=4))
    assert sorted({len(asked) for asked, _ in found}) == [1, 2, 5, 19, 32]
    assert {asked.shape[1] for asked, _ in found} == {1, 2, 4}
    rows = [row[row > 0].tolist() for asked, _ in found for row in asked]
    assert sorted(rows) == sorted(history[-4:] for history in histories)
    seen = [row[row > 0].tolist() for _, of_history in found for row in of_history]
    assert sorted(seen) == sorted(histories)
