"""What would go wrong in a run, told before it: checks of this machine, and between the ranks of a launch."""

from csrec_dist.doctor.machine import Check, check_machine
from csrec_dist.doctor.ranks import check_ranks

__all__ = ["Check", "check_machine", "check_ranks"]
