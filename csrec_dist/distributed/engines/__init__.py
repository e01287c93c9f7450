"""How gradients, parameters and optimizer states are kept on the ranks of a model: one file for each engine."""

import torch
from torch import nn

from csrec_dist.distributed.engines.base import Engine, Snapshot, StateReader, Updates, copy_tensors
from csrec_dist.distributed.engines.ddp import DataParallel
from csrec_dist.distributed.engines.deepspeed import ZeRO, check_deepspeed, read_settings
from csrec_dist.distributed.engines.fsdp import FullyShard
from csrec_dist.distributed.layout import Layout

__all__ = [
    "ENGINES",
    "DataParallel",
    "Engine",
    "FullyShard",
    "Snapshot",
    "StateReader",
    "Updates",
    "ZeRO",
    "build",
    "check",
    "copy_tensors",
]

ENGINES: dict[str, type[Engine]] = {"ddp": DataParallel, "fsdp": FullyShard, "deepspeed": ZeRO}


def check(name: str, deepspeed: str | None = None) -> None:
    """Refuse an engine that cannot start: UserError where DeepSpeed or the file of its settings is missing or wrong."""
    if name == ZeRO.name:
        assert deepspeed is not None, "engine deepspeed without settings"
        check_deepspeed(deepspeed)


def build(
    name: str, module: nn.Module, layout: Layout, device: torch.device, updates: Updates, deepspeed: str | None = None
) -> Engine:
    """The engine called `name` with a module, `deepspeed` being the file of its settings if it needs one.

    Where one rank trains alone there is nothing to share, and it needs none of them: it gets a DataParallel of one.
    """
    if layout.group.size == 1:
        return DataParallel(module, layout, device, updates)
    settings = {} if deepspeed is None else {"settings": read_settings(deepspeed)}
    return ENGINES[name](module, layout, device, updates, **settings)
