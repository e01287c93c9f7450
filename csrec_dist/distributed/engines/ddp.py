"""Plain data parallelism: every rank holds the parameters, and item tables whole or by slices of the catalog."""

from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from csrec_dist.distributed.catalog import CatalogSlice, average_slices, catalogs_of, slices_of
from csrec_dist.distributed.engines.adam import FusedAdam
from csrec_dist.distributed.engines.base import MOMENTS, Engine, Held, clip_gradients
from csrec_dist.distributed.groups import ALONE, Group
from csrec_dist.distributed.layout import Layout

BUCKET_BYTES = 25 << 20
"""Gradients that are reduced together, as in torch's wrapper: a small all-reduce costs as much as a larger one."""


def average(gradients: Iterable[Tensor], group: Group) -> None:
    """Average over a group, in place; every rank of it calls this with gradients of the same shapes."""
    if group.size == 1:
        return
    buckets: list[list[Tensor]] = [[]]
    for gradient in gradients:
        if buckets[-1] and sum(each.nbytes for each in buckets[-1]) + gradient.nbytes > BUCKET_BYTES:
            buckets.append([])
        buckets[-1].append(gradient)
    for bucket in buckets:
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        group.all_reduce_sum(flat).div_(group.size)
        for gradient, part in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


class DataParallel(Engine):
    """torch's DistributedDataParallel over the layout's group, with Adam.

    Slices of the catalog are left to the ranks that hold them: their gradients are summed over the data group, and
    their optimizer states are theirs.
    """

    name = "ddp"

    def __init__(self, module: nn.Module, layout: Layout, device: torch.device, clip_norm: float | None = None) -> None:
        super().__init__(module, layout, device, clip_norm)
        self._slices = slices_of(module)
        self._wrapped = self._wrap()
        self._optimizer = FusedAdam(module.parameters())

    def _wrap(self) -> nn.Module:
        group = self.layout.group
        if group.handle is None:
            return self.module
        # A slice has no counterpart on the other ranks of the group: the wrapper must neither broadcast nor average it.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.module, self._slices)
        # torch's wrapper imports this at its first use. From a busy disk it takes minutes, which the others wait for.
        with group.watch.doing("importing torch's compiler"):
            import_module("torch._dynamo")
        group.watch.meet("wrapping the model", group.ranks)
        with group.watch.collective("wrapping the model", group.ranks):
            return DistributedDataParallel(
                self.module,
                process_group=group.handle,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )

    def forward(self, *inputs: Any, is_last: bool = True) -> Any:
        """See `Engine.forward`."""
        with self._exchanging(is_last):
            return self._wrapped(*inputs)

    def backward(self, loss: Tensor, *, is_last: bool = True) -> None:
        """See `Engine.backward`."""
        with self._exchanging(is_last):
            loss.backward()

    def _exchanging(self, is_last: bool) -> AbstractContextManager[None]:
        """Ranks exchange their gradients after the last micro-batch alone; torch's wrapper asks in the forward pass."""
        wrapped = self._wrapped
        return nullcontext() if is_last or not isinstance(wrapped, DistributedDataParallel) else wrapped.no_sync()

    def average_gradients(self) -> None:
        """Average gradients over the ranks that were computed past `backward`, without torch's wrapper."""
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        average(gradients, self.layout.group)

    def step(self, learning_rate: float) -> None:
        """See `Engine.step`."""
        average_slices(self._slices.values(), self.layout.data, self.layout.group.size)
        if self.clip_norm is not None:
            sliced = {id(tensor) for tensor in self._slices.values()}
            parts: tuple[list[Tensor], list[Tensor]] = [], []
            for parameter in self.module.parameters():
                if parameter.grad is not None:
                    parts[id(parameter) in sliced].append(parameter.grad)
            clip_gradients((parts[0], ALONE), (parts[1], self.layout.catalog), limit=self.clip_norm)
        self._optimizer.step(learning_rate)

    def readable(self) -> nn.Module:
        """See `Engine.readable`."""
        return self.module

    def held_weights(self) -> dict[str, Held]:
        """See `Engine.held_weights`."""
        catalogs, state = catalogs_of(self.module), self.module.state_dict()
        return {name: held_by(self.layout, value, catalogs.get(name)) for name, value in state.items()}

    def held_moments(self) -> dict[str, Held]:
        """See `Engine.held_moments`."""
        catalogs = catalogs_of(self.module)
        return {
            f"{name}.{key}": held_by(self.layout, value, catalogs.get(name) if key in MOMENTS else None)
            for name, parameter in self.module.named_parameters()
            for key, value in self._optimizer.state.get(parameter, {}).items()
        }

    def make_moments(self, parameters: Collection[str]) -> None:
        """See `Engine.make_moments`."""
        self._optimizer.make_states([self.module.get_parameter(name) for name in parameters])


def held_by(layout: Layout, tensor: Tensor, catalog: CatalogSlice | None) -> Held:
    """A tensor that all ranks of the layout hold alike or, with `catalog`, this rank's rows of one in slices."""
    if catalog is None:
        return Held.whole(tensor, layout.group)
    return Held.rows(tensor, catalog.first, catalog.num_items, layout.data)
