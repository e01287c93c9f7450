"""How the ranks of a model share gradients, parameters and optimizer states: one file for each engine.

An engine is imported when it is used.
"""

from typing import TYPE_CHECKING

from csrec_dist.distributed.options import DistributedOptions
from csrec_dist.lazy import attributes

if TYPE_CHECKING:
    import torch
    from torch import nn

    from csrec_dist.distributed.engines.base import Engine, Snapshot, StateReader, copy_tensors
    from csrec_dist.distributed.engines.ddp import DataParallel
    from csrec_dist.distributed.engines.deepspeed import ZeRO
    from csrec_dist.distributed.engines.fsdp import FullyShard
    from csrec_dist.distributed.layout import Layout

__all__ = [
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

__getattr__ = attributes(
    __name__,
    {
        "csrec_dist.distributed.engines.base": ["Engine", "Snapshot", "StateReader", "copy_tensors"],
        "csrec_dist.distributed.engines.ddp": ["DataParallel"],
        "csrec_dist.distributed.engines.deepspeed": ["ZeRO"],
        "csrec_dist.distributed.engines.fsdp": ["FullyShard"],
    },
)


def check(options: DistributedOptions) -> None:
    """UserError for an engine that cannot start, where DeepSpeed or the file of its settings is missing or wrong."""
    if options.engine == "deepspeed":
        from csrec_dist.distributed.engines.deepspeed import check_deepspeed

        assert options.deepspeed is not None, "engine deepspeed without settings"
        check_deepspeed(options.deepspeed)


def build(
    options: DistributedOptions,
    module: "nn.Module",
    layout: "Layout",
    device: "torch.device",
    clip_norm: float | None = None,
    accumulate: int = 1,
) -> "Engine":
    """The engine that the options name with a module, whose steps have `accumulate` micro-batches.

    A rank that trains alone has nothing to share, whatever the engine: it gets a DataParallel of one rank.
    """
    if layout.group.size == 1 or options.engine == "ddp":
        from csrec_dist.distributed.engines.ddp import DataParallel

        return DataParallel(module, layout, device, clip_norm)
    if options.engine == "fsdp":
        from csrec_dist.distributed.engines.fsdp import FullyShard

        return FullyShard(module, layout, device, clip_norm)
    from csrec_dist.distributed.engines.deepspeed import ZeRO, read_settings

    assert options.deepspeed is not None, "engine deepspeed without settings"
    return ZeRO(module, layout, device, clip_norm, accumulate, read_settings(options.deepspeed))
