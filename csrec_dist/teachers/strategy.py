"""What a strategy is: the members to train, on what and leaning on whom, and whose logits make the labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from csrec_dist.models import ModelConfig


@dataclass(frozen=True)
class Member:
    """One teacher replica to train: its name (and folder), its seed, its model.

    `sample` is the share p of the training rows that it sees. A member that `leans_on` an earlier one is trained
    with the robust loss of Eq. 18 on that one's predictions, others with cross-entropy.
    """

    name: str
    seed: int
    model: ModelConfig
    sample: float = 1.0
    leans_on: str | None = None


@dataclass(frozen=True)
class Strategy:
    """A teacher module as a value. The logits of `labelling` members, by name, make the soft labels."""

    members: tuple[Member, ...]
    labelling: tuple[str, ...]

    @property
    def rounds(self) -> list[tuple[Member, ...]]:
        """Members that can be trained side by side, then those that lean on them."""
        first = tuple(member for member in self.members if member.leans_on is None)
        then = tuple(member for member in self.members if member.leans_on is not None)
        assert {member.leans_on for member in then} <= {member.name for member in first}
        return [part for part in (first, then) if part]


@dataclass(frozen=True)
class Plan:
    """What a strategy is made from: a model for each member, the run's seed, and the share p of a sub-sample."""

    models: Sequence[ModelConfig]
    seed: int
    sample: float


@dataclass(frozen=True)
class Method:
    """A way to make soft labels: its title in tables and how its strategy is made.

    `num_members` is how many members it always has, or None where `teachers.num` says it. A method without members
    makes its labels of the training data's popularity.
    """

    title: str
    make: Callable[[Plan], Strategy]
    num_members: int | None = None


def member_seed(seed: int, member: int) -> int:
    """A member's own seed: different members and runs share none (while there are fewer than 1,000 members)."""
    return 1000 * (seed + 1) + member


def replicas(plan: Plan, sample: float) -> Strategy:
    """Members that differ in their seeds (and sub-samples, and models where several are given), all labelling."""
    members = tuple(
        Member(f"teacher-{k}", member_seed(plan.seed, k), model, sample) for k, model in enumerate(plan.models)
    )
    return Strategy(members, tuple(member.name for member in members))
