"""Which ranks train which members, agreed on through a store: members are taken, free ranks offered and requested.

There is no collective across teams. A race between two ranks is decided by one atomic operation of the store (a
counter, or compare_set), which succeeds for one of them alone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from signal import Signals

from csrec_dist.distributed.store import DeadlineStore


@dataclass(frozen=True)
class Team:
    """A member, by its index among those to train, and the ranks that train it; `joins`: how often ranks joined it."""

    member: int
    ranks: tuple[int, ...]
    joins: int = 0


def num_requested(num_blocks: int, num_in_team: int, num_unfinished: int) -> int:
    """Blocks that a team of `num_in_team` requests while `num_unfinished` members still train: up to an equal share.

    Shares are rounded up, so that while a block is free some team has less than its share and requests it.
    """
    return max(0, -(-num_blocks // num_unfinished) - num_in_team)


class Scheduler:
    """What the ranks of a round tell each other. `blocks` are the ranks that stay together: the catalog's groups.

    `num_dealt` of the `num_members` have ranks from the start; the others wait, in order. The offers of a block are
    numbered from 1, so that a request for an earlier offer is not taken for one of the current offer.
    """

    def __init__(
        self, store: DeadlineStore, blocks: Sequence[tuple[int, ...]], num_members: int, num_dealt: int
    ) -> None:
        self._store, self._blocks = store, list(blocks)
        self._num_members, self._num_dealt = num_members, num_dealt

    def block_of(self, rank: int) -> int:
        """The block of a rank."""
        return next(index for index, ranks in enumerate(self._blocks) if rank in ranks)

    def is_first(self, rank: int) -> bool:
        """Whether the rank is the first of its block, which speaks for it."""
        return self._blocks[self.block_of(rank)][0] == rank

    def take(self) -> int | None:
        """Take the next waiting member for the caller; None if none waits."""
        member = self._num_dealt + self._store.add("taken", 1) - 1
        return member if member < self._num_members else None

    def finish(self) -> None:
        """One more member is trained and saved."""
        self._store.add("finished", 1)

    @property
    def num_unfinished(self) -> int:
        """Members that are not trained yet."""
        return self._num_members - self._store.add("finished", 0)

    def offer(self, block: int, offer: int) -> None:
        """The block is free."""
        self._store.set(f"block-{block}", f"free {offer}")

    def withdraw(self, block: int, offer: int) -> bool:
        """Take an offer back; False if a team has requested the block already, which it then has to join."""
        return self._change(block, f"free {offer}", f"gone {offer}")

    def requested_by(self, block: int, offer: int) -> Team | None:
        """The team that has requested the block since this offer, or None."""
        kind, _, rest = self._store.get(f"block-{block}").partition(" ")
        number, _, key = rest.partition(" ")
        if kind != "requested" or int(number) != offer:
            return None
        text = self._store.get(key)  # empty for a moment: a team requests its blocks first, and publishes itself after
        if not text:
            return None
        member, ranks, joins = json.loads(text)
        return Team(member, tuple(ranks), joins)

    def grow(self, team: Team) -> Team:
        """The team with the free blocks that it requested, which will join it; the same team if there are none.

        The first rank of a team that goes on training calls this.
        """
        blocks = [index for index, ranks in enumerate(self._blocks) if ranks[0] in team.ranks]
        others = [index for index in range(len(self._blocks)) if index not in blocks]
        most = num_requested(len(self._blocks), len(blocks), self.num_unfinished)
        key = f"team-{team.member}-{team.joins + 1}"
        joining = self._request(key, others, most)
        if not joining:
            return team
        ranks = tuple(sorted(rank for index in blocks + joining for rank in self._blocks[index]))
        # Published last: only now is it known which of the requested blocks were still free.
        grown = Team(team.member, ranks, team.joins + 1)
        self._store.set(key, json.dumps([grown.member, list(ranks), grown.joins]))
        return grown

    def stop(self, signum: int) -> None:
        """Tell all teams that a signal has stopped one of them."""
        self._store.set("stop", str(int(signum)))

    @property
    def stopped(self) -> Signals | None:
        """The signal that stopped a team, or None."""
        text = self._store.get("stop")
        return Signals(int(text)) if text else None

    def _request(self, key: str, others: Sequence[int], most: int) -> list[int]:
        """Request up to `most` of the other blocks that are free; those that no other team requested first."""
        joining: list[int] = []
        for block in others:
            if len(joining) == most:
                break
            entry = self._store.get(f"block-{block}")
            kind, _, offer = entry.partition(" ")
            if kind == "free" and self._change(block, entry, f"requested {offer} {key}"):
                joining.append(block)
        return joining

    def _change(self, block: int, before: str, after: str) -> bool:
        """Change a block's entry, unless another rank changed it first."""
        return self._store.compare_set(f"block-{block}", before, after) == after
