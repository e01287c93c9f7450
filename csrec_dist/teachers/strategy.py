"""What a strategy is: the members to train and how their logits are combined."""

from collections.abc import Callable
from dataclasses import dataclass

from csrec_dist.models import ModelConfig


@dataclass(frozen=True)
class Member:
    """One teacher replica to train: its name (and folder), its seed, its model."""

    name: str
    seed: int
    model: ModelConfig


@dataclass(frozen=True)
class Strategy:
    """A teacher module as a value."""

    members: tuple[Member, ...]


@dataclass(frozen=True)
class Method:
    """A way to make soft labels: its title in tables, and the strategy it makes of (num members, model, seed)."""

    title: str
    make: Callable[[int, ModelConfig, int], Strategy]


def member_seed(seed: int, member: int) -> int:
    """A member's own seed: different members and runs share none (while there are fewer than 1,000 members)."""
    return 1000 * (seed + 1) + member
