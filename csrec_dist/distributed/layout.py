"""Which ranks do what: members (teaching), shards × members (labelling), data × catalog (training).

All but `Layout` and `LabelRanks` are pure functions. With catalog parallelism k, groups of k consecutive ranks are
dealt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Self

from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.distributed.groups import ALONE, Group
from csrec_dist.distributed.options import check_catalog_parallel


def split_ranks(num_ranks: int, num_parts: int) -> list[tuple[int, ...]]:
    """Deal `num_ranks` consecutive ranks to parts whose sizes differ by at most one."""
    bounds = [num_ranks * part // num_parts for part in range(num_parts + 1)]
    return [tuple(range(low, high)) for low, high in pairwise(bounds)]


@dataclass(frozen=True)
class TeachingSlot:
    """One member and the ranks that train it together."""

    member: int
    ranks: tuple[int, ...]


def teaching_rounds(members: list[int], world_size: int, catalog_parallel: int = 1) -> list[list[TeachingSlot]]:
    """Rounds of members trained side by side.

    Each round takes as many members as there are ranks left for, and deals all ranks to them, so that
    no rank is idle: 3 ranks and 2 members give groups of 1 and 2; 2 ranks and 3 members give a
    round of two members on one rank each, then one member on both. Catalog groups are not divided: raises UserError
    when their size does not divide the number of ranks.
    """
    groups = catalog_groups(range(world_size), catalog_parallel)
    rounds = []
    while members:
        now, members = members[: len(groups)], members[len(groups) :]
        parts = [tuple(chain(*(groups[index] for index in part))) for part in split_ranks(len(groups), len(now))]
        rounds.append([TeachingSlot(member, ranks) for member, ranks in zip(now, parts, strict=True)])
    return rounds


@dataclass(frozen=True)
class LabelColumn:
    """Ranks that label the same shards together, each with some of the members."""

    ranks: tuple[int, ...]
    world_size: int

    def members_of(self, rank: int, num_members: int) -> tuple[int, ...]:
        """The members whose states the column's rank at position `rank` computes."""
        return tuple(range(rank, num_members, len(self.ranks)))

    def shards(self, num_shards: int) -> tuple[int, ...]:
        """The shards the column labels: those its ranks own."""
        return tuple(shard for shard in range(num_shards) if shard % self.world_size in self.ranks)

    def writer(self, number: int) -> int | None:
        """Position in the column of the rank that writes the file of this number, or None where it is another's."""
        rank = number % self.world_size
        return self.ranks.index(rank) if rank in self.ranks else None


def label_columns(num_members: int, world_size: int, catalog_parallel: int = 1) -> list[LabelColumn]:
    """The mesh teacher × data for labelling: columns of up to `num_members` ranks that cover all ranks.

    The last column is smaller when the ranks do not divide; its ranks then take several members each. With catalog
    groups of k ranks, each of which holds a slice of the same members, there are k such columns side by side: the
    first ranks of several groups, their second ranks, and so on. They label different shards, and read their items'
    vectors together. Raises UserError when k does not divide the number of ranks.
    """
    groups = catalog_groups(range(world_size), catalog_parallel)
    size = min(num_members, len(groups))
    rows = [groups[start : start + size] for start in range(0, len(groups), size)]
    return [LabelColumn(ranks, world_size) for part in rows for ranks in zip(*part, strict=True)]


def catalog_groups(ranks: Sequence[int], catalog_parallel: int) -> list[tuple[int, ...]]:
    """The mesh data × catalog over `ranks`, by its rows: consecutive ranks that hold a slice of the catalog each.

    Raises UserError when the ranks cannot be dealt to groups of this size.
    """
    check_catalog_parallel(len(ranks), catalog_parallel)
    return [tuple(ranks[start : start + catalog_parallel]) for start in range(0, len(ranks), catalog_parallel)]


def data_groups(ranks: Sequence[int], catalog_parallel: int) -> list[tuple[int, ...]]:
    """The same mesh by its columns: the ranks that hold the same slice, and average its gradients."""
    check_catalog_parallel(len(ranks), catalog_parallel)
    return [tuple(ranks[index::catalog_parallel]) for index in range(catalog_parallel)]


@dataclass(frozen=True)
class LabelRanks:
    """The ranks that label: this rank's column with its group, and all of them."""

    column: LabelColumn
    group: Group
    world: Group

    @classmethod
    def alone(cls, num_members: int) -> Self:
        """One rank with all members."""
        (column,) = label_columns(num_members, 1)
        return cls(column, ALONE, ALONE)


@dataclass(frozen=True)
class Layout:
    """`group` are all ranks that train the model; each example is one rank's.

    `catalog` are those that hold one item table together with this rank, and `data` those that hold the same slice of
    it. With catalog_parallel 1 every rank holds a whole table: `catalog` is this rank alone, `data` the group.
    """

    group: Group
    catalog: Group
    data: Group

    def catalog_slice(self, num_items: int) -> CatalogSlice:
        """This rank's slice of the items, all of them where the catalog is not split."""
        return CatalogSlice.of(num_items, self.catalog)
