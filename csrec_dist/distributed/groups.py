"""A group of ranks and the collectives the rest of the project uses; one rank needs no process group."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from csrec_dist.distributed.watchdog import Watch
from csrec_dist.errors import SharedUserError, StorageError, UserError
from csrec_dist.storage import FAILURES, no_permission, storage_error


@dataclass(frozen=True)
class Group:
    """An ordered set of global ranks that this process belongs to.

    `handle` is the torch process group, or None for a group of one rank, whose collectives are
    the identity. Every member must enter every collective, in the same order.

    `watch` times the collectives and, when one fails because another rank died or stalled, raises a `RankFailure` that
    names it. Collectives of tensors wait for the process group's timeout. `gather_objects`, `broadcast_object`,
    `on_all`, `on_leader`, `sum_after_work` and `barrier` follow work of unequal length, and wait as long as other ranks
    work.
    """

    ranks: tuple[int, ...]
    rank: int
    handle: Any = None
    watch: Watch = field(default_factory=Watch, compare=False, repr=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Group":
        """The group itself: a copy of what uses it meets the same ranks."""
        return self

    @property
    def size(self) -> int:
        """Number of ranks in the group."""
        return len(self.ranks)

    @property
    def has_all_ranks(self) -> bool:
        """Whether these are all ranks of the run."""
        return self.size == self.watch.world_size

    @property
    def is_leader(self) -> bool:
        """Whether this process is the group's first rank."""
        return self.rank == 0

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over the group in place and return it."""
        if self.handle is not None:
            with self._collective("all_reduce", tensor):
                dist.all_reduce(tensor, group=self.handle)
        return tensor

    def begin_sum(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to sum `tensor` over the group, in place; the function returned waits for the sum and returns it."""
        if self.handle is None:
            return lambda: tensor
        work = dist.all_reduce(tensor, group=self.handle, async_op=True)

        def summed() -> torch.Tensor:
            with self._collective("all_reduce", tensor):
                work.wait()
            return tensor

        return summed

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Stack the ranks' tensors of one shape S into [size, *S], in rank order."""
        if self.handle is None:
            return tensor.unsqueeze(0)
        gathered = tensor.new_empty((self.size, *tensor.shape))
        with self._collective("all_gather", tensor):
            dist.all_gather(list(gathered.unbind()), tensor.contiguous(), group=self.handle)
        return gathered

    def reduce_scatter_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Of [size, *S] tensors, return the sum over ranks of slice `rank`, shape S."""
        if self.handle is None:
            return tensor.squeeze(0)
        scattered = tensor.new_empty(tensor.shape[1:])
        with self._collective("reduce_scatter", tensor):
            dist.reduce_scatter(scattered, list(tensor.contiguous().unbind()), group=self.handle)
        return scattered

    def broadcast(self, tensor: torch.Tensor, source: int) -> torch.Tensor:
        """Copy the tensor of rank `source` of the group to every rank, in place, and return it."""
        if self.handle is not None:
            with self._collective("broadcast", tensor):
                dist.broadcast(tensor, self.ranks[source], group=self.handle)
        return tensor

    def exchange_runs(self, numbers: torch.Tensor, before: Sequence[range], after: Sequence[range]) -> torch.Tensor:
        """Divide a flat tensor over the ranks in another way: this rank's `numbers` are its run of `before`.

        Both have a run for each rank of the group; those of `before` follow each other and cover the tensor. Returns
        this rank's run of `after`.
        """
        source, target = before[self.rank], after[self.rank]
        sent = [_common(run, source) for run in after]
        parts = torch.cat([numbers[run.start - source.start : run.stop - source.start] for run in sent])
        if self.handle is None:
            return parts
        received = numbers.new_empty(len(target))
        sizes = [len(_common(run, target)) for run in before], [len(run) for run in sent]
        with self._collective("all_to_all", received):
            dist.all_to_all_single(received, parts, *sizes, group=self.handle)
        return received

    def gather_rows(self, rows: torch.Tensor) -> tuple[torch.Tensor, slice]:
        """The `rows` [n, d] of all ranks, concatenated in rank order, and the slice of them that came from this rank.

        n may differ between ranks, and be 0. Gradients flow back as in `gather_counted`.
        """
        counts = self.row_counts(len(rows), rows.device)
        start = sum(counts[: self.rank])
        return self.gather_counted(rows, counts), slice(start, start + len(rows))

    def row_counts(self, num_rows: int, device: torch.device) -> tuple[int, ...]:
        """The numbers of rows of all ranks, `num_rows` on this one: gathering rows needs these counts."""
        if self.handle is None:
            return (num_rows,)
        return tuple(self.all_gather(torch.tensor(num_rows, device=device)).tolist())

    def gather_counted(self, rows: torch.Tensor, counts: tuple[int, ...]) -> torch.Tensor:
        """The `rows` [n, ...] of all ranks, concatenated in rank order; `counts` are the ranks' numbers of rows.

        Gradients return to a row's rank, summed over all ranks in at least fp32; every rank enters the backward pass
        too.
        """
        return rows if self.handle is None else _GatherRows.apply(rows, self, counts)

    def sum_after_work(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """Sum `tensor` over the group in place after work (`name`) of unequal length, waiting while others work."""
        if self.handle is not None:
            self.watch.meet(name, self.ranks)
        return self.all_reduce_sum(tensor)

    def gather_objects(self, value: Any, name: str = "gather_objects") -> list[Any]:
        """The ranks' JSON values as a list, in rank order, on every rank."""
        if self.handle is None:
            return [value]
        # The ranks may come hours apart, so they meet through the store first: a collective of tensors would time out.
        self.watch.meet(name, self.ranks)
        device = torch.device("cuda") if dist.get_backend(self.handle) == "nccl" else torch.device("cpu")
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
        sizes = self.all_gather(torch.tensor([text.numel()], device=device)).flatten().tolist()
        padded = torch.zeros(max(sizes), dtype=torch.uint8, device=device)
        padded[: text.numel()] = text
        rows = self.all_gather(padded).cpu()
        return [json.loads(bytes(row[:size].tolist())) for row, size in zip(rows, sizes, strict=True)]

    def broadcast_object(self, value: Any) -> Any:
        """The leader's JSON value, on every rank."""
        return self.gather_objects(value if self.is_leader else None, "broadcast_object")[0]

    def on_all(self, work: Callable[[], Any], name: str = "on_all", *, meets: bool = False) -> list[Any]:
        """The JSON values of every rank's `work`, in rank order, on every rank.

        An error of one rank is raised on all of them, so that none waits for it in vain. Where the work itself enters
        collectives (`meets`), the other ranks wait in one of these: the rank then raises its error alone, at once.

        Raises:
            StorageError: the disk of one of the ranks is full, failing or read-only.
            UserError: the message of the first rank that met a mistake of the user's.
        """
        outcome = _attempted(work)
        if meets and "value" not in outcome:
            raise (StorageError if outcome["is_of_disk"] else UserError)(outcome["error"])
        results = self.gather_objects(outcome, name)
        for result in results:
            if "value" not in result:
                raise self._error_of_all(**result)
        return [result["value"] for result in results]

    def on_leader(self, work: Callable[[], Any]) -> Any:
        """Do `work` on the first rank while the others wait; every rank returns its JSON value, or raises its error.

        Raises what `on_all` does.
        """
        result = self.broadcast_object(_attempted(work) if self.is_leader else None)
        if "value" not in result:
            raise self._error_of_all(**result)
        return result["value"]

    def _error_of_all(self, error: str, is_of_disk: bool) -> UserError | StorageError:
        """The error that each rank raises. Rank 0 alone prints it, or in a group without rank 0 the first rank."""
        is_printed_elsewhere = 0 in self.ranks or not self.is_leader
        if is_of_disk:
            return StorageError(error, is_shared=is_printed_elsewhere, is_of_all=self.has_all_ranks)
        return SharedUserError(error, is_of_all=self.has_all_ranks) if is_printed_elsewhere else UserError(error)

    def barrier(self) -> None:
        """Wait until every rank of the group is here."""
        if self.handle is not None:
            self.watch.meet("barrier", self.ranks)
            with self.watch.collective("barrier", self.ranks):
                dist.barrier(group=self.handle)

    @contextmanager
    def _collective(self, name: str, tensor: torch.Tensor) -> Iterator[None]:
        """On a GPU the host goes on before the ranks have met, so no wait is measured there."""
        described = f"{name} of {list(tensor.shape)}"
        with self.watch.collective(described, self.ranks, timed=tensor.device.type == "cpu"):
            yield


