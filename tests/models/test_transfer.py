"""Trained weights in a model of other items: more teachers' items, and trainings that start from a finished model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.errors import UserError
from csrec_dist.models import MODELS, ModelConfig, SequentialModel, build, config_class
from csrec_dist.models import transfer as module
from csrec_dist.models.transfer import extended, require_architecture, start_from
from tests.helpers.catalog_ranks import mesh
from tests.helpers.ranks import run_ranks

OLD, NEW, LENGTH = 23, 31, 6
KEYS: dict[str, dict[str, Any]] = {"dreamrec": {"num_steps": 5, "sampling_steps": 3}}
every_model = pytest.mark.parametrize("name", sorted(MODELS))


def small(name: str, **keys: Any) -> ModelConfig:
    return config_class(name).model_validate({"width": 8, **KEYS.get(name, {}), **keys})


def trained(name: str) -> SequentialModel:
    """A small model in evaluation mode whose weights are far from zero."""
    model = build(small(name), OLD, LENGTH, 1).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def histories(num_items: int) -> torch.Tensor:
    return torch.randint(1, num_items + 1, (7, LENGTH), generator=torch.Generator().manual_seed(5))


@every_model
@torch.no_grad()
def test_a_new_item_has_the_mean_of_the_old_logits_and_old_ones_keep_theirs(name: str) -> None:
    model = trained(name)
    larger = extended(model, NEW)
    assert (larger.num_items, larger.training) == (NEW, False)
    before, now = model.score(histories(OLD)).double(), larger.score(histories(OLD)).double()
    # The scale of DreamRec's noise is that of all vectors, of which there are more now.
    tolerance = {"rtol": 0.2, "atol": 0.2} if name == "dreamrec" else {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(now[:, : OLD + 1], before, **tolerance)
    means = now[:, 1 : OLD + 1].mean(1, keepdim=True).expand(-1, NEW - OLD)
    torch.testing.assert_close(now[:, OLD + 1 :], means, rtol=0, atol=1e-5)


@every_model
@torch.no_grad()
def test_in_a_history_a_new_item_reads_as_the_average_one(name: str) -> None:
    model = trained(name)
    larger, seen = extended(model, NEW), histories(OLD)
    seen[:, 2] = NEW
    average = trained(name)
    average.item_table.weight[4] = model.item_table.weight.double().mean(0).float()
    larger.item_table.weight[4] = 99.0  # nobody has this item
    seen_old = torch.where(seen == NEW, 5, seen)
    keep = (histories(OLD) != 5).all(1)
    assert keep.any()
    if name == "dreamrec":  # its noise is drawn by the numbers of the items
        vectors = larger.item_table(seen), average.item_table(seen_old)
    else:
        vectors = larger.encode_last(seen), average.encode_last(seen_old)
    torch.testing.assert_close(vectors[0][keep], vectors[1][keep])


def test_extending_twice_is_extending_at_once() -> None:
    model = trained("bert4rec")
    twice, once = extended(extended(model, OLD + 3), NEW), extended(model, NEW)
    for key, value in once.state_dict().items():
        torch.testing.assert_close(twice.state_dict()[key], value)


@every_model
def test_a_start_on_the_same_items_is_the_trained_model(name: str, tmp_path: Path) -> None:
    model = trained(name)
    model.save_pretrained(tmp_path)
    new = build(model.config, OLD, LENGTH, 7)
    start_from(new, tmp_path, np.arange(OLD))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in new.state_dict().items())


def shuffled_rows() -> np.ndarray:
    """For NEW items the rows of OLD ones: some old items are gone, others have other numbers, some items are new."""
    rows = np.full(NEW, -1)
    places = np.random.default_rng(2).permutation(NEW)[: OLD - 4]
    rows[places] = np.random.default_rng(3).permutation(OLD)[: OLD - 4]
    return rows


def assert_started(new: dict[str, torch.Tensor], old: SequentialModel, drawn: SequentialModel, part: slice) -> None:
    """Rows of known items are the old model's, others the drawn ones, and all other weights the old model's."""
    rows = shuffled_rows()[part]
    for key, value in new.items():
        if key.startswith("item_table."):
            expected = drawn.state_dict()[key][part].clone()
            expected[rows >= 0] = old.state_dict()[key][rows[rows >= 0]]
            assert torch.equal(value, expected), key
        else:
            assert torch.equal(value, old.state_dict()[key]), key


@every_model
def test_known_items_keep_their_vectors_and_new_ones_those_that_are_drawn(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 5)
    model = trained(name)
    model.save_pretrained(tmp_path)
    new = build(model.config, NEW, LENGTH, 7)
    start_from(new, tmp_path, shuffled_rows())
    assert_started(new.state_dict(), model, build(model.config, NEW, LENGTH, 7), slice(None))


def started_slice(rank: int, world_size: int, folder: str) -> tuple[dict[str, np.ndarray], slice]:
    """The weights of a slice that started from a folder, and its rows; tensors would need the process to live on."""
    _, group = mesh(rank, world_size, world_size)
    model = build(small("bert4rec"), NEW, LENGTH, 7, group)
    start_from(model, Path(folder), shuffled_rows())
    catalog: CatalogSlice = model.item_table.catalog
    return {key: value.numpy().copy() for key, value in model.state_dict().items()}, catalog.rows


def test_slices_start_as_the_whole_does(tmp_path: Path) -> None:
    model = trained("bert4rec")
    model.save_pretrained(tmp_path)
    drawn = build(model.config, NEW, LENGTH, 7)
    slices = run_ranks(started_slice, 3, str(tmp_path))
    assert sorted(rows.start for _, rows in slices) == [0, 11, 22]
    for weights, rows in slices:
        assert_started({key: torch.from_numpy(value) for key, value in weights.items()}, model, drawn, rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 16, "num_heads": 4}, r"model.width is 8 there, 16 here; model.num_heads is 2 there, 4 here"),
        ({"num_layers": 3}, "model.num_layers is 2 there, 3 here"),
        ({"length": LENGTH + 1}, r"the longest history \(dataset.window - 1\) is 6 there, 7 here"),
        ({"name": "gru4rec"}, "holds a sasrec, and the training is one of a gru4rec"),
    ],
)
def test_another_architecture_is_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    trained("sasrec").save_pretrained(tmp_path)
    length, name = changes.pop("length", LENGTH), changes.pop("name", "sasrec")
    config = small(name, **changes)
    with pytest.raises(UserError, match=message):
        require_architecture(tmp_path, config, length)
    with pytest.raises(UserError, match=message):
        start_from(build(config, OLD, length, 0), tmp_path, np.arange(OLD))


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("sasrec", {"dropout": 0.7, "attention_dropout": 0.1}),
        ("narm", {"state_dropout": 0.1}),
        ("bert4rec", {"mask_ratio": 0.3, "prefixes": 2}),
        ("cl4srec", {"crop": 0.5, "mask": 0.1, "reorder": 0.2, "contrast_weight": 0.3, "contrast_temperature": 0.5}),
        ("dreamrec", {"condition_drop": 0.2, "guidance": 1.0, "sampling_steps": 3}),
    ],
)
def test_what_the_weights_do_not_depend_on_may_be_another(name: str, keys: dict[str, Any], tmp_path: Path) -> None:
    trained(name).save_pretrained(tmp_path)
    assert require_architecture(tmp_path, small(name, **keys), LENGTH).num_items == OLD


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    model = trained("sasrec")
    with torch.no_grad():
        model.item_table.weight[3, 1] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="are NaN or infinite"):
        start_from(build(model.config, OLD, LENGTH, 0), tmp_path, np.arange(OLD))
