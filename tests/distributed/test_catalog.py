"""Collectives of a catalog group against whole tables: values, gradients, memory, and ranks that have nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from csrec_dist.distributed import catalog as module
from csrec_dist.distributed.catalog import CatalogSlice, average_slices, in_step, slices_of
from csrec_dist.distributed.groups import Group
from tests.helpers.catalog_ranks import LAYOUTS, mesh, shard_of
from tests.helpers.ranks import run_ranks

NUM_ITEMS, WIDTH = 10, 3
ASKED = {0: [[3, 0, 10], [3, 1, 7]], 1: [], 2: [[10, 10, 0]], 3: [[5, 6, 2]]}
"""Items that each rank asks for."""


def whole_table(num_items: int = NUM_ITEMS) -> torch.Tensor:
    return torch.arange(num_items * WIDTH, dtype=torch.float64).view(num_items, WIDTH).sin()


def asked(rank: int) -> torch.Tensor:
    return torch.tensor(ASKED[rank], dtype=torch.int64).view(-1, 3)


def factors(rank: int) -> torch.Tensor:
    """What a rank multiplies its vectors with before it sums them."""
    size = asked(rank).numel() * WIDTH
    return (torch.arange(size, dtype=torch.float64) + 100 * rank).cos().view(*asked(rank).shape, WIDTH)


def look_up(rank: int, world_size: int, catalog_parallel: int, num_items: int) -> dict[str, Any]:
    """What a rank reads of a table, the gradient of its slice, and the table as it goes round."""
    module.EXCHANGED_ROWS = 2
    shard = shard_of(rank, world_size, catalog_parallel, num_items)
    table = shard.cut(whole_table(num_items)).clone().requires_grad_()
    vectors = shard.look_up(table, asked(rank).clamp(max=num_items))
    (vectors * factors(rank)).sum().backward()
    assert table.grad is not None
    blocks = list(shard.row_blocks(table.detach()))
    assert shard.is_whole or all(len(block) <= 2 for _, block in blocks)
    assert [first for first, _ in blocks] == list(np.cumsum([0, *(len(block) for _, block in blocks)])[:-1])
    round_trip = torch.cat([block for _, block in blocks])
    return {
        "vectors": vectors.detach().numpy(),
        "gradient": table.grad.numpy(),
        "rows": (shard.first, shard.stop),
        "blocks": round_trip.numpy(),
    }


@pytest.mark.parametrize(("world_size", "catalog_parallel"), LAYOUTS)
@pytest.mark.parametrize("num_items", [NUM_ITEMS, 2])
def test_lookups_equal_those_of_the_whole_table(world_size: int, catalog_parallel: int, num_items: int) -> None:
    results = run_ranks(look_up, world_size, catalog_parallel, num_items)
    for first in range(0, world_size, catalog_parallel):
        table = whole_table(num_items)
        padded = torch.cat([torch.zeros(1, WIDTH, dtype=torch.float64), table]).requires_grad_()
        group = results[first : first + catalog_parallel]
        for rank, found in enumerate(group, first):
            expected = padded[asked(rank).clamp(max=num_items)]
            assert np.array_equal(found["vectors"], expected.detach().numpy())
            assert np.array_equal(found["blocks"], table.numpy())
            (expected * factors(rank)).sum().backward()
        assert padded.grad is not None
        np.testing.assert_allclose(np.concatenate([found["gradient"] for found in group]), padded.grad[1:], rtol=1e-14)
        rows = [found["rows"] for found in group]
        assert [*rows[0][:1], *(stop for _, stop in rows)] == [first for first, _ in rows] + [num_items]


def share(rank: int, world_size: int) -> dict[str, Any]:
    """Rows of different numbers side by side, columns exchanged, reductions, DTensors, steps, averaged gradients."""
    data, group = mesh(rank, world_size, world_size)
    shard = CatalogSlice.of(NUM_ITEMS, group)
    num_rows = [2, 0, 3][rank]
    shared = shard.share(num_rows, torch.device("cpu"))
    assert shared.local == [slice(0, 2), slice(2, 2), slice(2, 5)][rank]
    rows = (torch.arange(num_rows * NUM_ITEMS, dtype=torch.float32).view(num_rows, NUM_ITEMS) + 100 * rank).bfloat16()
    rows.requires_grad_()
    gathered = shared.gather(rows)
    (gathered.float() * (rank + 1) * 0.001).sum().backward()
    assert rows.grad is not None
    ids = shared.gather_ids(torch.full((num_rows, rank + 1), rank + 1))
    kept = in_step([rank] * rank, shard, torch.device("cpu"), lambda: -1)
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), 6.0)
    average_slices([weight], data, 3)
    sums = torch.tensor([-torch.inf, float(rank), 1000.0])
    return {
        "gathered": gathered.float().detach().numpy(),
        "gradient": rows.grad.float().numpy(),
        "columns": shared.exchange_columns(rows.detach().float()).numpy(),
        "ids": ids.tolist(),
        "steps": list(kept),
        "sum": shard.log_sum_exp(sums + torch.tensor([0.0 if rank == 1 else -torch.inf, 0, 0]).nan_to_num()).tolist(),
        "grad": weight.grad.tolist(),
    }


def test_what_ranks_share() -> None:
    results = run_ranks(share, 3)
    rows = [torch.arange(n * NUM_ITEMS).view(n, NUM_ITEMS) + 100 * rank for rank, n in enumerate((2, 0, 3))]
    expected = torch.cat(rows).bfloat16().float().numpy()
    bounds = [0, 4, 8, 10]
    for rank, found in enumerate(results):
        assert np.array_equal(found["gathered"], expected)
        assert np.array_equal(found["columns"], expected[:, bounds[rank] : bounds[rank + 1]])
        assert found["ids"] == [[1, 0, 0], [1, 0, 0], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
        np.testing.assert_allclose(found["gradient"], np.full((len(rows[rank]), NUM_ITEMS), 0.006), rtol=4e-3)
        assert found["steps"] == [rank] * rank + [-1] * (2 - rank)
        assert found["grad"] == [2.0, 2.0]
        assert found["sum"][1:] == pytest.approx([np.log(np.exp([0, 1, 2]).sum()), 1000 + np.log(3)])


def test_a_whole_catalog_is_a_group_of_one() -> None:
    shard = CatalogSlice.whole(7)
    assert shard.is_whole
    assert (shard.first, shard.stop, shard.num_rows, shard.most_rows) == (0, 7, 7, 7)
    shared = shard.share(4, torch.device("cpu"))
    rows = torch.ones(4, 7)
    assert shared.gather(rows) is rows
    assert shared.exchange_columns(rows) is rows
    rows, mask = shard.local_rows(torch.tensor([0, 1, 7]))
    assert rows[mask].tolist() == [0, 6]
    assert mask.tolist() == [False, True, True]


@pytest.mark.parametrize(("num_items", "width"), [(100, 1), (47, 3), (5, 2), (33, 16), (31, 7)])
@pytest.mark.parametrize("num_tables", [1, 2])
@pytest.mark.parametrize("draw", ["normal_", "uniform_"])
def test_slices_are_drawn_as_rows_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, num_items: int, width: int, num_tables: int, draw: str
) -> None:
    monkeypatch.setattr(module, "EXCHANGED_ROWS", 16)
    generator = torch.Generator().manual_seed(1)
    whole = getattr(torch.empty(num_tables, num_items, width), draw)(generator=generator)
    following = torch.rand(1, generator=generator)
    for size in (1, 2, 3, 7):
        for rank in range(size):
            again = torch.Generator().manual_seed(1)
            shard = CatalogSlice.of(num_items, Group(tuple(range(size)), rank))
            slices = shard.drawn(num_tables, width, lambda rows, again=again: getattr(rows, draw)(generator=again))
            for table, rows in zip(whole, slices, strict=True):
                assert torch.equal(table[shard.rows], rows)
            assert torch.equal(torch.rand(1, generator=again), following)


class Sliced(nn.Module):
    """A module of which a rank holds one parameter whole, and one parameter and one buffer in part."""

    SLICED = ("table", "places", "absent")

    def __init__(self) -> None:
        super().__init__()
        self.table, self.other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        self.register_buffer("places", torch.zeros(2))
        self.register_parameter("absent", None)
        self.catalog = CatalogSlice.whole(4)


def test_slices_are_found_by_name() -> None:
    holder = nn.ModuleDict({"inner": Sliced()})
    assert slices_of(holder) == {}
    holder["inner"].catalog = CatalogSlice.of(4, Group((0, 1), 0))
    assert list(slices_of(holder)) == ["inner.table", "inner.places"]
