"""Plain data parallelism: every rank holds the parameters, and item tables whole or by slices of the catalog."""

from collections.abc import Container, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from csrec_dist.distributed.catalog import CatalogSlice, average_slices, slices_of
from csrec_dist.distributed.engines.base import (
    Engine,
    Snapshot,
    StateReader,
    Tensors,
    clip_gradients,
    copy_tensors,
    set_learning_rate,
)
from csrec_dist.distributed.groups import Group
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
        self._optimizer = torch.optim.Adam(module.parameters(), fused=True)
        self._names = [name for name, _ in module.named_parameters()]

    def _wrap(self) -> nn.Module:
        group = self.layout.group
        if group.handle is None:
            return self.module
        # A slice has no counterpart on the other ranks of the group: the wrapper must neither broadcast nor average it.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.module, self._slices)
        with group.watch.collective("wrapping the model", group.ranks):
            return DistributedDataParallel(
                self.module,
                process_group=group.handle,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )

    def forward(self, *inputs: Any) -> Any:
        """See `Engine.forward`."""
        return self._wrapped(*inputs)

    def backward(self, loss: Tensor, *, is_last: bool = True) -> None:
        """See `Engine.backward`."""
        waits = not is_last and isinstance(self._wrapped, DistributedDataParallel)
        with self._wrapped.no_sync() if waits else nullcontext():  # type: ignore[operator]
            loss.backward()

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
            clip_gradients(*parts, self.layout.catalog, self.clip_norm)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def readable(self) -> nn.Module:
        """See `Engine.readable`."""
        return self.module

    def snapshot(self) -> Snapshot:
        """See `Engine.snapshot`."""
        snapshot = Snapshot()
        snapshot.add("model", copy_tensors(self.module.state_dict()), self._slices)
        states = self._optimizer.state_dict()["state"]
        moments = {f"{self._names[i]}.{key}": value for i, state in states.items() for key, value in state.items()}
        snapshot.add("optimizer", copy_tensors(moments), self._sliced_moments)
        return snapshot

    @property
    def _sliced_moments(self) -> set[str]:
        """Names of Adam's moments that are slices; its counts of steps are not."""
        return {f"{name}.{moment}" for name in self._slices for moment in ("exp_avg", "exp_avg_sq")}

    def restore(self, saved: StateReader) -> None:
        """See `Engine.restore`."""
        self.module.load_state_dict(self._read(saved, "model", self._slices))
        states: dict[int, Tensors] = {}
        for name, value in self._read(saved, "optimizer", self._sliced_moments).items():
            owner, _, key = name.rpartition(".")
            states.setdefault(self._names.index(owner), {})[key] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": states, "param_groups": groups})

    def _read(self, saved: StateReader, part: str, sliced: Container[str]) -> Tensors:
        rows = None if self.layout.catalog.size == 1 else self._rows
        return {name: saved.read(part, name, rows if name in sliced else None) for name in saved.names(part)}

    @property
    def _rows(self) -> slice:
        """The rows of the catalog that this rank holds."""
        owner = next(iter(self._slices)).rpartition(".")[0]
        catalog: CatalogSlice = self.module.get_submodule(owner).catalog  # type: ignore[assignment]
        return catalog.rows
