"""Studies: grids of runs that share datasets, teachers and labels, and their tables and figures."""

from csrec_dist.experiments.study.running import study_command

__all__ = ["study_command"]
