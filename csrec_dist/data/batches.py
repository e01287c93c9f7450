"""Streamed batches: a rank's share of each global batch, read from its own shards as a `datasets.IterableDataset`."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Generic, Self, TypeVar

import datasets
import numpy as np
import torch

from csrec_dist.data.dataset import Dataset
from csrec_dist.data.order import EpochOrder, owned_shards
from csrec_dist.data.shards import RowBlock

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right with item 0. An empty place has weight 0 and no items."""

    items: torch.Tensor  # int64 [B, L + 1]: the targets are in it
    lengths: torch.Tensor  # int64 [B]
    weights: torch.Tensor  # float32 [B]
    rows: torch.Tensor  # int64 [B]
    users: torch.Tensor  # int64 [B]
    example_offsets: torch.Tensor  # int64 [B]

    @property
    def histories(self) -> torch.Tensor:
        """int64 [B, L]: the items a causal model reads; position l predicts `targets[:, l]`."""
        return self.items[:, :-1]

    @property
    def targets(self) -> torch.Tensor:
        """int64 [B, L]: the next item of every position, 0 where there is none."""
        return self.items[:, 1:]

    @property
    def examples(self) -> torch.Tensor:
        """int64 [B, L]: the id of the example at every position; it means nothing where there is no target."""
        positions = torch.arange(self.items.shape[1] - 1, device=self.items.device)
        return self.example_offsets[:, None] + positions

    @property
    def example_ids(self) -> torch.Tensor:
        """int64 [N]: ids of the examples, in the order of `targets[targets > 0]`."""
        return self.examples[self.targets > 0]

    @property
    def num_examples(self) -> int:
        """Examples of this rank's share, counted without a device synchronisation on CPU."""
        return int((self.targets > 0).sum())

    def split(self, num_parts: int) -> list[Self]:
        """The same rows in `num_parts` batches; one without rows has an empty place."""
        if num_parts == 1:
            return [self]
        bounds = [len(self.rows) * part // num_parts for part in range(num_parts + 1)]
        parts = [
            replace(self, **{f.name: getattr(self, f.name)[i:j] for f in fields(self)}) for i, j in pairwise(bounds)
        ]
        empty = replace(self, **{f.name: torch.zeros_like(getattr(self, f.name)[:1]) for f in fields(self)})
        return [part if len(part.rows) else empty for part in parts]

    def to(self, device: torch.device) -> Self:
        """The batch on `device`."""
        if device.type == "cpu":
            return self
        return replace(self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


class _ShardCursor:
    """Hands out one shard's rows in the epoch's order; holds one row group."""

    def __init__(self, dataset: Dataset, split: str, shard: int, order: EpochOrder, start: int) -> None:
        self._shard = dataset.open_shard(split, shard)
        self._groups = order.shard_order(shard, self._shard.group_rows, start)
        self._rows: Iterator[int] = iter(())
        self._block: RowBlock | None = None

    def next_row(self) -> tuple[RowBlock, int]:
        row = next(self._rows, None)
        while row is None:
            group, rows = next(self._groups)
            self._block, self._rows = self._shard.read_group(group), iter(rows.tolist())
            row = next(self._rows, None)
        assert self._block is not None
        return self._block, row


def _columns(picked: list[tuple[RowBlock, int]], length: int | None = None) -> dict[str, np.ndarray]:
    """Pad picked rows into arrays; without any row, one empty place keeps the shapes valid."""
    num_rows = max(len(picked), 1)
    lengths = np.zeros(num_rows, np.int64)
    lengths[: len(picked)] = [block.bounds[row + 1] - block.bounds[row] for block, row in picked]
    items = np.zeros((num_rows, length or max(int(lengths.max()), 2)), np.int64)
    if picked:
        parts = [block.values[block.bounds[row] : block.bounds[row + 1]] for block, row in picked]
        items[np.arange(items.shape[1]) < lengths[:, None]] = np.concatenate(parts)
    columns = {name: np.zeros(num_rows, np.int64) for name in ("rows", "users", "example_offsets")}
    for name, column in columns.items():
        column[: len(picked)] = [getattr(block, name)[row] for block, row in picked]
    return {"items": items, "lengths": lengths, "weights": (lengths > 0).astype(np.float32), **columns}


def _generate(dataset: Dataset, split: str, order: EpochOrder, start_step: int, rank: int, world_size: int) -> Any:
    owned = owned_shards(order.num_shards, rank, world_size)
    cursors: dict[int, _ShardCursor] = {}
    for step in range(start_step, order.num_steps):
        picked = []
        for shard, index in zip(*(array.tolist() for array in order.batch(step)), strict=True):
            if shard in owned:
                if shard not in cursors:
                    cursors[shard] = _ShardCursor(dataset, split, shard, order, index)
                picked.append(cursors[shard].next_row())
        yield _columns(picked)


def train_stream(
    dataset: Dataset, order: EpochOrder, *, start_step: int = 0, rank: int = 0, world_size: int = 1
) -> datasets.IterableDataset:
    """Stream a rank's share of every global batch of an epoch, from `start_step` on.

    Each element is one step: arrays `items` [B, L+1], `lengths`, `weights`, `rows`, `users` and
    `example_offsets` [B]. Every rank gets the same number of steps. Memory does not depend on the
    number of rows: a rank holds one row group of each of its shards.
    """
    return datasets.IterableDataset.from_generator(
        _generate,
        gen_kwargs={
            "dataset": dataset,
            "split": "train",
            "order": order,
            "start_step": start_step,
            "rank": rank,
            "world_size": world_size,
        },
    )


def shard_batches(dataset: Dataset, split: str, shards: Iterable[int], batch_rows: int) -> Iterator[Batch]:
    """Rows of `shards` in file order, `batch_rows` at a time, padded to the dataset's window."""
    picked: list[tuple[RowBlock, int]] = []
    for shard in shards:
        for block in dataset.open_shard(split, shard).blocks():
            for row in range(len(block)):
                picked.append((block, row))
                if len(picked) == batch_rows:
                    yield to_batch(_columns(picked, dataset.window))
                    picked = []
    if picked:
        yield to_batch(_columns(picked, dataset.window))


def blank_batch(window: int) -> Batch:
    """A batch without rows, as `shard_batches` would pad it: for a rank that takes part with nothing."""
    return to_batch(_columns([], window))


def to_batch(columns: dict[str, Any]) -> Batch:
    """An element of the stream as tensors."""
    return Batch(**{field.name: torch.from_numpy(columns[field.name]) for field in fields(Batch)})


class Prefetcher(Generic[T]):
    """Runs an iterable in a background thread, `depth` elements ahead, and measures how long its reader waits."""

    _END = object()

    def __init__(self, source: Iterable[T], prepare: Callable[[T], Any] = lambda element: element, depth: int = 2):
        self.wait_seconds = 0.0
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fill, args=(source, prepare), daemon=True)
        self._thread.start()

    def _put(self, element: Any) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(element, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _fill(self, source: Iterable[T], prepare: Callable[[T], Any]) -> None:
        try:
            for element in source:
                if not self._put(prepare(element)):
                    return
        except BaseException as error:  # handed to the reader, which raises it
            self._error = error
        self._put(self._END)

    def __iter__(self) -> Iterator[Any]:
        try:
            while True:
                begin = time.perf_counter()
                element = self._queue.get()
                self.wait_seconds += time.perf_counter() - begin
                if element is self._END:
                    break
                yield element
        finally:
            self._stopped.set()
            self._thread.join()
        if self._error is not None:
            raise self._error
