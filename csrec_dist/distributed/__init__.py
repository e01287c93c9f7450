"""Processes, groups and collectives: the only folder that imports accelerate or torch.distributed."""

from csrec_dist.distributed.failure import RankFailure
from csrec_dist.distributed.groups import Group
from csrec_dist.distributed.runtime import Runtime, set_deterministic
from csrec_dist.distributed.watchdog import Waits, Watch

__all__ = ["Group", "RankFailure", "Runtime", "Waits", "Watch", "set_deterministic"]
