"""A catalog split by rows over 1…k ranks: who holds what, and the collectives that models and losses need.

Shapes: V items, k ranks of the group, n rows of one rank, N those of all ranks of the group, d width. Rows are summed
in their own type, in which all but one of the terms are zero, and gradients in at least fp32. With one rank the slice
is the whole catalog, and whatever would meet other ranks is the identity and costs nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from csrec_dist.distributed.groups import ALONE, Group

EXCHANGED_ROWS = 1 << 16
"""Rows of each rank in one exchange of vectors or one broadcast, which bounds their memory."""

Batch = TypeVar("Batch")


def catalog_rows(num_items: int, num_parts: int) -> list[range]:
    """Deal the rows of item tables to parts in contiguous slices, as torch's DTensor and `torch.chunk` do.

    Each slice has ⌈V / parts⌉ rows; the last ones have what is left, which may be none.
    """
    size = -(-num_items // num_parts)
    return [range(min(part * size, num_items), min((part + 1) * size, num_items)) for part in range(num_parts)]


@dataclass(frozen=True)
class CatalogSlice:
    """The item rows first … stop − 1 of V, which this rank of `group` holds; the group's ranks hold them all.

    Every rank of the group enters each collective here, and each backward pass of one, in the same order.
    """

    num_items: int
    first: int
    stop: int
    group: Group

    @classmethod
    def of(cls, num_items: int, group: Group) -> "CatalogSlice":
        """This rank's slice."""
        rows = catalog_rows(num_items, group.size)[group.rank]
        return cls(num_items, rows.start, rows.stop, group)

    @classmethod
    def whole(cls, num_items: int) -> "CatalogSlice":
        """All items, on one rank."""
        return cls.of(num_items, ALONE)

    @property
    def is_whole(self) -> bool:
        """Whether there is one rank, which holds all items.

        Not `num_rows == num_items`: the other ranks of a group may hold no rows, and still wait for this one.
        """
        return self.group.size == 1

    @property
    def num_rows(self) -> int:
        """Item rows of this rank, perhaps 0."""
        return self.stop - self.first

    @property
    def most_rows(self) -> int:
        """Item rows of the rank that has most, at least 1."""
        return -(-self.num_items // self.group.size)

    @property
    def rows(self) -> slice:
        """The slice, among the rows of a whole table."""
        return slice(self.first, self.stop)

    @property
    def all_rows(self) -> list[slice]:
        """The slices of all ranks of the group, in rank order."""
        return [slice(rows.start, rows.stop) for rows in catalog_rows(self.num_items, self.group.size)]

    def drawn(self, num_tables: int, width: int, draw: Callable[[Tensor], Any]) -> list[Tensor]:
        """This rank's slices [n, width] of tables [V, width] that `draw` fills one after the other, as if in one call.

        `draw` fills a tensor in place from a generator on the CPU. All rows are drawn, a part at a time: so the
        slices are rows of the whole tables bit by bit, and the generator ends where it would.
        """
        starts = [table * self.num_items + self.first for table in range(num_tables)]
        slices = [torch.empty(self.num_rows, width) for _ in starts]
        for first, part in _drawn_parts(num_tables * self.num_items, width, draw):
            for start, rows in zip(starts, slices, strict=True):
                low, high = max(start, first), min(start + self.num_rows, first + len(part))
                if low < high:
                    rows[low - start : high - start] = part[low - first : high - first]
        return slices

    def cut(self, table: Tensor) -> Tensor:
        """This slice's rows of a table [V, ...]; a tensor that has these rows alone is returned as it is."""
        return table if len(table) == self.num_rows else table[self.rows]

    def local_rows(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """The row of each item (1…V, 0 for none) in this slice, and a mask of the items that are in it.

        Items of other slices have row 0. With one rank, item 0 has row −1: callers apply the mask, and another pass to
        clear these rows would cost as much as reading them.
        """
        if self.is_whole:
            return items - 1, items != 0
        mask = (items > self.first) & (items <= self.stop)
        return (items - 1 - self.first).masked_fill(~mask, 0), mask

    def at_items(self, values: Tensor, items: Tensor) -> Tensor:
        """One item's (1…V) value for each row [N] of `values` [N, n items of the slice], from the rank that has it."""
        if self.is_whole:
            return values.gather(1, (items - 1).unsqueeze(1)).squeeze(1)
        of_items = values.new_zeros(len(items))
        rows, mask = self.local_rows(items)
        of_items[mask] = values[mask, rows[mask]]
        return self.all_sum(of_items)  # exact: one rank has the value, the others 0

    def all_sum(self, tensor: Tensor) -> Tensor:
        """Sum over the group, in place."""
        return self.group.all_reduce_sum(tensor)

    def all_max(self, tensor: Tensor) -> Tensor:
        """Maximum over the group, in place."""
        if self.group.handle is not None:
            with _collective(self.group, "all_reduce", tensor):
                dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group.handle)
        return tensor

    def log_sum_exp(self, sums: Tensor) -> Tensor:
        """log Σ exp over the group's ranks of logarithms of sums, −inf being an empty one."""
        if self.is_whole:
            return sums
        # Two collectives, as each rank's exponentials are relative to another maximum until the ranks share one.
        largest = self.all_max(sums.clone())
        return self.all_sum((sums - largest).exp_()).log_().add_(largest)

    def log_softmax(self, logits: Tensor) -> Tensor:
        """log softmax over the whole catalog of logits [N, n items of the slice]."""
        if self.is_whole:
            return logits.log_softmax(dim=1)
        return logits - self.log_sum_exp(logits.logsumexp(dim=1)).unsqueeze(1)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all items of values [n] of the slice's."""
        return values.mean() if self.is_whole else self.all_sum(values.sum()) / self.num_items

    def all_true(self, flag: Tensor) -> bool:
        """Whether a flag is set on every rank. On CUDA the host waits for it."""
        return bool(flag if self.is_whole else self.all_max((~flag).float()) == 0)

    def share(self, num_rows: int, device: torch.device) -> "SharedRows":
        """The numbers of rows of all ranks, `num_rows` on this one: gathering rows needs these counts."""
        return SharedRows(self, self.group.row_counts(num_rows, device))

    def most_calls(self, num_calls: int, device: torch.device) -> int:
        """The largest number on any rank; a rank with fewer calls to make enters the remaining ones with no rows."""
        return num_calls if self.is_whole else int(self.all_max(torch.tensor(num_calls, device=device)))

    def look_up(self, table: Tensor, items: Tensor) -> Tensor:
        """Vectors [.., d] of items [..] in 0…V, of which `table` [n, d] is this rank's slice; zeros where 0.

        Each rank passes its own items. Gradients go to the ranks that hold the rows, summed over all ranks.
        """
        if self.is_whole:
            vectors = embedding((items - 1).clamp(min=0), table)
            return vectors.masked_fill((items == 0).unsqueeze(-1), 0.0)
        vectors = _LookUp.apply(table, items.reshape(-1), self)
        return vectors.view(*items.shape, table.shape[1])

    def rows_at(self, table: Tensor, index: Tensor) -> Tensor:
        """Rows [.., d] of the whole table at `index` [..] in 0…V − 1; gradients as in `look_up`."""
        return table[index] if self.is_whole else self.look_up(table, index + 1)

    def row_blocks(self, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """A whole table in order, on every rank, a block of one rank's slice at a time: (first row, block).

        `rows` [n, ...] is this rank's slice. A block has EXCHANGED_ROWS rows at most, or with one rank all of them, and
        is not to be written to.
        """
        if self.is_whole:
            yield 0, rows
            return
        for rank, of_rank in enumerate(catalog_rows(self.num_items, self.group.size)):
            for start in range(of_rank.start, of_rank.stop, EXCHANGED_ROWS):
                num_rows = min(EXCHANGED_ROWS, of_rank.stop - start)
                if rank == self.group.rank:
                    block = rows[start - self.first : start - self.first + num_rows].contiguous()
                else:
                    block = rows.new_empty(num_rows, *rows.shape[1:])
                yield start, self.group.broadcast(block, rank)


@dataclass(frozen=True)
class SharedRows:
    """The rows of all ranks of a catalog group, concatenated in rank order; `counts` are the ranks' numbers of rows."""

    part: CatalogSlice
    counts: tuple[int, ...]

    @property
    def local(self) -> slice:
        """The slice of all rows that came from this rank."""
        start = sum(self.counts[: self.part.group.rank])
        return slice(start, start + self.counts[self.part.group.rank])

    def gather(self, rows: Tensor) -> Tensor:
        """All rows [N, ...] from each rank's [n, ...]; gradients return to a row's rank, summed over all ranks."""
        return self.part.group.gather_counted(rows, self.counts)

    def only_local(self, values: Tensor) -> Tensor:
        """Values [N] of all rows from this rank's [n], 0 in other ranks' rows, so that each rank counts its own."""
        if self.part.is_whole:
            return values
        of_all = values.new_zeros(sum(self.counts))
        of_all[self.local] = values
        return of_all

    def gather_ids(self, ids: Tensor) -> Tensor:
        """All lists of ids [N, L] from each rank's [n, L], whose L may differ between ranks; padded with 0."""
        most = self.part.most_calls(ids.shape[1], ids.device)
        return self.gather(ids if most == ids.shape[1] else F.pad(ids, (0, most - ids.shape[1])))

    def exchange_columns(self, rows: Tensor) -> Tensor:
        """This rank's columns of all rows [N, V / k] from each rank's whole rows [n, V]."""
        group, most = self.part.group, self.part.most_rows
        if group.handle is None:
            return rows
        # All ranks send blocks of one shape, as all_to_all_single asks: the most rows, and the widest slice.
        sent = rows.new_zeros(group.size, max(self.counts), most)
        for rank, columns in enumerate(catalog_rows(self.part.num_items, group.size)):
            sent[rank, : len(rows), : len(columns)] = rows[:, columns.start : columns.stop]
        received = torch.empty_like(sent)
        with _collective(group, "all_to_all", sent):
            dist.all_to_all_single(received, sent, group=group.handle)
        parts = [part[:count, : self.part.num_rows] for part, count in zip(received, self.counts, strict=True)]
        return torch.cat(parts)

    def exchange_rows(self, columns: Tensor) -> Tensor:
        """This rank's whole rows [n, V] from each rank's columns of all rows [N, V / k]: undoes `exchange_columns`."""
        group, most = self.part.group, self.part.most_rows
        if group.handle is None:
            return columns
        sent = columns.new_zeros(group.size, max(self.counts), most)
        for rank, of_rank in enumerate(columns.split(self.counts)):
            sent[rank, : len(of_rank), : of_rank.shape[1]] = of_rank
        received = torch.empty_like(sent)
        with _collective(group, "all_to_all", sent):
            dist.all_to_all_single(received, sent, group=group.handle)
        slices = catalog_rows(self.part.num_items, group.size)
        num_rows = self.counts[group.rank]
        return torch.cat([part[:num_rows, : len(rows)] for part, rows in zip(received, slices, strict=True)], dim=1)


class TableLike(Protocol):
    """An item table, or this rank's slice of one, as losses and ranking read it."""

    @property
    def weight(self) -> Tensor:
        """[n, d], the slice's rows: of a whole table, item i+1's in row i."""

    @property
    def bias(self) -> Tensor | None:
        """[n], or None."""

    @property
    def catalog(self) -> CatalogSlice:
        """Which rows they are."""


class PlainTable(NamedTuple):
    """A table of tensors at hand."""

    weight: Tensor
    bias: Tensor | None
    catalog: CatalogSlice

    @classmethod
    def whole(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """The table [V, d] of all items."""
        return cls(weight, bias, CatalogSlice.whole(len(weight)))


def in_step(
    batches: Iterable[Batch], part: CatalogSlice, device: torch.device, blank: Callable[[], Batch]
) -> Iterator[Batch]:
    """This rank's batches, then `blank` ones until no rank of the group has any left.

    Ranks with different numbers of batches thus read the table in step. With one rank there are no blank batches.
    """
    iterator = iter(batches)
    while True:
        batch = next(iterator, None)
        if not part.most_calls(int(batch is not None), device):
            return
        yield blank() if batch is None else batch


def slices_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of which a rank holds a part, by name: `SLICED` of modules with a `catalog` not whole.

    All others are the same on all ranks.
    """
    tensors = dict(chain(module.named_parameters(), module.named_buffers()))
    return {name: tensors[name] for name in catalogs_of(module)}


def catalogs_of(module: nn.Module) -> dict[str, CatalogSlice]:
    """Which rows of it a rank holds, of each tensor that `slices_of` names."""
    catalogs: dict[str, CatalogSlice] = {}
    for prefix, part in module.named_modules():
        catalog = getattr(part, "catalog", None)
        if not isinstance(catalog, CatalogSlice) or catalog.is_whole:
            continue
        for name in getattr(part, "SLICED", ()):
            if getattr(part, name, None) is not None:
                catalogs[f"{prefix}.{name}" if prefix else name] = catalog
    return catalogs


def average_slices(slices: Iterable[Tensor], data: Group, num_ranks: int) -> None:
    """Turn the gradients of slices into those of the mean of all ranks' losses, as a data-parallel wrapper does.

    A slice's gradient on one rank is that of the summed losses of its whole catalog group. `data` are the ranks that
    hold the same slice, and `num_ranks` is the number of ranks in all: the sum over `data`, over `num_ranks`.
    """
    for parameter in slices:
        if parameter.requires_grad:
            if parameter.grad is None:  # this rank has read none of its rows, but others wait in the sum
                parameter.grad = torch.zeros_like(parameter)
            data.all_reduce_sum(parameter.grad).div_(num_ranks)


FEW_INDICES = 3072
"""torch's kernel for the gradient of so few indices can read an index of the next ones (mended in torch 2.14). That for
more sorts them and sums up in a fixed order, and neither has the host wait."""


def embedding(index: Tensor, table: Tensor) -> Tensor:
    """`F.embedding`; on a GPU always with the gradient's kernel for many indices."""
    missing = FEW_INDICES + 1 - index.numel()
    if index.device.type == "cpu" or missing <= 0:
        return F.embedding(index, table)
    vectors = F.embedding(F.pad(index.flatten(), (0, missing)), table)
    return vectors[: index.numel()].view(*index.shape, table.shape[1])


class _LookUp(torch.autograd.Function):
    """Each rank looks up those of the group's items that it holds; a reduce-scatter returns the vectors to their ranks.

    The gradient is an all-gather of the vectors' gradients, of which each rank adds up those of its rows. Both go in
    steps of EXCHANGED_ROWS items of each rank.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, items: Tensor, part: CatalogSlice) -> Tensor:
        shared = part.share(len(items), items.device)
        most = max(shared.counts)
        ctx.steps = [slice(start, min(start + EXCHANGED_ROWS, most)) for start in range(0, most, EXCHANGED_ROWS)]
        ctx.part, ctx.dtype, ctx.num_items = part, table.dtype, len(items)
        vectors, looked_up = [], []
        for step in ctx.steps:
            rows, mask = part.local_rows(part.group.all_gather(_padded(items, step)))
            of_step = table.new_zeros(*rows.shape, table.shape[1])
            of_step[mask] = table[rows[mask]]
            vectors.append(part.group.reduce_scatter_sum(of_step))  # exact: all ranks but the row's own give zeros
            looked_up += [rows, mask]
        ctx.save_for_backward(*looked_up)
        return torch.cat(vectors)[: len(items)] if vectors else table.new_zeros(0, table.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        part, saved = ctx.part, ctx.saved_tensors
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        total = wide.new_zeros(part.num_rows, wide.shape[1])
        for step, rows, mask in zip(ctx.steps, saved[::2], saved[1::2], strict=True):
            gathered = part.group.all_gather(_padded(wide, step))
            total.index_add_(0, rows[mask], gathered[mask])
        return total.to(ctx.dtype), None, None


def _collective(group: Group, name: str, tensor: Tensor) -> AbstractContextManager[None]:
    """What the group's own collectives do: see `Group`."""
    described = f"{name} of {list(tensor.shape)}"
    return group.watch.collective(described, group.ranks, timed=tensor.device.type == "cpu")


def _drawn_parts(num_rows: int, width: int, draw: Callable[[Tensor], Any]) -> Iterator[tuple[int, Tensor]]:
    """First rows and parts of a tensor [num_rows, width] that is drawn in order.

    torch draws normal numbers 16 at a time, and the last 16 once more if they do not fill up: so parts have a multiple
    of 16 rows, and the last one has more rows than the others, not fewer.
    """
    starts = range(0, max(num_rows - EXCHANGED_ROWS, 0) + 1, EXCHANGED_ROWS)
    for start, stop in zip(starts, [*starts[1:], num_rows], strict=True):
        part = torch.empty(stop - start, width)
        draw(part)
        yield start, part


def _padded(rows: Tensor, step: slice) -> Tensor:
    """The rows of a step, filled up with zeros on a rank that has fewer."""
    part = rows[step]
    padded = rows.new_zeros(step.stop - step.start, *rows.shape[1:])
    padded[: len(part)] = part
    return padded
