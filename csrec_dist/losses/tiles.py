"""How an examples × items problem is cut into tiles, and the work buffers that the tiles live in."""

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TILE_BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Bytes of one tile. On a CPU: less is hardly faster once it outgrows the caches, and each step over a tile
ends in a barrier of the threads, which costs much on a machine that others use too. On a GPU the host has to begin
each operation on a tile, and is slower than the GPU where tiles are small."""
KEPT_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}
"""Bytes of a row block's kept tiles. Above it the tiles are computed again for the gradients."""
KEPT_ROWS = {"cpu": 256, "cuda": 2048}
"""Examples in a row block whose tiles are kept."""
RECOMPUTED_ROWS = {"cpu": 512, "cuda": 4096}
"""Examples in a row block whose tiles are not kept: more, as each block reads and writes the item gradients."""


@dataclass(frozen=True)
class Tiling:
    """Row blocks of at most `rows` examples, tiles of at most `items` items, kept from pass to pass or not."""

    num_examples: int
    num_items: int
    rows: int
    items: int
    is_kept: bool

    @property
    def num_tiles(self) -> int:
        """Tiles in one row block."""
        return math.ceil(self.num_items / self.items)

    def row_blocks(self) -> Iterator[slice]:
        """The row blocks in order, as slices of the examples."""
        return _slices(self.num_examples, self.rows)

    def item_slices(self) -> Iterator[slice]:
        """The item tiles in order, as slices of the item rows."""
        return _slices(self.num_items, self.items)


def _slices(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def _even(total: int, most: int) -> int:
    """The size of equal pieces of `total`, none above `most`, in multiples of 16 where there is room."""
    size = math.ceil(total / math.ceil(total / most))
    return min(math.ceil(size / 16) * 16, max(most, 1))


def choose_tiling(num_examples: int, num_items: int, num_kept: int, dtype: torch.dtype, device: torch.device) -> Tiling:
    """Choose the tiles for N ≥ 1 examples and V ≥ 1 items, with `num_kept` numbers kept for each logit.

    The bytes of all buffers stay under KEPT_BYTES plus a few tiles, whatever N and V are.
    """
    kind = device.type if device.type in TILE_BYTES else "cpu"
    element = dtype.itemsize
    rows = min(KEPT_ROWS[kind], num_examples)
    is_kept = rows * num_items * num_kept * element <= KEPT_BYTES[kind]
    if not is_kept:
        rows = min(RECOMPUTED_ROWS[kind], num_examples)
    items = _even(num_items, max(1, TILE_BYTES[kind] // (rows * element)))
    return Tiling(num_examples, num_items, rows, items, is_kept)


class _Memory(threading.local):
    """A thread's work buffers on the CPU, by their slot in a workspace and their type."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[int, torch.dtype], Tensor] = {}


_MEMORY = _Memory()


def work_buffer(slot: int, numel: int, like: Tensor) -> Tensor:
    """Uninitialised numbers [numel] of the type and on the device of `like`, valid until the next call for this slot.

    On a CPU it is the same memory every time: pages that the system hands out anew at each step cost as much as a
    product. CUDA's allocator reuses memory by itself.
    """
    if like.device.type != "cpu":
        return like.new_empty(numel)
    buffer = _MEMORY.buffers.get((slot, like.dtype))
    if buffer is None or buffer.numel() < numel:
        with torch.inference_mode(False):
            buffer = _MEMORY.buffers[slot, like.dtype] = like.new_empty(numel)
    return buffer[:numel]


Tile = tuple[Tensor, ...]
"""The buffers [R, C] of one tile: one for each number kept of a logit and, if these are several, a scratch buffer."""


class Workspace:
    """Buffers for the tiles of one row block at a time, allocated once and written over.

    A thread's workspaces on the CPU share their memory, so one has to be finished before the next is made.
    """

    def __init__(self, tiling: Tiling, num_kept: int, like: Tensor) -> None:
        self._size = tiling.rows * tiling.items
        self._slots = tiling.num_tiles if tiling.is_kept else 1
        self._scratch = [work_buffer(0, self._size, like)] if num_kept > 1 else []
        self._buffers = [work_buffer(1 + number, self._slots * self._size, like) for number in range(num_kept)]

    def tile(self, index: int, rows: int, items: int) -> Tile:
        """The buffers of tile `index` as [rows, items]; all tiles share them where none are kept."""
        start = (index % self._slots) * self._size
        flat = [buffer[start : start + rows * items] for buffer in self._buffers]
        flat += [buffer[: rows * items] for buffer in self._scratch]
        return tuple(buffer.view(rows, items) for buffer in flat)
