"""Ranks, best items and mixed scores on slices of the catalog against those of whole tables."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from csrec_dist.distributed.catalog import CatalogSlice, PlainTable
from csrec_dist.errors import UserError
from csrec_dist.evaluation import logits as tiling
from csrec_dist.evaluation import target_ranks, top_items
from csrec_dist.evaluation.logits import Logits
from csrec_dist.evaluation.scoring import Ensemble, ensemble_logits
from csrec_dist.evaluation.sweep import SweepRequest, sweep
from tests.helpers.catalog_ranks import LAYOUTS, shard_of
from tests.helpers.ranks import run_ranks

NUM_EXAMPLES = {1: [9], 2: [4, 7], 3: [6, 0, 3], 4: [5, 0, 7, 3]}
CATALOGS = {"ties": 29, "few": 2, "broken": 13}
"""Scores that are small whole numbers, so that many are equal; and some that are NaN or infinite."""


def make(name: str, num_examples: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(4)
    num_items = CATALOGS[name]

    def integers(*shape: int, most: int = 2) -> torch.Tensor:
        return torch.randint(-most, most + 1, shape, generator=g).float()

    given: dict[str, Any] = {"states": integers(num_examples, 3), "item_weight": integers(num_items, 3)}
    given["item_bias"] = integers(num_items, most=1)
    given["targets"] = torch.randint(1, num_items + 1, (num_examples,), generator=g)
    given["seen"] = torch.randint(0, num_items + 1, (num_examples, 4), generator=g)
    if name == "broken":
        given["item_bias"][::5] = math.nan
        given["item_bias"][1::5] = math.inf
        given["item_bias"][2::7] = -math.inf
        given["states"][1] = math.nan
    return given


def rank_all(given: dict[str, Any], catalog: CatalogSlice, hidden: bool, rank: int = 0) -> dict[str, Any]:
    """What is asked of some examples, on a slice of the items or on all."""
    num_items = catalog.num_items
    table = PlainTable(catalog.cut(given["item_weight"]), catalog.cut(given["item_bias"]), catalog)
    seen = None
    if hidden:  # the lists of seen items are of another length on each rank
        seen = torch.nn.functional.pad(given["seen"], (0, rank))
    ranks = target_ranks(given["states"], table, given["targets"], seen=seen)
    found = {"ranks": ranks.numpy()}
    for n in (1, min(5, num_items), num_items):
        items, scores = top_items(given["states"], table, n, seen=seen)
        found |= {f"items_{n}": items.numpy(), f"scores_{n}": scores.numpy()}
    return found


def on_rank(rank: int, world_size: int, catalog_parallel: int) -> dict[str, Any]:
    tiling.TILE_BYTES["cpu"] = 4 * 16  # blocks of 4 rows where the last rank has one item and the others four
    counts = NUM_EXAMPLES[world_size]
    rows = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    found: dict[str, Any] = {}
    for name, num_items in CATALOGS.items():
        catalog = shard_of(rank, world_size, catalog_parallel, num_items)
        given = make(name, sum(counts))
        for key in ("states", "targets", "seen"):
            given[key] = given[key][rows]
        for hidden in (False, True):
            found[f"{name}_{hidden}"] = rank_all(given, catalog, hidden, rank)
    catalog = shard_of(rank, world_size, catalog_parallel, 5)
    states, tables = members(catalog)
    for combine in ("logit_mean", "prob_mean"):
        logits = ensemble_logits(states, tables, Ensemble(combine, (0.25, 0.75)))
        tile = torch.empty(3, catalog.num_rows, dtype=logits.dtype)
        logits.write(slice(0, 3), slice(0, catalog.num_rows), tile)
        found[combine] = tile.numpy()
    found["log_sum_exp"] = sweep(Logits(states[:1], tables[:1]), SweepRequest(log_sums=True)).log_sums.numpy()
    with pytest.raises(UserError, match="The best 6 of 5 items"):
        top_items(torch.zeros(0, 1), PlainTable(torch.zeros(catalog.num_rows, 1), None, catalog), 6)
    return found


def member_logits() -> list[torch.Tensor]:
    return list(torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).double() * 30)


def members(catalog: CatalogSlice) -> tuple[list[torch.Tensor], list[PlainTable]]:
    """States and tables of members with these logits, which are large."""
    states = [torch.eye(3, dtype=torch.float64)] * 2
    return states, [PlainTable(catalog.cut(logits.T.contiguous()), None, catalog) for logits in member_logits()]


@cache
def results(world_size: int, catalog_parallel: int) -> list[dict[str, Any]]:
    return run_ranks(on_rank, world_size, catalog_parallel)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("name", CATALOGS)
@pytest.mark.parametrize(("world_size", "catalog_parallel"), LAYOUTS)
def test_slices_rank_as_the_whole(world_size: int, catalog_parallel: int, name: str, hidden: bool) -> None:
    whole = CatalogSlice.whole(CATALOGS[name])
    expected = rank_all(make(name, sum(NUM_EXAMPLES[world_size])), whole, hidden)
    ranks = [found[f"{name}_{hidden}"] for found in results(world_size, catalog_parallel)]
    for key, value in expected.items():
        assert np.array_equal(np.concatenate([found[key] for found in ranks]), value), key


@pytest.mark.parametrize(("world_size", "catalog_parallel"), LAYOUTS)
def test_members_are_combined_over_the_whole_catalog(world_size: int, catalog_parallel: int) -> None:
    logits = member_logits()
    mixed = (0.25 * logits[0].softmax(1) + 0.75 * logits[1].softmax(1)).log()
    expected = {"logit_mean": 0.25 * logits[0] + 0.75 * logits[1], "prob_mean": mixed}
    group = results(world_size, catalog_parallel)[:catalog_parallel]
    for combine, value in expected.items():
        np.testing.assert_allclose(np.concatenate([found[combine] for found in group], 1), value, 1e-12, 1e-14)
    for found in group:
        np.testing.assert_allclose(found["log_sum_exp"], logits[0].logsumexp(1), rtol=1e-12)
