"""FSDP2: each rank stores some rows of each parameter, of its gradient and of its Adam states."""

from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from csrec_dist.distributed.catalog import CatalogSlice, average_slices, catalog_rows, catalogs_of, slices_of
from csrec_dist.distributed.copies import wide_layers
from csrec_dist.distributed.engines.adam import new_state
from csrec_dist.distributed.engines.base import MOMENTS, Engine, Held, clip_gradients, set_learning_rate
from csrec_dist.distributed.engines.ddp import held_by
from csrec_dist.distributed.groups import Group
from csrec_dist.distributed.layout import Layout


class FullyShard(Engine):
    """torch's `fully_shard` over the layout's group, with Adam on the shards; the group has more than one rank.

    Wide layers of the encoder are units, gathered one at a time for each of the two passes. All else is one unit: its
    forward pass gathers it, once for whatever reads its parameters, and its backward pass drops it and leaves each rank
    the mean gradient of its rows. Of micro-batches, too, only the shards of their gradients are kept.

    Slices of the catalog are left to the ranks that hold them, as in `DataParallel`. Tables that the module holds in
    slices over the layout's group, as `readable` gives them, are gathered with the other parameters: so no rank ever
    has a whole one in its host's memory.
    """

    name = "fsdp"

    def __init__(self, module: nn.Module, layout: Layout, device: torch.device, clip_norm: float | None = None) -> None:
        super().__init__(module, layout, device, clip_norm)
        rows = to_whole_tables(module) if layout.catalog.size == 1 else {}
        self._slices = slices_of(module)
        self._skeleton = without_memory(module)
        mesh = DeviceMesh.from_group(layout.group.handle, device.type)
        left_out = {tensor for tensor in self._slices.values() if isinstance(tensor, nn.Parameter)}
        for layer in wide_layers(module):
            fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh, ignored_params=left_out)
        module._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor)
        self._parameters = dict(module.named_parameters())
        for name, parameter in self._parameters.items():
            if name not in self._slices:
                _check_placement(name, parameter, layout.group.size)
        for name, of_rank in rows.items():
            local(self._parameters[name]).copy_(of_rank)
        # torch's Adam updates the tensors of a group together, and does not mix DTensors with others.
        groups = [[p for n, p in self._parameters.items() if (n in self._slices) == cut] for cut in (False, True)]
        by_kind = [{"params": parameters} for parameters in groups if parameters]
        # Fused: the other form holds two more tensors as large as a parameter while it updates it.
        self._optimizer = torch.optim.Adam(by_kind, fused=True)

    def forward(self, *inputs: Any, is_last: bool = True) -> Any:
        """See `Engine.forward`."""
        # What the forward pass gathers by itself, torch holds twice until the next unit is gathered.
        self.module.unshard()  # type: ignore[operator]
        return self.module(*inputs)

    def backward(self, loss: Tensor, *, is_last: bool = True) -> None:
        """See `Engine.backward`."""
        loss.backward()

    def step(self, learning_rate: float) -> None:
        """See `Engine.step`."""
        average_slices(self._slices.values(), self.layout.data, self.layout.group.size)
        if self.clip_norm is not None:
            clip_gradients(*self._gradients(), limit=self.clip_norm)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _gradients(self) -> list[tuple[list[Tensor], Group]]:
        """The gradients that the ranks of a group hold together, and the group."""
        parts: tuple[list[Tensor], list[Tensor]] = [], []
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                parts[name in self._slices].append(local(parameter.grad))
        return [(parts[0], self.layout.group), (parts[1], self.layout.catalog)]

    def readable(self) -> nn.Module:
        """See `Engine.readable`: its tables are the shards themselves, and the other parameters whole copies."""
        state = self.module.state_dict()

        def value_of(name: str, catalog: CatalogSlice | None) -> Tensor:
            tensor = state[name]
            if catalog is None:
                return whole(tensor)
            is_cut = isinstance(tensor, DTensor) or name in self._slices
            return local(tensor) if is_cut else tensor[catalog.rows]

        return readable_copy(self._skeleton, self.layout, value_of)

    def held_weights(self) -> dict[str, Held]:
        """See `Engine.held_weights`."""
        return self._held(self.module.state_dict())

    def held_moments(self) -> dict[str, Held]:
        """See `Engine.held_moments`."""
        states = {name: self._optimizer.state[each] for name, each in self._parameters.items()}
        return self._held({f"{name}.{key}": value for name, state in states.items() for key, value in state.items()})

    def _held(self, tensors: Mapping[str, Tensor]) -> dict[str, Held]:
        """What is held of weights or of their states, which are cut as they are."""
        catalogs = catalogs_of(self.module)
        catalogs |= {f"{name}.{key}": catalog for name, catalog in catalogs.items() for key in MOMENTS}
        held = {}
        for name, tensor in tensors.items():
            if isinstance(tensor, DTensor):
                rows = catalog_rows(len(tensor), self.layout.group.size)[self.layout.group.rank]
                held[name] = Held.rows(local(tensor), rows.start, len(tensor))
            else:
                held[name] = held_by(self.layout, tensor, catalogs.get(name))
        return held

    def make_moments(self, parameters: Collection[str]) -> None:
        """See `Engine.make_moments`."""
        for name in parameters:
            self._optimizer.state[self._parameters[name]] = new_state(self._parameters[name])


