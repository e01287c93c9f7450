"""How gradients, parameters and optimizer states are kept on the ranks of a model: one file for each engine."""

from csrec_dist.distributed.engines.base import Engine, Snapshot, StateReader, Updates, copy_tensors
from csrec_dist.distributed.engines.ddp import DataParallel

__all__ = ["ENGINES", "DataParallel", "Engine", "Snapshot", "StateReader", "Updates", "copy_tensors"]

ENGINES: dict[str, type[Engine]] = {"ddp": DataParallel}
