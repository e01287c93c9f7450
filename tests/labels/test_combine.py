"""Laws of the ways to combine members: what the cache gives equals its float64 definition, and live labels."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp

from csrec_dist.data.batches import to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.errors import UserError
from csrec_dist.labels import (
    DenseLabels,
    FactoredLabels,
    LabelCache,
    MixtureLabels,
    SoftLabels,
    combining_problem,
    info,
    label_bytes,
    live_labels,
    verify,
)
from tests.helpers import label_fixtures as fixtures

WEIGHTS = {1: (1.0,), 2: (0.1, 0.9), 3: (0.2, 0.0, 0.8), 8: fixtures.WEIGHTS}
SETTINGS = [("weighted", "factored", True), ("weighted", "dense", True)]
SETTINGS += [("prob_mean", "factored", False), ("prob_mean", "factored", True), ("logit_mean", "factored", False)]


def oracle(combine: str, num_members: int, weights: tuple[float, ...] | None, temperature: float) -> np.ndarray:
    """log of the labels [N, V] by their definition."""
    logits = fixtures.oracle_member_logits(fixtures.make_rows(), num_members)
    shares = np.array(weights or [1 / num_members] * num_members).reshape(-1, 1, 1)
    if combine == "prob_mean":
        with np.errstate(divide="ignore"):
            return logsumexp(log_softmax(logits / temperature, axis=2) + np.log(shares), axis=0)
    return log_softmax((logits * shares).sum(0) / temperature, axis=1)


def log_labels(labels: SoftLabels, temperature: float) -> np.ndarray:
    """log of the labels as a loss reads them."""
    like = torch.zeros(0, dtype=torch.float32)
    out = torch.empty(labels.num_examples, labels.num_items)
    labels.tempered(1 / temperature, like, CatalogSlice.whole(labels.num_items)).tile(
        slice(0, len(out)), slice(0, out.shape[1]), out=out
    )
    return out.double().log_softmax(1).numpy()


@pytest.mark.parametrize("num_members", [1, 2, 3, 8])
@pytest.mark.parametrize(("combine", "form", "weighted"), SETTINGS)
def test_read_in_any_order_equals_the_oracle(
    dataset: Dataset, tmp_path: Path, combine: str, form: str, weighted: bool, num_members: int
) -> None:
    weights = WEIGHTS[num_members] if weighted else None
    fixtures.label_alone(dataset, tmp_path / "labels", num_members, form, combine=combine, weights=weights)
    cache = LabelCache(tmp_path / "labels", dataset)
    assert (cache.index.combine, cache.index.weights) == (combine, weights)
    assert verify(tmp_path / "labels", dataset) == []
    ids = np.random.default_rng(1).permutation(cache.num_examples)
    labels = cache.rows(ids)
    kinds = {"prob_mean": MixtureLabels} | dict.fromkeys(("weighted", "logit_mean"), FactoredLabels)
    assert isinstance(labels, DenseLabels if form == "dense" else kinds[combine])
    for temperature in (1.0, 4.0):
        expected = oracle(combine, num_members, weights, temperature)[ids]
        np.testing.assert_allclose(log_labels(labels, temperature), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_members", [1, 3, 8])
@pytest.mark.parametrize(("combine", "form", "weighted"), [s for s in SETTINGS if s[1] == "factored"])
def test_cached_equals_live(
    dataset: Dataset, tmp_path: Path, combine: str, form: str, weighted: bool, num_members: int
) -> None:
    weights = WEIGHTS[num_members] if weighted else None
    fixtures.label_alone(dataset, tmp_path / "labels", num_members, form, combine=combine, weights=weights)
    cache, teachers = LabelCache(tmp_path / "labels", dataset), fixtures.make_teachers(num_members)
    for batch in map(to_batch, dataset.stream("train", batch_size=7, shards=[3, 0])):
        cached, live = cache.rows(batch.example_ids), live_labels(teachers, batch, combine, weights)
        np.testing.assert_allclose(log_labels(cached, 2.0), log_labels(live, 2.0), rtol=0, atol=1e-5)


def test_info_and_bytes_of_a_mean_of_probabilities(dataset: Dataset, tmp_path: Path) -> None:
    fixtures.label_alone(dataset, tmp_path, 3, combine="prob_mean", weights=WEIGHTS[3])
    figures = info(tmp_path)
    assert (figures["combine"], figures["weights"]) == ("prob_mean", [0.2, 0.0, 0.8])
    large = info(tmp_path, num_items=1000)["bytes"]
    assert large == label_bytes("factored", figures["num_examples"], 1000, (4, 3, 6), True, "prob_mean")
    assert large == 4 * (13 * figures["num_examples"] + 1000 * (13 + 3))


def test_an_index_says_weights_only_where_there_are_some(dataset: Dataset, cache_folder: Path, tmp_path: Path) -> None:
    assert "weights" not in json.loads((cache_folder / "label_cache.index.json").read_text())
    assert info(cache_folder)["weights"] is None
    fixtures.label_alone(dataset, tmp_path / "w", combine="weighted", weights=(0.25, 0.75))
    assert json.loads((tmp_path / "w" / "label_cache.index.json").read_text())["weights"] == [0.25, 0.75]


def test_labels_combined_otherwise_are_refused_and_finished_ones_left_alone(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    fixtures.label_alone(dataset, folder, combine="weighted", weights=(0.25, 0.75))
    before = fixtures.file_bytes(folder)
    fixtures.label_alone(dataset, folder, combine="weighted", weights=(0.25, 0.75))
    with pytest.raises(UserError, match=r"weights was \[0.25, 0.75\], is \[0.5, 0.5\]"):
        fixtures.label_alone(dataset, folder, combine="weighted", weights=(0.5, 0.5))
    with pytest.raises(UserError, match=r"combine was 'weighted', is 'prob_mean'"):
        fixtures.label_alone(dataset, folder, combine="prob_mean", weights=(0.25, 0.75))
    assert fixtures.file_bytes(folder) == before


def test_a_broken_off_labelling_with_other_weights_is_not_taken_over(dataset: Dataset, tmp_path: Path) -> None:
    for weights in ((0.25, 0.75), (0.5, 0.5)):
        fixtures.label_alone(dataset, tmp_path / "labels", combine="weighted", weights=weights)
        (tmp_path / "labels" / "label_cache.index.json").unlink()
    fixtures.label_alone(dataset, tmp_path / "labels", combine="weighted", weights=(0.5, 0.5))
    fixtures.label_alone(dataset, tmp_path / "fresh", combine="weighted", weights=(0.5, 0.5))
    assert fixtures.file_bytes(tmp_path / "labels") == fixtures.file_bytes(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("combine", "weights", "form", "words"),
    [
        ("prob_mean", None, "dense", "prob_mean does not fit form dense.*depends on the temperature"),
        ("logit_mean", (0.5, 0.5), "factored", "takes no weights"),
        ("weighted", None, "factored", "needs weights.*2 members"),
        ("weighted", (1.0,), "dense", r"\[1.0\] do not fit 2 members"),
        ("weighted", (0.5, 0.6), "factored", "sum to 1"),
        ("prob_mean", (-0.5, 1.5), "factored", "none below 0"),
        ("weighted", (math.nan, 1.0), "factored", "nan"),
    ],
)
def test_what_cannot_be_combined_is_refused(
    dataset: Dataset, tmp_path: Path, combine: str, weights: tuple[float, ...] | None, form: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        fixtures.label_alone(dataset, tmp_path / "labels", 2, form, combine=combine, weights=weights)
    assert not (tmp_path / "labels").exists()
    assert combining_problem(combine, weights, 2, form) is not None


def test_what_can_be_combined_has_no_problem() -> None:
    for combine, form, weighted in SETTINGS:
        for num_members, weights in WEIGHTS.items():
            assert combining_problem(combine, weights if weighted else None, num_members, form) is None


def test_a_damaged_way_of_combining_is_refused(dataset: Dataset, cache_folder: Path) -> None:
    path = cache_folder / "label_cache.index.json"
    index = json.loads(path.read_text())
    for edit in ({"combine": "weighted"}, {"combine": "sum"}, {"weights": [0.5, 0.5]}):
        path.write_text(json.dumps(index | edit))
        with pytest.raises(UserError, match="damaged"):
            LabelCache(cache_folder)
