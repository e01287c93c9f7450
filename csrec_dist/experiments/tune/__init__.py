"""Tuning: a search for the values of some keys with which a student ranks best on validation."""

from csrec_dist.experiments.tune.command import tune, tune_command
from csrec_dist.experiments.tune.results import Tuning

__all__ = ["Tuning", "tune", "tune_command"]
