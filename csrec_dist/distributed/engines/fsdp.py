"""FSDP2: each rank stores some rows of each parameter, of its gradient and of its Adam states."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from csrec_dist.distributed.catalog import catalog_rows
from csrec_dist.distributed.engines.base import (
    Engine,
    Snapshot,
    StateReader,
    Tensors,
    clip_gradients,
    copy_tensors,
    set_learning_rate,
)
from csrec_dist.distributed.layout import Layout


class FullyShard(Engine):
    """torch's `fully_shard` over the layout's group, with Adam on the shards; the group has more than one rank.

    The module is one unit: its forward pass gathers all parameters, once for whatever reads them in it, and its
    backward pass drops them and leaves each rank the mean gradient of its rows. Of micro-batches, too, only the shards
    of their gradients are kept.
    """

    name = "fsdp"

    def __init__(self, module: nn.Module, layout: Layout, device: torch.device, clip_norm: float | None = None) -> None:
        super().__init__(module, layout, device, clip_norm)
        self._skeleton = without_memory(module)
        mesh = DeviceMesh.from_group(layout.group.handle, device.type)
        fully_shard(module, mesh=mesh)
        self._parameters = dict(module.named_parameters())
        for name, parameter in self._parameters.items():
            tensor: Tensor = parameter
            assert isinstance(tensor, DTensor), f"{name} is whole"
            placed = tensor.placements, tensor.device_mesh.size()
            assert placed == ((Shard(0),), layout.group.size), f"{name} is placed as {placed} (placements, ranks)"
        self._optimizer = torch.optim.Adam(module.parameters())

    def forward(self, *inputs: Any) -> Any:
        """See `Engine.forward`."""
        return self.module(*inputs)

    def backward(self, loss: Tensor, *, is_last: bool = True) -> None:
        """See `Engine.backward`."""
        loss.backward()

    def step(self, learning_rate: float) -> None:
        """See `Engine.step`."""
        if self.clip_norm is not None:
            shards = [local(p.grad) for p in self._parameters.values() if p.grad is not None]
            clip_gradients([], shards, self.layout.group, self.clip_norm)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def readable(self) -> nn.Module:
        """See `Engine.readable`: a plain copy, whose memory is its own."""
        plain = deepcopy(self._skeleton)
        plain.load_state_dict({name: whole(tensor) for name, tensor in self._state().items()}, assign=True)
        return plain

    def snapshot(self) -> Snapshot:
        """See `Engine.snapshot`."""
        snapshot = Snapshot()
        snapshot.add("model", on_host(self._state()), ())
        states = self._optimizer.state
        moments = {f"{n}.{key}": value for n, p in self._parameters.items() for key, value in states[p].items()}
        snapshot.add("optimizer", on_host(moments), ())
        return snapshot

    def restore(self, saved: StateReader) -> None:
        """See `Engine.restore`: each rank reads its rows."""
        for name, tensor in self._state().items():
            self._read_into(tensor, saved, "model", name)
        for name in saved.names("optimizer"):
            owner, _, key = name.rpartition(".")
            parameter = self._parameters[owner]
            state = torch.tensor(0.0) if key == "step" else torch.zeros_like(parameter)
            self._read_into(state, saved, "optimizer", name)
            self._optimizer.state[parameter][key] = state

    def _state(self) -> Tensors:
        """Parameters as shards, and buffers; of their own memory."""
        return self.module.state_dict()

    @torch.no_grad()
    def _read_into(self, tensor: Tensor, saved: StateReader, part: str, name: str) -> None:
        rows = None
        if isinstance(tensor, DTensor):
            of_rank = catalog_rows(len(tensor), self.layout.group.size)[self.layout.group.rank]
            rows = slice(of_rank.start, of_rank.stop)
        local(tensor).copy_(saved.read(part, name, rows))


def without_memory(module: nn.Module) -> nn.Module:
    """A copy of a module whose parameters have shapes alone."""
    shapes = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for parameter in module.parameters()
    }
    return deepcopy(module, shapes)


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """A rank's rows of a tensor in shards, as they lie in it; another tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """A copy of all rows of a tensor in shards, or of another tensor; every rank of the group calls this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def on_host(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copies of whole tensors in the host's memory, gathered one after the other."""
    return {name: copy_tensors({name: whole(tensor)})[name] for name, tensor in tensors.items()}
