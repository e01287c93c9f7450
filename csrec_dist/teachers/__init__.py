"""Strategies by the name of the method: one file each, and one line in `STRATEGIES`."""

from csrec_dist.teachers.model_level import model_level
from csrec_dist.teachers.strategy import Member, Method, Strategy

__all__ = ["STRATEGIES", "Member", "Method", "Strategy"]

STRATEGIES: dict[str, Method] = {"model_level": Method("CSRec-M", model_level)}
