"""A group of ranks and the collectives the rest of the project uses; one rank needs no process group."""

import json
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Group:
    """An ordered set of global ranks that this process belongs to.

    `handle` is the torch process group, or None for a group of one rank, whose collectives are
    the identity. Every member must enter every collective, in the same order.
    """

    ranks: tuple[int, ...]
    rank: int
    handle: Any = None

    @property
    def size(self) -> int:
        """Number of ranks in the group."""
        return len(self.ranks)

    @property
    def is_leader(self) -> bool:
        """Whether this process is the group's first rank."""
        return self.rank == 0

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over the group in place and return it."""
        if self.handle is not None:
            dist.all_reduce(tensor, group=self.handle)
        return tensor

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Stack the ranks' tensors of one shape S into [size, *S], in rank order."""
        if self.handle is None:
            return tensor.unsqueeze(0)
        gathered = tensor.new_empty((self.size, *tensor.shape))
        dist.all_gather(list(gathered.unbind()), tensor.contiguous(), group=self.handle)
        return gathered

    def reduce_scatter_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Of [size, *S] tensors, return the sum over ranks of slice `rank`, shape S."""
        if self.handle is None:
            return tensor.squeeze(0)
        scattered = tensor.new_empty(tensor.shape[1:])
        dist.reduce_scatter(scattered, list(tensor.contiguous().unbind()), group=self.handle)
        return scattered

    def gather_objects(self, value: Any) -> list[Any]:
        """The ranks' JSON values as a list, in rank order, on every rank."""
        if self.handle is None:
            return [value]
        device = torch.device("cuda") if dist.get_backend(self.handle) == "nccl" else torch.device("cpu")
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
        sizes = self.all_gather(torch.tensor([text.numel()], device=device)).flatten().tolist()
        padded = torch.zeros(max(sizes), dtype=torch.uint8, device=device)
        padded[: text.numel()] = text
        rows = self.all_gather(padded).cpu()
        return [json.loads(bytes(row[:size].tolist())) for row, size in zip(rows, sizes, strict=True)]

    def broadcast_object(self, value: Any) -> Any:
        """The leader's JSON value, on every rank."""
        return self.gather_objects(value if self.is_leader else None)[0]

    def barrier(self) -> None:
        """Wait until every rank of the group is here."""
        if self.handle is not None:
            dist.barrier(group=self.handle)
