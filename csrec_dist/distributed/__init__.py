"""Processes, groups and collectives: the only folder that imports accelerate or torch.distributed."""

from typing import TYPE_CHECKING

from csrec_dist.lazy import attributes

if TYPE_CHECKING:
    from csrec_dist.distributed.alone import Processes, SoleProcess, Waits
    from csrec_dist.distributed.failure import RankFailure
    from csrec_dist.distributed.groups import Group
    from csrec_dist.distributed.layout import Layout
    from csrec_dist.distributed.runtime import Runtime
    from csrec_dist.distributed.watchdog import Watch

__all__ = ["Group", "Layout", "Processes", "RankFailure", "Runtime", "SoleProcess", "Waits", "Watch"]

__getattr__ = attributes(
    __name__,
    {
        "csrec_dist.distributed.alone": ["Processes", "SoleProcess", "Waits"],
        "csrec_dist.distributed.failure": ["RankFailure"],
        "csrec_dist.distributed.groups": ["Group"],
        "csrec_dist.distributed.layout": ["Layout"],
        "csrec_dist.distributed.runtime": ["Runtime"],
        "csrec_dist.distributed.watchdog": ["Watch"],
    },
)
