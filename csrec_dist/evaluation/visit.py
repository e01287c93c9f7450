"""One visit to a tile of logits while it is in the cache: the largest of each chunk, log-sum-exp, ranks.

Shapes: R rows, C columns of the tile, which are LANES × K chunks, T targets of a row, P parts of a row.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from csrec_dist import kernels

LANES = 16
"""Columns of a chunk: a search for the best items looks at the largest of each chunk first."""
CHUNKS_OF_PART = 256
"""Chunks that a program of the kernel reads: 4,096 numbers, 32 for each of its threads."""
COMPARED_BYTES = 1 << 20
"""Bytes of a tile that are compared with a limit before the results are summed, which are still in a cache then."""
KERNELS_ARE_ON = True
"""Whether tiles on a GPU that the kernels are for are visited by the kernel, or by operations of torch."""


@dataclass(frozen=True)
class Visit:
    """Of a tile: the largest logit of each chunk [R, K], log Σ exp of each part [P, R] (no chunks and no parts where
    they were not requested), and how many items are below each limit [R, T].

    Chunk k has the columns k, k + K, k + 2 K, …, so that whole runs of columns are compared with each other. NaN stands
    as +inf among the largest: such a chunk may hold good items besides.
    """

    chunks: Tensor
    log_sums: Tensor
    below: Tensor

    def hide(self, tile: Tensor, rows: Tensor, columns: Tensor, limits: Tensor) -> None:
        """Write −inf to some entries of the tile, each named once, and correct `chunks` and `below`, not `log_sums`.

        `limits` [R, T] are those of the visit.
        """
        if not len(rows):
            return
        hidden = tile[rows, columns]
        tile[rows, columns] = -math.inf
        # What was not below a limit, NaN among it, now is.
        is_newly_below = (limits[rows] > -math.inf) & ~(hidden.unsqueeze(1) < limits[rows])
        self.below.index_add_(0, rows, is_newly_below.long())
        if not self.chunks.shape[1]:
            return
        by_lane = tile.view(len(tile), LANES, -1)
        # Scattered reads cost several times those in a row: of many chunks the whole tile is read again.
        if 8 * LANES * len(rows) > tile.numel():
            _without_nan(torch.amax(by_lane, 1, out=self.chunks))
        else:
            chunk = columns % self.chunks.shape[1]
            self.chunks[rows, chunk] = _without_nan(by_lane[rows, :, chunk].amax(1))


def _without_nan(largest: Tensor) -> Tensor:
    """The same tensor with +inf in place of NaN."""
    return largest.nan_to_num_(nan=math.inf, posinf=math.inf, neginf=-math.inf)


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether tiles are visited by the kernel there, which needs no scratch memory."""
    return KERNELS_ARE_ON and dtype == torch.float32 and kernels.run_on(device)


def visit(
    tile: Tensor, num_items: int, limits: Tensor, scratch: Tensor | None, *, chunks: bool, log_sums: bool
) -> Visit:
    """Visit a tile [R, C] whose first `num_items` columns are items; the others are −inf.

    Args:
        limits: [R, T]; the logits below each of them are counted.
        scratch: as large as the tile; it may be written over. None where `has_kernel`.
        chunks: whether the largest logits of chunks are wanted; the kernel finds them in any case.
    """
    if scratch is None:
        return _by_kernel(tile, num_items, limits, log_sums)
    largest_of_chunks, sums = tile.new_empty(len(tile), 0), tile.new_empty(0, len(tile))
    if chunks or log_sums:
        largest_of_chunks = tile.view(len(tile), LANES, -1).amax(1)
    if log_sums:
        largest = largest_of_chunks.amax(1)
        torch.log_softmax(tile, 1, out=scratch)  # the one way to a log-sum-exp in a single visit
        sums = torch.where(largest == -math.inf, largest, largest - scratch.amax(1)).unsqueeze(0)
    below = torch.empty_like(limits, dtype=torch.int64)
    for column, limit in enumerate(limits.T.unsqueeze(2)):
        items = tile[:, :num_items]
        below[:, column] = (items < limit).sum(1) if tile.is_cuda else _num_below(items, limit, scratch[:, :num_items])
    return Visit(_without_nan(largest_of_chunks), sums, below)


def _num_below(items: Tensor, limit: Tensor, scratch: Tensor) -> Tensor:
    """How many numbers of each row of `items` [R, C] are below its limit [R, 1], on a CPU.

    Sums of floats are several times as fast there as sums of truth values, and just as exact below 2²⁴.
    """
    num_rows = max(1, COMPARED_BYTES // max(items.shape[1] * items.itemsize, 1))
    pieces = zip(items.split(num_rows), limit.split(num_rows), strict=True)
    return torch.cat([torch.lt(rows, limits, out=scratch[: len(rows)]).sum(1) for rows, limits in pieces])


def _by_kernel(tile: Tensor, num_items: int, limits: Tensor, log_sums: bool) -> Visit:
    """As `visit`, by a kernel that reads the tile once."""
    num_rows, num_chunks, num_targets = len(tile), tile.shape[1] // LANES, limits.shape[1]
    num_parts = -(-num_chunks // CHUNKS_OF_PART)
    chunks = tile.new_empty(num_rows, num_chunks)
    partials = tile.new_empty(num_parts, 2, num_rows)
    counts = torch.empty(num_parts, num_targets, num_rows, dtype=torch.int32, device=tile.device)
    constants = {"LANES": LANES, "NUM_TARGETS": num_targets, "LOG_SUMS": log_sums, "CHUNKS": CHUNKS_OF_PART}
    arguments = [tile, limits.contiguous(), chunks, partials, counts, num_rows, num_chunks, num_items]
    grid = num_rows, num_parts, 1
    kernels.launch("csrec_dist.evaluation.kernels", "visit_kernel", grid, arguments, constants, 4, 1)
    sums = partials[:, 0] + partials[:, 1].log() if log_sums else partials[:0, 0]
    return Visit(chunks, sums, counts.sum(0).T)
