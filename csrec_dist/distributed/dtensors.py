"""Slices of the catalog as DTensors, which torch.distributed.checkpoint saves and loads at any number of ranks."""

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from csrec_dist.distributed.catalog import CatalogShard


def as_dtensor(shard: CatalogShard, rows: Tensor) -> DTensor:
    """A rank's slice [n, ...] as a DTensor of the whole table [V, ...], of the same memory.

    The shard's group has more than one rank.
    """
    mesh = DeviceMesh.from_group(shard.group.handle, rows.device.type)
    shape = torch.Size((shard.num_items, *rows.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(rows.contiguous(), mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
