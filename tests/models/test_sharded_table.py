"""Models whose item table is split over ranks: the same initial weights, the same states, the same gradients."""

from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from csrec_dist import models
from csrec_dist.distributed import catalog as module
from csrec_dist.distributed.catalog import CatalogSlice, average_slices, slices_of
from csrec_dist.distributed.engines.ddp import DataParallel
from csrec_dist.distributed.groups import ALONE, Group
from csrec_dist.distributed.layout import Layout
from csrec_dist.losses import Loss, cross_entropy_parts
from csrec_dist.models import ItemTable, SequentialModel
from csrec_dist.models.table import sliced, tables_on
from csrec_dist.training import TrainStep
from tests.helpers.catalog_ranks import mesh
from tests.helpers.ranks import run_ranks
from tests.helpers.windows import inputs_of

NUM_ITEMS, LENGTH = 37, 5
KEYS: dict[str, dict[str, Any]] = {
    "bert4rec": {"prefixes": 2},
    "dreamrec": {"num_steps": 5, "sampling_steps": 3},
    "narm": {"state_dropout": 0.0},
}


def config_of(name: str) -> models.ModelConfig:
    return models.config_class(name).model_validate({"width": 8, "dropout": 0.0, **KEYS.get(name, {})})


def build(name: str, group: Group = ALONE) -> SequentialModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        make = partial(models.MODELS[name], config_of(name), NUM_ITEMS, LENGTH)
        return sliced(make, CatalogSlice.of(NUM_ITEMS, group))


@pytest.mark.parametrize("name", models.MODELS)
def test_a_sliced_model_has_the_weights_of_the_whole_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(module, "EXCHANGED_ROWS", 16)
    whole = models.build(config_of(name), NUM_ITEMS, LENGTH, seed=3).state_dict()
    for size, rank in ((1, 0), (2, 1), (3, 0), (50, 40)):
        model = build(name, Group(tuple(range(size)), rank))
        catalog = model.item_table.catalog
        found = model.state_dict()
        assert found.keys() == whole.keys()
        assert all(parameter.requires_grad and not parameter.is_meta for parameter in model.parameters())
        assert model.num_items == NUM_ITEMS
        for key, value in whole.items():
            assert torch.equal(found[key], value[catalog.rows] if key.startswith("item_table.") else value), key
        table = ["item_table.weight", "item_table.bias"][: 1 + (model.item_table.bias is not None)]
        assert list(slices_of(model)) == (table if size > 1 else [])


def test_tables_without_memory_are_made_in_their_block_only() -> None:
    with tables_on(torch.device("meta")):
        assert ItemTable(3, 2).weight.is_meta
    assert not ItemTable(3, 2).weight.is_meta


def test_a_slice_scores_no_whole_catalog() -> None:
    model = build("gru4rec", Group((0, 1), 1))
    with pytest.raises(AssertionError, match="slice"):
        model.score([[1, 2]])


def windows() -> torch.Tensor:
    """Seven of different lengths."""
    items = torch.randint(1, NUM_ITEMS + 1, (7, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([6, 2, 4, 6, 5, 3, 6]).unsqueeze(1)
    return items.masked_fill(torch.arange(LENGTH + 1) >= lengths, 0)


def loss_function(
    states: torch.Tensor, table: ItemTable, targets: torch.Tensor, labels: None, weights: torch.Tensor, precision: Any
) -> Loss:
    return cross_entropy_parts(states, table, targets, weights=weights, precision=precision)


def gradients(rank: int, world_size: int, data: Group, group: Group, name: str) -> dict[str, Any]:
    """Loss and gradients of one global batch, by this rank's windows and its slice of the items."""
    world = Group(tuple(range(world_size)), rank, dist.group.WORLD if world_size > 1 else None)
    model = build(name, group).double()
    inner = TrainStep(model, loss_function, world)
    slices = slices_of(inner)
    engine = DataParallel(inner, Layout(world, group, data), torch.device("cpu"))
    rows = slice(rank, None, world_size)
    loss = engine.forward(inputs_of(model, windows()[rows], 11, (torch.arange(7) * LENGTH)[rows]), None)
    engine.backward(loss.sum * (world_size / world.all_reduce_sum(loss.count.clone())))
    average_slices(slices.values(), data, world_size)
    found = {key: parameter.grad.numpy() for key, parameter in inner.named_parameters() if parameter.grad is not None}
    return {"loss": loss.sum.item(), "gradients": found, "slices": set(slices)}


def all_gradients(rank: int, world_size: int, catalog_parallel: int, names: list[str]) -> dict[str, Any]:
    module.EXCHANGED_ROWS = 16
    data, group = mesh(rank, world_size, catalog_parallel)
    return {name: gradients(rank, world_size, data, group, name) for name in names}


@cache
def results(world_size: int, catalog_parallel: int) -> list[dict[str, Any]]:
    return run_ranks(all_gradients, world_size, catalog_parallel, sorted(models.MODELS))


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize(("world_size", "catalog_parallel"), [(4, 2), (3, 3)])
def test_gradients_are_those_of_one_process(world_size: int, catalog_parallel: int, name: str) -> None:
    alone = gradients(0, 1, Group((0,), 0), Group((0,), 0), name)
    ranks = [found[name] for found in results(world_size, catalog_parallel)]
    assert sum(rank["loss"] for rank in ranks) == pytest.approx(alone["loss"], rel=1e-12)
    for place, rank in enumerate(ranks):
        assert rank["gradients"].keys() == alone["gradients"].keys()
        group = ranks[place - place % catalog_parallel :][:catalog_parallel]
        for key, expected in alone["gradients"].items():
            got = rank["gradients"][key]
            if key in rank["slices"]:
                got = np.concatenate([other["gradients"][key] for other in group])
            np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-12, err_msg=key)