def _common(first: range, second: range) -> range:
    """The intersection of two ranges."""
    start = max(first.start, second.start)
    return range(start, max(start, min(first.stop, second.stop)))


def _attempted(work: Callable[[], Any]) -> dict[str, Any]:
    """{"value": …} of `work`, or {"error": …, "is_of_disk": …} where the user's input or the disk made it fail."""
    try:
        return {"value": work()}
    except UserError as error:
        return {"error": str(error), "is_of_disk": False}
    except StorageError as error:
        return {"error": str(error), "is_of_disk": True}
    except PermissionError as error:
        return {"error": no_permission(error), "is_of_disk": False}
    except OSError as error:
        if error.errno not in FAILURES:
            raise
        return {"error": str(storage_error(error)), "is_of_disk": True}


class _GatherRows(torch.autograd.Function):
    """An all-gather of rows, padded to the most of any rank, whose gradient is a reduce-scatter."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, group: Group, counts: tuple[int, ...]) -> torch.Tensor:
        ctx.group, ctx.counts, ctx.dtype = group, counts, rows.dtype
        # gloo and NCCL gather tensors of one shape: the ranks' rows are padded to the most that any of them has.
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        return torch.cat([part[:count] for part, count in zip(group.all_gather(padded), counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        padded = wide.new_zeros(len(ctx.counts), max(ctx.counts), *wide.shape[1:])
        for rank, part in enumerate(wide.split(ctx.counts)):
            padded[rank, : len(part)] = part
        summed = ctx.group.reduce_scatter_sum(padded)
        return summed[: ctx.counts[ctx.group.rank]].to(ctx.dtype), None, None


ALONE = Group((0,), 0)
"""One rank, whose collectives are the identity."""
