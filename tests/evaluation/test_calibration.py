"""Expected calibration error against a loop over bins and against torchmetrics."""

import math

import pytest
import torch

from csrec_dist.evaluation.report_card import CalibrationSums, confidences
from csrec_dist.evaluation.sweep import SweepRequest, sweep
from tests.helpers.dense_logits import dense

SOFTMAX = SweepRequest(log_sums=True, top=True)


def by_hand(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Guo et al.'s sum over bins (k/15, (k+1)/15], in plain Python."""
    rows = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        exponentials = [math.exp(value - max(row)) for value in row]
        rows.append((max(exponentials) / sum(exponentials), row.index(max(row)) == target - 1))
    error = 0.0
    for place in range(15):
        held = [(sure, hit) for sure, hit in rows if place / 15 < sure <= (place + 1) / 15]
        if held:
            gap = sum(hit for _, hit in held) / len(held) - sum(sure for sure, _ in held) / len(held)
            error += len(held) / len(rows) * abs(gap)
    return error


def drawn(num: int, num_items: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num)
    logits = 2 * torch.randn(num, num_items, generator=generator, dtype=torch.float64)
    guided = logits + 2 * torch.randn(num, num_items, generator=generator, dtype=torch.float64)
    return logits, guided.argmax(1) + 1


def add(
    sums: CalibrationSums, logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None
) -> None:
    """Add examples of whole rows, of weight 1 unless said."""
    weights = torch.ones(len(targets)) if weights is None else weights
    sums.update(sweep(dense(logits), SOFTMAX), targets, weights)


@pytest.mark.parametrize("num", [1, 30, 500])
def test_the_error_equals_a_loop_over_bins(num: int) -> None:
    logits, targets = drawn(num)
    sums = CalibrationSums()
    for start in range(0, num, 64):
        part = slice(start, start + 64)
        add(sums, logits[part], targets[part])
    found = sums.compute()
    assert found["ece"] == pytest.approx(by_hand(logits, targets), abs=1e-12)
    assert found["count"] == num == sum(each["count"] for each in found["bins"])
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) + 1 == targets).double().mean()))
    assert found["confidence"] == pytest.approx(float(logits.softmax(1).max(1).values.mean()))


def test_torchmetrics_agrees() -> None:
    classification = pytest.importorskip("torchmetrics.functional.classification")
    logits, targets = drawn(400)
    sums = CalibrationSums()
    add(sums, logits, targets)
    theirs = classification.multiclass_calibration_error(logits.softmax(1), targets - 1, num_classes=12, n_bins=15)
    assert sums.compute()["ece"] == pytest.approx(float(theirs), abs=1e-6)


def test_a_model_that_is_as_sure_as_right_has_no_error() -> None:
    logits = torch.tensor([[0.25, 0.25, 0.5]]).log().repeat(4, 1)
    sums = CalibrationSums()
    add(sums, logits, torch.tensor([3, 3, 1, 2]))
    assert sums.compute()["ece"] == pytest.approx(0, abs=1e-7)


def test_a_model_that_is_sure_and_wrong_has_error_one() -> None:
    sums = CalibrationSums()
    add(sums, torch.tensor([[1000.0, 0.0]]), torch.tensor([2]))
    found = sums.compute()
    assert found["ece"] == 1
    assert [each["bin"] for each in found["bins"]] == [15]


def test_edges_belong_to_the_lower_bin_and_ties_to_the_first_item() -> None:
    confidence, hit = confidences(sweep(dense(torch.zeros(2, 5)), SOFTMAX), torch.tensor([1, 5]))
    assert confidence.tolist() == pytest.approx([0.2, 0.2])
    assert hit.tolist() == [1.0, 0.0]
    sums = CalibrationSums()
    add(sums, torch.zeros(1, 1), torch.tensor([1]))
    assert sums.compute()["bins"] == [{"bin": 15, "count": 1, "confidence": 1.0, "accuracy": 1.0}]


def test_nan_is_an_error_not_a_hit() -> None:
    sums = CalibrationSums()
    add(sums, torch.tensor([[math.nan, 1.0]]), torch.tensor([1]))
    assert sums.compute()["ece"] == 1


def test_rows_that_fill_a_batch_count_for_nothing() -> None:
    logits, targets = drawn(30)
    whole, filled = CalibrationSums(), CalibrationSums()
    add(whole, logits[:20], targets[:20])
    add(filled, logits, targets, (torch.arange(30) < 20).float())
    assert torch.equal(whole.tensor, filled.tensor)
