"""Number types, their errors and the choice among forms, against errors computed from whole rows in float64."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csrec_dist.cli import main
from csrec_dist.config import parse_config
from csrec_dist.data.dataset import Dataset
from csrec_dist.errors import UserError
from csrec_dist.labels import FactoredLabels, LabelCache, info, label_bytes, read_index
from csrec_dist.labels import choose as measuring
from csrec_dist.labels.choose import sampled_rows
from csrec_dist.runs.inputs import deciding
from tests.helpers import label_fixtures as fixtures

T = 1.5


def sampled_logits(dataset: Dataset, num_members: int) -> tuple[np.ndarray, np.ndarray]:
    """The members' logits [m, S, V] of the sample's examples in float64, and their targets."""
    rows = [[item for item in row.tolist() if item] for row in sampled_rows(dataset, 256).items]
    targets = np.array([item for row in rows for item in row[1:]])
    assert 40 < len(targets) <= 256
    return fixtures.oracle_member_logits([rows], num_members), targets


def soft(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """r of Eq. 19 [S, V]."""
    q = np.exp(logits / T - (logits / T).max(1, keepdims=True))
    return q / q.sum(1, keepdims=True) / 2 + np.eye(logits.shape[1])[targets - 1] / 2


@pytest.mark.parametrize("kl", ["reverse", "forward"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_errors_of_dense_labels(
    dataset: Dataset, tmp_path: Path, dtype: str, kl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "ROWS_BYTES", 8 * fixtures.NUM_ITEMS * 7)
    index = fixtures.label_alone(dataset, tmp_path, 2, "dense", dtype=dtype, temperature=T, kl=kl)
    members, targets = sampled_logits(dataset, 2)
    exact = members.mean(0)
    rounded = torch.from_numpy(exact).float().to(getattr(torch, dtype)).double().numpy()
    a, b = soft(exact, targets), soft(rounded, targets)
    a, b = (a, b) if kl == "forward" else (b, a)
    assert index.measured is not None
    (error,) = index.measured.errors
    assert (index.measured.kl, index.measured.temperature, index.measured.num_examples) == (kl, T, len(targets))
    np.testing.assert_allclose(error.largest, np.abs(exact - rounded).max(), rtol=0.02)
    np.testing.assert_allclose(error.mean, np.abs(exact - rounded).mean(), rtol=0.02)
    np.testing.assert_allclose(error.divergence, (a * np.log(a / b)).sum(1).mean(), rtol=0.02)
    assert error.bytes == 2 * dataset.splits["train"].num_examples * fixtures.NUM_ITEMS


def test_the_error_of_top_k_is_that_of_an_even_rest(dataset: Dataset, tmp_path: Path) -> None:
    index = fixtures.label_alone(dataset, tmp_path, 2, "topk", keep=4, temperature=T, kl="forward")
    members, targets = sampled_logits(dataset, 2)
    total = 0.0
    for row, target in zip(members.mean(0), targets, strict=True):
        q = np.exp(row / T) / np.exp(row / T).sum()
        kept = set(np.argsort(-row)[:4].tolist())
        kept = kept if target - 1 in kept else {*np.argsort(-row)[:3].tolist(), int(target) - 1}
        rest = [item for item in range(len(row)) if item not in kept]
        total += sum(q[item] / 2 * math.log(q[item] / (q[rest].sum() / len(rest))) for item in rest)
    assert index.measured is not None
    np.testing.assert_allclose(index.measured.errors[0].divergence, total / len(targets), rtol=0.01)


@pytest.mark.parametrize("combine", ["logit_mean", "prob_mean"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_states_are_rounded_and_tables_are_not(dataset: Dataset, tmp_path: Path, dtype: str, combine: str) -> None:
    fixtures.label_alone(dataset, tmp_path / "wide", combine=combine)
    index = fixtures.label_alone(dataset, tmp_path / "half", combine=combine, dtype=dtype, temperature=T)
    wide, half = LabelCache(tmp_path / "wide"), LabelCache(tmp_path / "half")
    ids = torch.arange(wide.num_examples)
    stored = half.fields(ids)["states"]
    assert stored.dtype == getattr(torch, dtype)
    assert torch.equal(stored, wide.fields(ids)["states"].to(stored.dtype))
    assert torch.equal(half.item_tables[0], wide.item_tables[0])
    assert index.measured is not None
    assert 0 < index.measured.errors[0].divergence < 1e-3
    labels = half.rows(ids)
    if isinstance(labels, FactoredLabels):
        assert labels.states.dtype == torch.float32


class LoudTeacher(fixtures.TinyTeacher):
    """Its states are a thousand thousands of what they were, or not numbers."""

    factor = 1e6

    def encode(self, histories: torch.Tensor) -> torch.Tensor:
        return super().encode(histories) * self.factor


@pytest.mark.parametrize(("factor", "words"), [(1e6, r"m1 gives states up to .*float16 ends at 6\.55e\+04.*bfloat16"),
                                               (math.nan, "m1 gives states that are not finite")])  # fmt: skip
def test_numbers_that_do_not_fit_are_refused(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, words: str
) -> None:
    made = fixtures.make_teachers(2)
    made[1].__class__, LoudTeacher.factor = LoudTeacher, factor
    monkeypatch.setattr(fixtures, "make_teachers", lambda num: made[:num])
    with pytest.raises(UserError, match=words):
        fixtures.label_alone(dataset, tmp_path / "half", dtype="float16", temperature=T)
    assert not (tmp_path / "half" / "label_cache.index.json").exists()
    if math.isnan(factor):
        with pytest.raises(UserError, match="not finite"):
            fixtures.label_alone(dataset, tmp_path / "wide")
    else:
        index = fixtures.label_alone(dataset, tmp_path / "auto", dtype="auto", temperature=1e5, tolerance=1.0)
        assert index.dtype == "bfloat16"


def auto(dataset: Dataset, folder: Path, **wanted: Any) -> tuple[str, str]:
    index = fixtures.label_alone(dataset, folder, 2, "auto", **{"dtype": "auto", "temperature": T, "keep": 2} | wanted)
    assert index.measured is not None
    (used,) = (e for e in index.measured.errors if (e.form, e.dtype) == (index.form, index.dtype))
    fitting = [e for e in index.measured.errors if e.divergence <= (index.measured.tolerance or 0)]
    assert used.bytes == min(e.bytes for e in fitting)
    assert used.divergence == min(e.divergence for e in fitting if e.bytes == used.bytes)
    return index.form, index.dtype


def test_auto_takes_the_fewest_bytes_within_the_tolerance(dataset: Dataset, tmp_path: Path) -> None:
    assert auto(dataset, tmp_path / "a", kl="forward", tolerance=9.0) == ("topk", "float16")
    assert auto(dataset, tmp_path / "b", kl="reverse", tolerance=9.0) == ("factored", "float16")
    assert auto(dataset, tmp_path / "c", kl="forward", tolerance=0.0)[1] == "float32"
    assert auto(dataset, tmp_path / "d", kl="forward", tolerance=1e-3, dtype="float32") == ("factored", "float32")
    assert auto(dataset, tmp_path / "e", kl="forward", tolerance=9.0, combine="prob_mean") == ("factored", "float16")
    before = fixtures.file_bytes(tmp_path / "a")
    auto(dataset, tmp_path / "a", kl="forward", tolerance=9.0)
    assert fixtures.file_bytes(tmp_path / "a") == before


def test_a_tolerance_that_nothing_meets_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no form is within 0 nats \(factored bfloat16 .*dtype auto or float32"):
        auto(dataset, tmp_path, dtype="bfloat16", tolerance=0.0)


def test_the_figures_are_shown(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    auto(dataset, tmp_path, kl="forward", tolerance=9.0)
    measured = info(tmp_path)["measured"]
    assert len(measured["errors"]) == 9
    sizes = dataset.splits["train"].num_examples, 1000, (4, 3)
    assert info(tmp_path, 1000)["bytes"] == label_bytes("topk", *sizes, dtype="float16", keep=2)
    assert main(["labels", "info", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "kl forward, tolerance 9.0" in shown
    assert shown.count("divergence ") == 9
    assert read_index(tmp_path).measured is not None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"labels": {"form": "topk"}}, r"labels.form: topk stores only some items.*kl reverse is infinite"),
        ({"labels": {"form": "topk"}, "method": "base"}, "labels.form: method base stores no labels"),
        ({"labels": {"form": "topk", "combine": "prob_mean"}, "training": {"kl": "forward"}}, "does not fit form topk"),
        ({"labels": {"form": "dense"}, "distributed": {"catalog_parallel": 2}}, "dense needs whole rows"),
        (
            {"labels": {"combine": "weighted", "weights": "fitted"}, "distributed": {"catalog_parallel": 2}},
            "fitted needs whole item tables",
        ),
        ({"labels": {"keep": 0}}, r"labels\.keep"),
        ({"labels": {"dtype": "float8"}}, r"labels\.dtype"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], words: str) -> None:
    config = {"name": "x", "dataset": {"source": "log.csv"}, "model": {"name": "gru4rec"}}
    with pytest.raises(UserError, match=words):
        parse_config(config | values)


def test_labels_depend_on_the_temperature_where_they_should() -> None:
    def settings(**labels: Any) -> dict[str, Any]:
        config = {"name": "x", "dataset": {"source": "log.csv"}, "model": {"name": "gru4rec"}}
        inputs = deciding(parse_config(config | {"labels": labels, "training": {"kl": "forward"}}), "label")
        return inputs["labels"] | inputs.get("training", {})

    assert settings() == {"form": "factored", "combine": "logit_mean", "weights": None, "dtype": "float16"}
    assert settings(form="topk").keys() - settings().keys() == {"keep", "temperature"}
    assert settings(form="auto").keys() - settings().keys() == {"keep", "temperature", "kl", "tolerance"}
    assert settings(dtype="auto").keys() - settings().keys() == {"temperature", "kl", "tolerance"}
