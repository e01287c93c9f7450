"""Studies: grids of runs that share what they can, and the tables and figures made of them."""

from csrec_dist.experiments.study.running import study_command

__all__ = ["study_command"]
