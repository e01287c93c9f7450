"""Elastic order: which rows make up a global batch, as a pure function of (seed, epoch, step).

Every lane is read in an order of its own: its row groups in a random order, the rows of each group in
a random order. A round takes one row from each lane; lanes follow each other in an affine order that
changes with the epoch, so that neighbouring lanes belong to different ranks at any world size. A global batch is
`batch_size` consecutive places of that sequence. Rank r owns the lanes l with l mod world_size = r.
The world size therefore decides who reads a row, never which rows are in a batch, and
(epoch, step) is the whole position of a run. A lane that is out of rows leaves its place empty.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import gcd

import numpy as np

from csrec_dist.errors import UserError


def owned_lanes(num_lanes: int, rank: int, world_size: int) -> range:
    """The lanes that `rank` reads; UserError when there are more ranks than lanes."""
    if world_size > num_lanes:
        raise UserError(
            f"{world_size} processes share {num_lanes} lanes, so some would read nothing: "
            f"start at most {num_lanes}, or prepare the dataset with a larger dataset.num_lanes."
        )
    return range(rank, num_lanes, world_size)


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch over lanes of the given numbers of rows."""

    lane_rows: tuple[int, ...]
    batch_size: int
    seed: int
    epoch: int

    @property
    def num_lanes(self) -> int:
        """Number of lanes."""
        return len(self.lane_rows)

    @property
    def num_steps(self) -> int:
        """Global batches in the epoch; the last places may be empty."""
        return -(-max(self.lane_rows) * self.num_lanes // self.batch_size)

    @cached_property
    def lane_sequence(self) -> np.ndarray:
        """The lanes in the order in which a round visits them: slot s holds lane (a·s + b) mod num_lanes."""
        random = np.random.default_rng([self.seed, self.epoch])
        steps = [a for a in range(1, self.num_lanes + 1) if gcd(a, self.num_lanes) == 1]
        factor, shift = random.choice(steps), random.integers(self.num_lanes)
        return (factor * np.arange(self.num_lanes) + shift) % self.num_lanes

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Lane and index within the lane's order, of each place of a global batch that holds a row."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        lanes = self.lane_sequence[places % self.num_lanes]
        indices = places // self.num_lanes
        held = indices < np.asarray(self.lane_rows)[lanes]
        return lanes[held], indices[held]

    def lane_order(self, lane: int, group_rows: tuple[int, ...], start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """The lane's row groups in this epoch's order, each with the order of its rows, from index `start` on."""
        groups = np.random.default_rng([self.seed, self.epoch, lane, 0]).permutation(len(group_rows))
        for group in groups.tolist():
            size = group_rows[group]
            if start >= size:
                start -= size
                continue
            yield (
                group,
                np.random.default_rng([self.seed, self.epoch, lane, 1, group]).permutation(size)[start:],
            )
            start = 0
