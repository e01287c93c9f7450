"""How gradients, parameters and optimizer states are kept on the ranks of a model: one file for each engine."""

import torch
from torch import nn

from csrec_dist.distributed.engines.base import Engine, Snapshot, StateReader, copy_tensors
from csrec_dist.distributed.engines.ddp import DataParallel
from csrec_dist.distributed.engines.deepspeed import ZeRO, check_deepspeed, read_settings
from csrec_dist.distributed.engines.fsdp import FullyShard
from csrec_dist.distributed.layout import Layout
from csrec_dist.distributed.options import DistributedOptions

__all__ = [
    "ENGINES",
    "DataParallel",
    "Engine",
    "FullyShard",
    "Snapshot",
    "StateReader",
    "ZeRO",
    "build",
    "check",
    "copy_tensors",
]

ENGINES: dict[str, type[Engine]] = {"ddp": DataParallel, "fsdp": FullyShard, "deepspeed": ZeRO}


def check(options: DistributedOptions) -> None:
    """Refuse an engine that cannot start: UserError where DeepSpeed or the file of its settings is missing or wrong."""
    if options.engine == ZeRO.name:
        assert options.deepspeed is not None, "engine deepspeed without settings"
        check_deepspeed(options.deepspeed)


def build(
    options: DistributedOptions,
    module: nn.Module,
    layout: Layout,
    device: torch.device,
    clip_norm: float | None = None,
    accumulate: int = 1,
) -> Engine:
    """The engine that the options name with a module, whose steps have `accumulate` micro-batches.

    Where one rank trains alone there is nothing to share, and it needs none of them: it gets a DataParallel of one.
    """
    if layout.group.size == 1:
        return DataParallel(module, layout, device, clip_norm)
    if options.engine == ZeRO.name:
        assert options.deepspeed is not None, "engine deepspeed without settings"
        return ZeRO(module, layout, device, clip_norm, accumulate, read_settings(options.deepspeed))
    return ENGINES[options.engine](module, layout, device, clip_norm)
