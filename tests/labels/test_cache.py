"""Laws of the cache: it holds the members' mean logits, and gives them by example id."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from csrec_dist.data.batches import to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed.layout import LabelRanks
from csrec_dist.errors import UserError
from csrec_dist.labels import (
    DenseLabels,
    FactoredLabels,
    LabelCache,
    LabelMember,
    label_fields,
    live_labels,
    with_labels,
    write_labels,
)
from csrec_dist.labels.options import LabelOptions
from csrec_dist.models import MODELS, build
from tests.helpers import label_fixtures as fixtures


def logits_of(labels: FactoredLabels | DenseLabels) -> torch.Tensor:
    if isinstance(labels, DenseLabels):
        return labels.logits
    logits = labels.states @ labels.item_weight.T
    return logits if labels.item_bias is None else logits + labels.item_bias


@pytest.mark.parametrize("form", ["factored", "dense"])
@pytest.mark.parametrize("num_members", [1, 2, 3])
def test_read_in_any_order_equals_the_oracle(dataset: Dataset, tmp_path: Path, form: str, num_members: int) -> None:
    expected = fixtures.oracle_logits(fixtures.make_rows(), num_members)
    fixtures.label_alone(dataset, tmp_path / "labels", num_members, form)
    cache = LabelCache(tmp_path / "labels", dataset)
    assert cache.num_examples == len(expected)
    random = np.random.default_rng(1)
    for ids in (random.permutation(len(expected)), random.integers(0, len(expected), 500), np.arange(3)):
        logits = logits_of(cache.rows(torch.from_numpy(ids)))
        np.testing.assert_allclose(logits.numpy(), expected[ids], rtol=0, atol=2e-5)


@settings(max_examples=12)
@given(data=st.data())
def test_any_examples_of_any_dataset_have_their_own_labels(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    num_shards = data.draw(st.integers(1, 6))
    shards = fixtures.make_rows(num_shards, data.draw(st.integers(num_shards, 30)), data.draw(st.integers(0, 99)))
    folder, num_members = tmp_path_factory.mktemp("drawn"), data.draw(st.integers(1, 3))
    dataset = fixtures.write_dataset(folder / "dataset", shards)
    if not dataset.splits["train"].num_examples:
        return
    fixtures.label_alone(dataset, folder / "labels", num_members, data.draw(st.sampled_from(["factored", "dense"])))
    cache, expected = LabelCache(folder / "labels", dataset), fixtures.oracle_logits(shards, num_members)
    ids = np.array(data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=40)))
    logits = logits_of(cache.rows(torch.from_numpy(ids)))
    np.testing.assert_allclose(logits.numpy(), expected[ids], rtol=0, atol=2e-5)


@pytest.mark.parametrize("num_members", [1, 2, 3])
def test_cached_equals_live(dataset: Dataset, tmp_path: Path, num_members: int) -> None:
    fixtures.label_alone(dataset, tmp_path / "labels", num_members)
    cache, teachers = LabelCache(tmp_path / "labels", dataset), fixtures.make_teachers(num_members)
    for batch in map(to_batch, dataset.stream("train", batch_size=7, shards=[3, 0, 4, 1, 2])):
        cached, live = cache.rows(batch.example_ids), live_labels(teachers, batch)
        assert isinstance(cached, FactoredLabels)
        torch.testing.assert_close(cached.states, live.states, rtol=1e-6, atol=1e-6)
        assert torch.equal(cached.item_weight, live.item_weight)
        if num_members == 1:
            assert cached.item_bias is None
            assert live.item_bias is None
        else:
            assert torch.equal(cached.item_bias, live.item_bias)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_cached_equals_live_for_every_model(dataset: Dataset, tmp_path: Path, name: str) -> None:
    config = MODELS[name].Config(name=name, width=8)
    teachers = [build(config, fixtures.NUM_ITEMS, fixtures.WINDOW, seed) for seed in (1, 2)]
    members = [LabelMember(name=f"{name}-{seed}", width=8, fingerprint=str(seed)) for seed in (1, 2)]
    models = dict(enumerate(teachers))
    write_labels(
        tmp_path,
        dataset,
        models,
        members,
        LabelRanks.alone(2),
        device=torch.device("cpu"),
        options=LabelOptions(dtype="float32"),
    )
    batch = to_batch(next(iter(dataset.stream("train", batch_size=6, shards=[2, 1]))))
    cached, live = LabelCache(tmp_path).rows(batch.example_ids), live_labels(teachers, batch)
    torch.testing.assert_close(cached.states, live.states, rtol=1e-5, atol=1e-6)
    assert torch.equal(cached.item_weight, live.item_weight)


def test_live_labels_ask_for_no_gradient_and_drop_nothing_out(dataset: Dataset) -> None:
    teachers = [teacher.train() for teacher in fixtures.make_teachers(2)]
    batch = to_batch(next(iter(dataset.stream("train", batch_size=7, shards=[0]))))
    first, second = live_labels(teachers, batch), live_labels(teachers, batch)
    assert torch.equal(first.states, second.states)
    assert not any(t.requires_grad for t in (first.states, first.item_weight, first.item_bias))


def test_factored_and_dense_forms_agree(dataset: Dataset, tmp_path: Path) -> None:
    for form in ("factored", "dense"):
        fixtures.label_alone(dataset, tmp_path / form, 3, form)
    ids = np.arange(LabelCache(tmp_path / "dense").num_examples)
    factored, dense = (logits_of(LabelCache(tmp_path / form).rows(ids)) for form in ("factored", "dense"))
    assert (factored - dense).abs().max() < 1e-4


def test_fields_then_labels_share_the_item_tables(cache_folder: Path) -> None:
    cache = LabelCache(cache_folder)
    fields = cache.fields(np.array([5, 2]))
    assert {name: tuple(field.shape) for name, field in fields.items()} == {"states": (2, 7)}
    first, second = cache.labels(fields), cache.labels(cache.fields(np.array([1])))
    assert first.item_weight is second.item_weight
    assert torch.equal(first.states, cache.rows(np.array([5, 2])).states)


def test_no_ids_give_no_rows(cache_folder: Path) -> None:
    assert LabelCache(cache_folder).rows(np.zeros(0, np.int64)).states.shape == (0, 7)


@pytest.mark.parametrize("example", [-1, 10_000])
def test_an_id_outside_the_range_is_named(cache_folder: Path, example: int) -> None:
    with pytest.raises(IndexError, match=str(example)):
        LabelCache(cache_folder).rows(np.array([0, example]))


def test_the_cache_of_another_dataset_is_refused(cache_folder: Path, tmp_path: Path) -> None:
    other = fixtures.write_dataset(tmp_path / "other", fixtures.make_rows(seed=1), "d1")
    with pytest.raises(UserError, match="another dataset"):
        LabelCache(cache_folder, other)


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Run `label` first"):
        LabelCache(tmp_path)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # torch_formatter of datasets does
@pytest.mark.parametrize("options", [{}, {"epoch": 1, "rank": 1, "world_size": 2}])
def test_a_stream_with_labels_gives_each_batch_those_of_its_examples(
    dataset: Dataset, cache_folder: Path, options: dict[str, int]
) -> None:
    cache = LabelCache(cache_folder, dataset)
    stream = with_labels(dataset.stream("train", batch_size=7, **options), cache)
    elements = list(stream)
    for element in elements:
        ids = to_batch(element).example_ids
        assert torch.equal(cache.labels(label_fields(element)).states, cache.rows(ids).states)
    for element, formatted in zip(elements, stream.with_format("torch"), strict=True):
        assert torch.equal(element["label_states"], formatted["label_states"])
    next(iter(stream))
    resumed = with_labels(dataset.stream("train", batch_size=7, **options), cache)
    resumed.load_state_dict(stream.state_dict())
    assert [element["rows"].tolist() for element in resumed] == [element["rows"].tolist() for element in elements[1:]]
