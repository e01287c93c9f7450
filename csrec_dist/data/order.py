"""Elastic order: which rows make up a global batch, as a pure function of (seed, epoch, step).

Every shard has its own order: its row groups are shuffled, and so are the rows within each group. A round takes one
row from each shard. The shards follow each other in an affine order that changes with the epoch, so neighbouring shards
belong to different ranks at any world size. A global batch is `batch_size` consecutive slots of these rounds; a shard
that has run out of rows leaves its slot empty. Rank r owns the shards s with s mod world_size = r. The world size
therefore decides who reads a row, never which rows are in a batch, and (epoch, step) is the whole position of a run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import floor, gcd

import numpy as np

from csrec_dist.errors import UserError


def owned_shards(num_shards: int, rank: int, world_size: int) -> range:
    """The shards that `rank` reads, at least one."""
    assert world_size <= num_shards, "refuse_idle_ranks comes first"
    return range(rank, num_shards, world_size)


def refuse_idle_ranks(num_shards: int, num_rows: int, world_size: int) -> None:
    """Raise UserError if there are more ranks than shards of training rows, so that some ranks would read nothing."""
    if world_size > num_shards:
        more = "a larger dataset.num_shards"
        if num_shards == num_rows:
            more = "more training rows than those, one in each shard (a larger log, a lower dataset.min_interactions)"
        raise UserError(
            f"{world_size} processes share {num_shards} shards of {num_rows:,} training rows, some would read nothing: "
            f"start at most {num_shards}, or prepare the dataset with {more}."
        )


ROUNDING = 1e-9
"""Added before rounding down: a share of .29 of 100 rows is 29 rows, but .29 * 100 is slightly less in binary."""


@dataclass(frozen=True)
class RowSample:
    """⌊share · n⌋ of n rows, drawn without replacement, from each shard in proportion to its size within one row."""

    share: float
    seed: int

    def shard_counts(self, shard_rows: Sequence[int]) -> tuple[int, ...]:
        """The number of rows drawn from each shard: largest fractions are rounded up until the total is right."""
        shares = [self.share * rows for rows in shard_rows]
        counts = [floor(share) for share in shares]
        num_missing = floor(self.share * sum(shard_rows) + ROUNDING) - sum(counts)
        largest_fraction_first = sorted(range(len(counts)), key=lambda shard: counts[shard] - shares[shard])
        for shard in largest_fraction_first[:num_missing]:
            counts[shard] += 1
        return tuple(counts)

    def rows(self, shard: int, num_rows: int, count: int) -> np.ndarray:
        """The indices of a shard's drawn rows, ascending."""
        return np.sort(np.random.default_rng([self.seed, shard]).permutation(num_rows)[:count])


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch over shards with the given numbers of rows, or over a sample of these rows."""

    all_shard_rows: tuple[int, ...]
    batch_size: int
    seed: int
    epoch: int
    sample: RowSample | None = None

    @cached_property
    def shard_rows(self) -> tuple[int, ...]:
        """The number of rows that the epoch reads from each shard."""
        return self.all_shard_rows if self.sample is None else self.sample.shard_counts(self.all_shard_rows)

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self.all_shard_rows)

    def most_rows(self, rank: int, world_size: int) -> int:
        """The most rows that a rank can have of a global batch, which is that many places of rounds over all shards.

        At least one: a batch without rows has an empty place.
        """
        of_each = -(-self.batch_size // self.num_shards)
        shards = owned_shards(self.num_shards, rank, world_size)
        return max(1, min(self.batch_size, sum(min(of_each, self.shard_rows[shard]) for shard in shards)))

    @property
    def num_steps(self) -> int:
        """The number of global batches in the epoch; the last slots may be empty."""
        return -(-max(self.shard_rows) * self.num_shards // self.batch_size)

    @cached_property
    def shard_sequence(self) -> np.ndarray:
        """The shards in the order in which a round visits them: slot s is shard (a·s + b) mod num_shards."""
        rng = np.random.default_rng([self.seed, self.epoch])
        # Only an `a` without a common divisor visits every shard.
        factors = [a for a in range(1, self.num_shards + 1) if gcd(a, self.num_shards) == 1]
        factor, shift = rng.choice(factors), rng.integers(self.num_shards)
        return (factor * np.arange(self.num_shards) + shift) % self.num_shards

    def slots(self, shards: Sequence[int]) -> np.ndarray:
        """The slots of a round, ascending, that are these shards'."""
        is_given = np.zeros(self.num_shards, bool)
        is_given[list(shards)] = True
        return np.flatnonzero(is_given[self.shard_sequence])

    def batch(self, step: int, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows that a global batch has in these slots of its rounds: the shard of each, its index in that shard.

        The work grows with the number of these slots, not with the size of the batch.
        """
        first, stop = step * self.batch_size, (step + 1) * self.batch_size
        rounds = np.arange(first // self.num_shards, -(-stop // self.num_shards))
        positions = (rounds[:, None] * self.num_shards + slots).ravel()
        positions = positions[(positions >= first) & (positions < stop)]
        indices, slots = np.divmod(positions, self.num_shards)
        shards = self.shard_sequence[slots]
        has_row = indices < self._row_counts[shards]
        return shards[has_row], indices[has_row]

    @cached_property
    def _row_counts(self) -> np.ndarray:
        return np.asarray(self.shard_rows)

    def shard_order(self, shard: int, group_rows: tuple[int, ...], start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the shard's row groups in this epoch's order, each with the order of its rows, from index `start` on.

        A skipped group is not even shuffled: each group draws from its own random stream.
        """
        groups = np.random.default_rng([self.seed, self.epoch, shard, 0]).permutation(len(group_rows))
        rows_of_groups = self._rows_of_groups(shard, group_rows)
        for group in groups.tolist():
            rows = rows_of_groups[group]
            if start >= len(rows):
                start -= len(rows)
                continue
            order = np.random.default_rng([self.seed, self.epoch, shard, 1, group]).permutation(len(rows))
            yield group, rows[order[start:]]
            start = 0

    def _rows_of_groups(self, shard: int, group_rows: tuple[int, ...]) -> list[np.ndarray]:
        """The indices, within each row group, of the rows that the epoch reads."""
        if self.sample is None:
            return [np.arange(size) for size in group_rows]
        rows = self.sample.rows(shard, sum(group_rows), self.shard_rows[shard])
        ends = np.cumsum(group_rows)
        parts = np.split(rows, np.searchsorted(rows, ends[:-1]))
        return [part - (end - size) for part, end, size in zip(parts, ends, group_rows, strict=True)]
