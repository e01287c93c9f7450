"""How the ranks of a model share gradients, parameters and optimizer states: one file for each engine.

An engine is imported when it is used.
"""

from typing import TYPE_CHECKING

from csrec_dist.distributed.options import DistributedOptions
from csrec_dist.lazy import attributes

if TYPE_CHECKING:
    import torch
    from torch import nn

    from csrec_dist.distributed.engines.base import Engine, Held, Piece, Pieces, Snapshot, StateReader
    from csrec_dist.distributed.engines.ddp import DataParallel
    from csrec_dist.distributed.engines.deepspeed import ZeRO
    from csrec_dist.distributed.engines.fsdp import FullyShard
    from csrec_dist.distributed.groups import Group
    from csrec_dist.distributed.layout import Layout

__all__ = [
    "DataParallel",
    "Engine",
    "FullyShard",
    "Held",
    "Piece",
    "Pieces",
    "Snapshot",
    "StateReader",
    "ZeRO",
    "build",
    "check",
    "keeps_tables_whole",
    "table_group",
]

__getattr__ = attributes(
    __name__,
    {
        "csrec_dist.distributed.engines.base": ["Engine", "Held", "Piece", "Pieces", "Snapshot", "StateReader"],
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


def keeps_tables_whole(options: DistributedOptions) -> bool:
    """Whether each rank, or each catalog group, has a whole item table between the steps of a training."""
    if options.engine != "deepspeed":
        return options.engine == "ddp"
    from csrec_dist.distributed.engines.deepspeed import read_settings

    assert options.deepspeed is not None, "engine deepspeed without settings"
    return bool(read_settings(options.deepspeed)["zero_optimization"]["stage"] < 3)


def table_group(options: DistributedOptions, layout: "Layout") -> "Group":
    """The ranks over which `build` takes the item tables of a module in slices: without them none is ever whole.

    A table that DeepSpeed shares out is whole on each rank when its engine starts.
    """
    return layout.group if options.engine == "fsdp" and layout.catalog.size == 1 else layout.catalog


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
