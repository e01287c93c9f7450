"""The methods, as values: which members to train, on what, which of them regularises another, how to combine them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from csrec_dist.models import ModelConfig


@dataclass(frozen=True)
class Member:
    """One teacher replica to train: its name (and folder), its seed, its model.

    `sample` is the share p of the training rows that it sees. A member that `regularised_by` an earlier one is trained
    with the robust loss of Eq. 18 on that one's predictions, others with cross-entropy.
    """

    name: str
    seed: int
    model: ModelConfig
    sample: float = 1.0
    regularised_by: str | None = None


@dataclass(frozen=True)
class TeacherModule:
    """A teacher module as a value. The logits of `labelling` members, by name, make the soft labels."""

    members: tuple[Member, ...]
    labelling: tuple[str, ...]

    @property
    def rounds(self) -> list[tuple[Member, ...]]:
        """Members that can be trained side by side, then those that are regularised by them."""
        first = tuple(member for member in self.members if member.regularised_by is None)
        then = tuple(member for member in self.members if member.regularised_by is not None)
        assert {member.regularised_by for member in then} <= {member.name for member in first}
        return [part for part in (first, then) if part]


@dataclass(frozen=True)
class Plan:
    """What a method is made from: a model for each member, the run's seed, and the share p of a sub-sample."""

    models: Sequence[ModelConfig]
    seed: int
    sample: float


@dataclass(frozen=True)
class Method:
    """A way to make soft labels: its title in tables and how its method is made.

    `num_members` is how many members it always has, or None where `teachers.num` says it. A method without members
    makes its labels of the training data's popularity.
    """

    title: str
    make: Callable[[Plan], TeacherModule]
    num_members: int | None = None


def member_seed(seed: int, member: int) -> int:
    """A member's own seed: different members and runs share none (while there are fewer than 1,000 members)."""
    return 1000 * (seed + 1) + member


def replicas(plan: Plan, sample: float) -> TeacherModule:
    """Members that differ in their seeds (and sub-samples, and models where several are given), all labelling."""
    members = tuple(
        Member(f"teacher-{k}", member_seed(plan.seed, k), model, sample) for k, model in enumerate(plan.models)
    )
    return TeacherModule(members, tuple(member.name for member in members))


def model_level(plan: Plan) -> TeacherModule:
    """Members trained on all rows, each from a seed of its own."""
    return replicas(plan, 1.0)


def data_level(plan: Plan) -> TeacherModule:
    """Members trained on the share p of the rows, each from a seed of its own, which its sample follows."""
    return replicas(plan, plan.sample)


def training_level(plan: Plan) -> TeacherModule:
    """The side teacher g₂ on the share p of the rows, then the main teacher g₁ on all rows, regularised by g₂."""
    side_model, main_model = plan.models
    side = Member("side", member_seed(plan.seed, 0), side_model, plan.sample)
    main = Member("main", member_seed(plan.seed, 1), main_model, regularised_by=side.name)
    return TeacherModule((side, main), (main.name,))


def softrec(plan: Plan) -> TeacherModule:
    """No members."""
    return TeacherModule((), ())


__all__ = ["METHODS", "Member", "Method", "Plan", "TeacherModule"]

METHODS: dict[str, Method] = {
    "softrec": Method("SoftRec", softrec, num_members=0),
    "model_level": Method("CSRec-M", model_level),
    "data_level": Method("CSRec-D", data_level),
    "training_level": Method("CSRec-T", training_level, num_members=2),
}