def _check_placement(name: str, parameter: Tensor, num_ranks: int) -> None:
    assert isinstance(parameter, DTensor), f"{name} is whole"
    placed = parameter.placements, parameter.device_mesh.size()
    assert placed == ((Shard(0),), num_ranks), f"{name} is placed as {placed} (placements, ranks)"


def to_whole_tables(module: nn.Module) -> dict[str, Tensor]:
    """Make the tables that a module holds in slices whole ones without memory; the rows that it held, by name."""
    rows = {}
    for name in catalogs_of(module):
        prefix, _, leaf = name.rpartition(".")
        part: Any = module.get_submodule(prefix)
        rows[name] = getattr(part, leaf).detach()
        shape = (part.catalog.num_items, *rows[name].shape[1:])
        setattr(part, leaf, nn.Parameter(torch.empty(shape, dtype=rows[name].dtype, device="meta")))
    for part in module.modules():
        if isinstance(getattr(part, "catalog", None), CatalogSlice):
            part.catalog = CatalogSlice.whole(part.catalog.num_items)
    return rows


def without_memory(module: nn.Module) -> nn.Module:
    """A copy of a module whose parameters have shapes alone."""
    shapes = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        for parameter in module.parameters()
    }
    return deepcopy(module, shapes)


def readable_copy(
    skeleton: nn.Module, layout: Layout, value_of: Callable[[str, CatalogSlice | None], Tensor]
) -> nn.Module:
    """A copy of a module whose whole tables become slices over the layout's group; those in slices stay as they are.

    `value_of` gives the tensor of a name; of one in slices, this rank's rows.
    """
    plain = deepcopy(skeleton)
    for part in plain.modules():
        catalog = getattr(part, "catalog", None)
        if isinstance(catalog, CatalogSlice) and catalog.is_whole:
            part.catalog = CatalogSlice.of(catalog.num_items, layout.group)  # type: ignore[assignment]
    catalogs = catalogs_of(plain)
    for name, parameter in [*plain.named_parameters(), *plain.named_buffers()]:
        prefix, _, leaf = name.rpartition(".")
        value = value_of(name, catalogs.get(name)).detach()
        if isinstance(parameter, nn.Parameter):
            value = nn.Parameter(value, parameter.requires_grad)
        # By `setattr`: recurrent layers keep lists of their parameters, which it renews.
        setattr(plain.get_submodule(prefix), leaf, value)
    return plain


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """A rank's rows of a tensor in shards, as they lie in it; another tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """A copy of all rows of a tensor in shards, or of another tensor; every rank of the group calls this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()
