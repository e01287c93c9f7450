"""A simulated world: a catalog, and users whose true preferences P(j | s) are known exactly.

A user has a taste u, a vector of d numbers that drifts: u ← ρ·u + √(1 − ρ²)·ξ with ρ = 1 − drift and standard normal
ξ, so that it stays standard normal. Items lie in C clusters. The item that the user prefers next is drawn in two steps:

    P(c | u)    ∝ mass_c · exp(sharpness · ⟨u, m_c⟩)         over the clusters
    P(j | c, u) ∝ exposure_j · exp(sharpness · ⟨u, v_j⟩)     over the items of the cluster
    P(j | s) = P(c | u) · P(j | c, u)

where exposure_j = rank_j^(−popularity) (Zipf, ranks at random) and mass_c is the sum of its items' exposure. With
one cluster this is the softmax over the catalog; with √V clusters an interaction costs about 2·√V instead of V numbers.
With `choice: argmax` the user prefers the item with the largest P(j | s) among those not preferred before, as in Eq. 1
without its noise; that costs V numbers an interaction. With probability `noise_rate` the observed item is another one.

Shapes: n interactions, V items, C clusters, d width.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from csrec_dist.data.noise import NoiseKind, NoiseSource, noise_law

CHUNK_INTERACTIONS = 2**16
"""A chunk of users has about this many interactions."""
BLOCK_NUMBERS = 2**16
BLOCK_PROBABILITIES = 2**20
"""Probabilities of users that are held at once, or those of one user if they are more."""
"""Logits computed at once: half a MiB, which fits a CPU cache."""
GROUP = 16
SHORTEST = 5
ONE_CLUSTER_ITEMS = 1000
YEAR, DAY = 365 * 86400, 86400
FIRST_TIME = 1_600_000_000
# Purposes of random numbers: each has its own stream, so that noise does not change tastes.
CATALOG, LENGTHS, TIMES, TASTES, CHOICES, NOISE = range(6)


class SimulationOptions(BaseModel):
    """Options of a simulated world, which decide every byte."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    num_interactions: int = Field(default=100_000, ge=10, le=10**9, description="Total number of interactions.")
    num_users: int = Field(default=2_000, ge=1, le=10**8, description="Number of users.")
    num_items: int = Field(default=1_000, ge=2, le=10**7, description="Number of items V.")
    num_clusters: int | None = Field(
        default=None, ge=1, description="Number of clusters C; null: 1 up to 1,000 items, else √V."
    )
    width: int = Field(default=16, ge=1, le=1024, description="Dimensions d of a taste.")
    sharpness: float = Field(default=3.0, ge=0, le=50, description="Standard deviation of the logits over tastes.")
    drift: float = Field(
        default=0.02, ge=0, le=1, description="How far a taste moves per step; 0: not at all, 1: redrawn."
    )
    popularity: float = Field(default=0.5, ge=0, le=3, description="Exponent of the items' exposure; 0: all equal.")
    choice: Literal["draw", "argmax"] = Field(
        default="draw",
        exclude_if=lambda choice: choice == "draw",  # so that truth.json of such a world keeps its bytes
        description="The item preferred next: drawn from P(j | s), or the most probable one not preferred before.",
    )
    noise_rate: float = Field(default=0.0, ge=0, le=1, description="Probability that another item is observed.")
    noise_kind: NoiseKind = Field(default="uniform", description="Distribution of the other item.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of everything.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        mean = self.num_interactions / self.num_users
        if not SHORTEST <= mean <= CHUNK_INTERACTIONS:
            raise ValueError(
                f"{self.num_users} users have {mean:g} interactions each; each needs between {SHORTEST} and "
                f"{CHUNK_INTERACTIONS}"
            )
        if self.num_clusters is not None and self.num_clusters > self.num_items:
            raise ValueError(f"{self.num_clusters} clusters are more than {self.num_items} items")
        return self

    @property
    def clusters(self) -> int:
        """C, with the default resolved."""
        return self.num_clusters or (1 if self.num_items <= ONE_CLUSTER_ITEMS else round(self.num_items**0.5))

    @property
    def chunk_users(self) -> int:
        """Users simulated together."""
        return max(1, CHUNK_INTERACTIONS * self.num_users // self.num_interactions)

    @property
    def num_chunks(self) -> int:
        """Chunks of users."""
        return -(-self.num_users // self.chunk_users)


@dataclass(frozen=True)
class Users:
    """Consecutive users and their tastes; interactions are by user, oldest first."""

    users: np.ndarray  # int32 [n], 1…num_users
    tastes: np.ndarray  # float64 [n, d]: at the time of each interaction


@dataclass(frozen=True)
class Chunk:
    """The interactions of consecutive users, by user, oldest first; all arrays [n]."""

    users: np.ndarray  # int32, 1…num_users
    items: np.ndarray  # int32, 1…V: what is observed
    timestamps: np.ndarray  # int64 seconds, ascending for each user
    true_items: np.ndarray  # int32, 1…V: what the user preferred
    tastes: np.ndarray  # float64 [n, d]


@dataclass(frozen=True)
class World:
    """The catalog; with the options it determines all users."""

    options: SimulationOptions
    cluster_factors: np.ndarray  # float32 [C, d]: m_c
    item_factors: np.ndarray  # float32 [V, d]: v_j
    exposure: np.ndarray  # float64 [V], of single precision: the last bits of a power differ between processors

    @classmethod
    def make(cls, options: SimulationOptions) -> Self:
        """The catalog of these options."""
        random = _stream(options, CATALOG)
        num, clusters, width = options.num_items, options.clusters, options.width
        # Variance 1 for ⟨u, m_c + v_j⟩, half of it between clusters where there are several.
        scale = (1 if clusters == 1 else 0.5) ** 0.5 / width**0.5
        return cls(
            options,
            exposure=((random.permutation(num) + 1.0) ** -options.popularity).astype(np.float32).astype(np.float64),
            cluster_factors=(scale * random.standard_normal((clusters, width))).astype(np.float32),
            item_factors=(scale * random.standard_normal((num, width))).astype(np.float32),
        )

    @cached_property
    def starts(self) -> np.ndarray:
        """[C + 1]: items starts[c] + 1 … starts[c + 1] are cluster c's."""
        clusters = self.options.clusters
        return np.arange(clusters + 1) * self.options.num_items // clusters

    @cached_property
    def masses(self) -> np.ndarray:
        """[C] total exposure of each cluster's items."""
        return np.add.reduceat(self.exposure, self.starts[:-1])

    @cached_property
    def noise(self) -> NoiseSource:
        """The source of the other items; popularity is exposure."""
        return NoiseSource(noise_law(self.options.noise_kind, self.exposure))

    def true_probabilities(self, tastes: np.ndarray) -> np.ndarray:
        """P(j | s) for users of these tastes [n, d]: [n, V] float64, column j being item j + 1's."""
        of_clusters = _softmax(self.options.sharpness * tastes @ self.cluster_factors.T + np.log(self.masses))
        within = [
            _softmax(self.options.sharpness * tastes @ self.item_factors[a:b].T + np.log(self.exposure[a:b]))
            for a, b in zip(self.starts, self.starts[1:], strict=False)
        ]
        return np.concatenate([of_clusters[:, [c]] * part for c, part in enumerate(within)], axis=1)

    def users(self, chunk: int) -> Users:
        """The users of a chunk and their tastes, without their interactions."""
        lengths = self._lengths(chunk)
        first = chunk * self.options.chunk_users + 1
        users = np.repeat(np.arange(first, first + len(lengths), dtype=np.int32), lengths)
        return Users(users, self._tastes(chunk, lengths))

    def chunk(self, chunk: int) -> Chunk:
        """All interactions of a chunk of users; a pure function of the options and the chunk's number."""
        users = self.users(chunk)
        true_items = self._best(users) if self.options.choice == "argmax" else self._choices(chunk, users.tastes)
        items, _ = self.noise.replace(true_items, self.options.noise_rate, _stream(self.options, NOISE, chunk))
        return Chunk(users.users, items, self._times(chunk, users.users), true_items, users.tastes)

    def _lengths(self, chunk: int) -> np.ndarray:
        """Interactions of each user of the chunk, at least `SHORTEST`; over all chunks they add up to the options'."""
        num, users = self.options.num_interactions, self.options.num_users
        first = chunk * self.options.chunk_users
        last = min(first + self.options.chunk_users, users)
        spare = num * last // users - num * first // users - SHORTEST * (last - first)
        ends = np.cumsum(_stream(self.options, LENGTHS, chunk).standard_exponential(last - first))
        return SHORTEST + np.diff((ends / ends[-1] * spare).astype(np.int64), prepend=0)

    def _tastes(self, chunk: int, lengths: np.ndarray) -> np.ndarray:
        rho = 1 - self.options.drift
        tastes = _stream(self.options, TASTES, chunk).standard_normal((lengths.sum(), self.options.width))
        firsts = np.cumsum(lengths) - lengths
        new = (1 - rho**2) ** 0.5
        for step in range(1, lengths.max()):
            rows = firsts[lengths > step] + step
            tastes[rows] = rho * tastes[rows - 1] + new * tastes[rows]
        return tastes

    def _times(self, chunk: int, users: np.ndarray) -> np.ndarray:
        """Seconds: a user begins within a year, and comes back after a day on average."""
        rng = _stream(self.options, TIMES, chunk)
        _, firsts, inverse = np.unique(users, return_index=True, return_inverse=True)
        begins = FIRST_TIME + rng.randint(0, YEAR, len(firsts), dtype=np.int64)
        passed = np.cumsum(1 + (DAY * rng.standard_exponential(len(users))).astype(np.int64))
        return (begins - passed[firsts])[inverse] + passed

    def _best(self, users: Users) -> np.ndarray:
        """The most probable item [n] int32 that its user has not preferred before; when none is left, all are again."""
        _, all_firsts, all_lengths = np.unique(users.users, return_index=True, return_counts=True)
        items = np.empty(len(users.users), np.int32)
        block = max(1, BLOCK_PROBABILITIES // self.options.num_items)
        for begin in range(0, len(all_firsts), block):
            firsts, lengths = all_firsts[begin : begin + block], all_lengths[begin : begin + block]
            preferred = np.zeros((len(firsts), self.options.num_items), bool)
            for step in range(lengths.max()):
                who = np.flatnonzero(lengths > step)
                preferred[who[preferred[who].all(1)]] = False
                rows = firsts[who] + step
                probabilities = self.true_probabilities(users.tastes[rows])
                probabilities[preferred[who]] = -1
                items[rows] = probabilities.argmax(1) + 1
                preferred[who, items[rows] - 1] = True
        return items

    def _choices(self, chunk: int, tastes: np.ndarray) -> np.ndarray:
        """An item [n] int32 of 1…V for each taste, drawn from P(j | s)."""
        numbers = _stream(self.options, CHOICES, chunk).random_sample((2, len(tastes)))
        scaled = self.options.sharpness * tastes
        clusters = draw(scaled, self.cluster_factors, self.masses, numbers[0])
        items = np.empty(len(tastes), np.int32)
        order = np.argsort(clusters, kind="stable")
        bounds = np.searchsorted(clusters[order], np.arange(self.options.clusters + 1))
        for cluster in np.flatnonzero(np.diff(bounds)):
            rows = order[bounds[cluster] : bounds[cluster + 1]]
            a, b = self.starts[cluster : cluster + 2]
            items[rows] = a + 1 + draw(scaled[rows], self.item_factors[a:b], self.exposure[a:b], numbers[1, rows])
        return items


def draw(tastes: np.ndarray, factors: np.ndarray, weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Index [n] drawn with probability ∝ weights[k] · exp(⟨tastes, factors[k]⟩), by inverse distribution function.

    Args:
        tastes: [n, d].
        factors: [K, d].
        weights: [K] > 0.
        uniform: [n] numbers in [0, 1).

    Memory is bounded by `BLOCK_NUMBERS` logits, or one row if that is more.
    """
    size = len(factors)
    padded = -(-size // GROUP) * GROUP
    columns = np.zeros((factors.shape[1] + 1, padded))
    columns[:-1, :size] = factors.T
    columns[-1] = -np.inf
    columns[-1, :size] = np.log(weights)
    drawn = np.empty(len(tastes), np.int64)
    block = max(1, BLOCK_NUMBERS // padded)
    for start in range(0, len(tastes), block):
        rows = slice(start, start + block)
        logits = np.column_stack([tastes[rows], np.ones(len(tastes[rows]))]) @ columns
        logits -= logits.max(1, keepdims=True)
        drawn[rows] = _inverse(np.exp(logits, out=logits), uniform[rows])
    return np.minimum(drawn, size - 1)


def _inverse(weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Index [n] at which the running sum of weights [n, K] passes the share `uniform` [n] of their sum.

    Groups are summed first, and the running sum is taken over groups and within the group that is hit: over all K it
    would cost more than everything else.
    """
    rows = np.arange(len(weights))
    groups = weights.reshape(len(weights), -1, GROUP)
    sums = weights.reshape(-1, GROUP) @ np.ones(GROUP)
    ends = np.cumsum(sums.reshape(len(weights), -1), axis=1)
    thresholds = uniform * ends[:, -1]
    group = np.minimum((ends <= thresholds[:, None]).sum(1), ends.shape[1] - 1)
    thresholds -= np.where(group > 0, ends[rows, group - 1], 0)
    inside = (np.cumsum(groups[rows, group], axis=1) <= thresholds[:, None]).sum(1)
    return group * GROUP + np.minimum(inside, GROUP - 1)


def _stream(options: SimulationOptions, purpose: int, chunk: int = 0) -> np.random.RandomState:
    """Random numbers for one purpose and chunk; the streams of RandomState never change between versions."""
    return np.random.RandomState([options.seed, purpose, chunk])


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)
