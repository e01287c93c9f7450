"""What all sections of a configuration have in common, and how a key says which stages' results it decides."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

MatmulPrecision = Literal["highest", "high", "medium"]
"""Of matrix products in fp32, in torch's words: as exact as fp32, TF32, or bf16 with fp32 sums."""
STAGES = ("prepare", "teach", "label", "distill", "baseline", "evaluate")


class Options(BaseModel):
    """A section of the configuration: frozen, and without unknown keys. Classes of options import no torch."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


def always(config: Any) -> bool:
    """The condition of a key that always counts."""
    return True


@dataclass(frozen=True)
class Decides:
    """The mark of a key: the stages whose results it decides; see `decides`."""

    stages: tuple[str, ...]
    when: Callable[[Any], bool]
    through: str | None
    can_rise: bool


def decides(
    *stages: str, when: Callable[[Any], bool] = always, through: str | None = None, can_rise: bool = False
) -> Decides:
    """The mark of a key, as in `Annotated[int, decides("teach")]`: its value is part of what these stages are made of.

    A key may have several marks. A section may be marked where it stands in `Config`, for all of its keys that have no
    mark of their own.

    Args:
        when: whether the mark counts in a config, which it is given whole.
        through: where the key is not compared by its own name, what is made of it and compared in its place.
        can_rise: a limit, which is not compared: a training that has ended goes on when it is raised.
    """
    assert set(stages) <= set(STAGES), f"{stages} are not all stages"
    return Decides(stages, when, through, can_rise)


NOTHING = decides()
"""The mark of a key that decides no result: names, logging, checkpoints, where data lie, which processes work."""
TRAININGS = ("teach", "distill", "baseline")
MEMBERS, REGULARISED = "members", "the regularised member"
"""What `teach` compares in place of keys: each member's seed, model and share of the rows; the robust loss of one."""
INITIAL = "init_from"
"""What a training compares in place of the folder that it starts from: that model's weights and item ids."""
RANKS = "ranks"
"""What `evaluate` finds of each test row, which two runs are compared by: it depends on fewer keys than its metrics."""


def undeciding(section: type[Options]) -> set[str]:
    """The keys of a section that are marked with NOTHING."""
    return {name for name, field in section.model_fields.items() if NOTHING in field.metadata}
