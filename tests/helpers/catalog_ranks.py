"""Ranks laid out as data × catalog for tests: their groups, their slices, and what each of them holds."""

import torch.distributed as dist

from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.distributed.groups import Group
from csrec_dist.distributed.layout import catalog_groups, data_groups

LAYOUTS = [(1, 1), (2, 2), (4, 2), (3, 3)]
"""(ranks, catalog_parallel)."""


def own_group(rank: int, parts: list[tuple[int, ...]]) -> Group:
    """The group of this rank, where every rank makes all of them in the same order."""
    handles = {ranks: dist.new_group(list(ranks)) if len(ranks) > 1 else None for ranks in parts}
    own = next(ranks for ranks in parts if rank in ranks)
    return Group(own, own.index(rank), handles[own])


def mesh(rank: int, world_size: int, catalog_parallel: int) -> tuple[Group, Group]:
    """This rank's data group and catalog group."""
    ranks = range(world_size)
    return own_group(rank, data_groups(ranks, catalog_parallel)), own_group(
        rank, catalog_groups(ranks, catalog_parallel)
    )


def shard_of(rank: int, world_size: int, catalog_parallel: int, num_items: int) -> CatalogSlice:
    """This rank's slice of a catalog."""
    return CatalogSlice.of(num_items, mesh(rank, world_size, catalog_parallel)[1])
