"""The methods, as values: which members to train, on what, which of them regularises another; and their options."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, model_validator

from csrec_dist.models.options import ModelConfig
from csrec_dist.options import MEMBERS, REGULARISED, Options, decides

TRAINED = decides("teach", through=MEMBERS)
ROBUST = decides("teach", through=REGULARISED)


class TeacherOptions(Options):
    """`teachers`: the members to train, or trained models to use as members."""

    num: Annotated[int, TRAINED] = Field(
        2, ge=1, le=8, strict=True, description="Number of members m of the teacher module (Alg. 1 and 2)."
    )
    model: Annotated[SerializeAsAny[ModelConfig] | list[SerializeAsAny[ModelConfig]] | None, TRAINED] = Field(
        None,
        description="Model of the members, or a list with one for each (training_level: side, main); null: the "
        "student's.",
    )
    pretrained: Annotated[list[str], TRAINED] = Field(
        [], description="Folders of trained models to use as members instead of training them."
    )
    trust_item_order: Annotated[bool, TRAINED] = Field(
        False,
        description="Accept pretrained members whose folder does not say that they were trained on the items of this "
        "dataset; you vouch that row i + 1 of their item table is item i + 1 of items.parquet.",
    )
    seed: Annotated[int | None, TRAINED] = Field(
        None,
        ge=0,
        lt=2**31,
        strict=True,
        description="Seed from which the members' seeds are derived; null: the run's seed.",
    )
    sample: Annotated[float, TRAINED] = Field(
        0.8,
        gt=0,
        le=1,
        description="Sampling ratio p: share of the windows that a data-level member or the side teacher trains on.",
    )
    alpha: Annotated[float, ROBUST] = Field(
        0.5, ge=0, le=1, description="α of Eq. 17: weight of KL(g₂‖g₁); KL(g₁‖g₂) has the weight 1−α."
    )
    expectation: Annotated[bool, ROBUST] = Field(
        True, description="Whether to include the last term of Eq. 17, the expectation of the noise matrix."
    )
    noise_rank: Annotated[int, ROBUST] = Field(
        64, ge=1, strict=True, description="Rank of the noise matrix M·N of Eq. 11."
    )
    noise_maximum: Annotated[Literal["exact", "norm"], ROBUST] = Field(
        "exact",
        description="max_k of Eq. 17: an exact search over all items, or an upper bound by norms for large catalogs.",
    )
    noise_refresh: Annotated[int, ROBUST] = Field(
        10, ge=1, strict=True, description="Steps between two searches for the exact maxima."
    )

    @model_validator(mode="before")
    @classmethod
    def _count_pretrained(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("pretrained"), list) and values["pretrained"]:
            return {"num": len(values["pretrained"])} | values
        return values


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
        independent = tuple(member for member in self.members if member.regularised_by is None)
        regularised = tuple(member for member in self.members if member.regularised_by is not None)
        assert {member.regularised_by for member in regularised} <= {member.name for member in independent}
        return [members for members in (independent, regularised) if members]


@dataclass(frozen=True)
class Method:
    """A way to make soft labels: its title in tables and how its teacher module is made.

    `make` gets a model for each member, the seed that the members' seeds follow, and the share p of a sub-sample.
    `num_members` is how many members it always has, or None where `teachers.num` says it. A method without members
    makes its labels of the training data's popularity.
    """

    title: str
    make: Callable[[Sequence[ModelConfig], int, float], TeacherModule]
    num_members: int | None = None


def member_seed(seed: int, member: int) -> int:
    """A member's own seed: different members and runs share none (while there are fewer than 1,000 members)."""
    return 1000 * (seed + 1) + member


def replicas(models: Sequence[ModelConfig], seed: int, sample: float) -> TeacherModule:
    """Members that differ in their seeds (and sub-samples, and models where several are given), all labelling."""
    members = tuple(Member(f"teacher-{k}", member_seed(seed, k), model, sample) for k, model in enumerate(models))
    return TeacherModule(members, tuple(member.name for member in members))


def model_level(models: Sequence[ModelConfig], seed: int, sample: float) -> TeacherModule:
    """Members trained on all rows, each from a seed of its own."""
    return replicas(models, seed, 1.0)


def data_level(models: Sequence[ModelConfig], seed: int, sample: float) -> TeacherModule:
    """Members trained on the share p of the rows, each from a seed of its own, which its sample follows."""
    return replicas(models, seed, sample)


def training_level(models: Sequence[ModelConfig], seed: int, sample: float) -> TeacherModule:
    """The side teacher g₂ on the share p of the rows, then the main teacher g₁ on all rows, regularised by g₂."""
    side_model, main_model = models
    side = Member("side", member_seed(seed, 0), side_model, sample)
    main = Member("main", member_seed(seed, 1), main_model, regularised_by=side.name)
    return TeacherModule((side, main), (main.name,))


def softrec(models: Sequence[ModelConfig], seed: int, sample: float) -> TeacherModule:
    """No members."""
    return TeacherModule((), ())


METHODS: dict[str, Method] = {
    "softrec": Method("SoftRec", softrec, num_members=0),
    "model_level": Method("CSRec-M", model_level),
    "data_level": Method("CSRec-D", data_level),
    "training_level": Method("CSRec-T", training_level, num_members=2),
}
