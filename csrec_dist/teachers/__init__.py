"""Strategies by the name of the method: one file each, and one line in `STRATEGIES`."""

from csrec_dist.teachers.model_level import model_level
from csrec_dist.teachers.strategy import MakeStrategy, Member, Strategy

__all__ = ["STRATEGIES", "Member", "Strategy"]

STRATEGIES: dict[str, MakeStrategy] = {"model_level": model_level}
