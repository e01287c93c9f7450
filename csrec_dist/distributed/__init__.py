"""Processes, groups and collectives: the only folder that imports accelerate or torch.distributed."""

from csrec_dist.distributed.groups import Group
from csrec_dist.distributed.runtime import Runtime

__all__ = ["Group", "Runtime"]
