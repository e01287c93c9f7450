"""Who works on what: ranks laid out over members (teaching) and over lanes × members (labelling), as pure functions."""

from dataclasses import dataclass
from itertools import pairwise


def split_ranks(num_ranks: int, num_parts: int) -> list[tuple[int, ...]]:
    """Deal `num_ranks` consecutive ranks to parts whose sizes differ by at most one."""
    bounds = [num_ranks * part // num_parts for part in range(num_parts + 1)]
    return [tuple(range(low, high)) for low, high in pairwise(bounds)]


@dataclass(frozen=True)
class TeachingSlot:
    """One member and the ranks that train it together."""

    member: int
    ranks: tuple[int, ...]


def teaching_rounds(members: list[int], world_size: int) -> list[list[TeachingSlot]]:
    """Rounds of members trained side by side.

    Each round takes as many members as there are ranks left for, and deals all ranks to them, so that
    no rank is idle: 3 ranks and 2 members give groups of 1 and 2; 2 ranks and 3 members give a
    round of two members on one rank each, then one member on both.
    """
    rounds = []
    while members:
        now, members = members[:world_size], members[world_size:]
        ranks = split_ranks(world_size, len(now))
        rounds.append([TeachingSlot(member, part) for member, part in zip(now, ranks, strict=True)])
    return rounds


@dataclass(frozen=True)
class LabelColumn:
    """Ranks that label the same lanes together, each with some of the members."""

    ranks: tuple[int, ...]
    world_size: int

    def members_of(self, rank: int, num_members: int) -> tuple[int, ...]:
        """The members whose states the column's rank at position `rank` computes."""
        return tuple(range(rank, num_members, len(self.ranks)))

    def lanes(self, num_lanes: int) -> tuple[int, ...]:
        """The lanes the column labels: those its ranks own."""
        return tuple(lane for lane in range(num_lanes) if lane % self.world_size in self.ranks)


def label_columns(num_members: int, world_size: int) -> list[LabelColumn]:
    """The mesh teacher × data for labelling: columns of up to `num_members` ranks that cover all ranks.

    The last column is smaller when the ranks do not divide; its ranks then take several members each.
    """
    size = min(num_members, world_size)
    starts = range(0, world_size, size)
    return [LabelColumn(tuple(range(s, min(s + size, world_size))), world_size) for s in starts]
