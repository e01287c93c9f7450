"""Strategies by the name of the method: one file each, and one line in `STRATEGIES`."""

from csrec_dist.teachers.data_level import data_level
from csrec_dist.teachers.model_level import model_level
from csrec_dist.teachers.softrec import softrec
from csrec_dist.teachers.strategy import Member, Method, Plan, Strategy
from csrec_dist.teachers.training_level import training_level

__all__ = ["STRATEGIES", "Member", "Method", "Plan", "Strategy"]

STRATEGIES: dict[str, Method] = {
    "softrec": Method("SoftRec", softrec, num_members=0),
    "model_level": Method("CSRec-M", model_level),
    "data_level": Method("CSRec-D", data_level),
    "training_level": Method("CSRec-T", training_level, num_members=2),
}
