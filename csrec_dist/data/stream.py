"""Streams: the rows of a split as a `datasets.IterableDataset` that has shards and can be entered at any position.

`IterableDataset` takes its examples from a `_BaseExamplesIterable`. datasets keeps that to itself, yet has kept it the
same from 3.3 to 5.2: (key, example) pairs, `features`, `num_shards`, `shard_data_sources`, and a state of plain values
that `_init_state_dict` begins and `__iter__` keeps up to date. Its ready-made one, `from_generator`, resumes by
generating all that came before once more, and goes through every number of an example with declared features in Python.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any, ClassVar, Protocol

import numpy as np
from datasets import DatasetInfo, Features, IterableDataset, NamedSplit, Value
from datasets import Sequence as ListOf
from datasets.iterable_dataset import _BaseExamplesIterable

from csrec_dist.data.batches import padded
from csrec_dist.data.order import EpochOrder
from csrec_dist.data.shards import RowBlock, Shard

Element = dict[str, Any]
OpenShard = Callable[[int], Shard]

ROW = Features(
    {
        "row": Value("int64"),
        "user": Value("int32"),
        "items": ListOf(Value("int32")),
        "example_offset": Value("int64"),
    }
)
BATCH = Features(
    {
        "items": ListOf(ListOf(Value("int64"))),
        "lengths": ListOf(Value("int64")),
        "weights": ListOf(Value("float32")),
        "rows": ListOf(Value("int64")),
        "users": ListOf(Value("int64")),
        "example_offsets": ListOf(Value("int64")),
    }
)


class Elements(Protocol):
    """What a stream gives: elements at positions 0, 1, …, of which any can be read without those before it."""

    features: ClassVar[Features]

    def read(self, shards: Sequence[int], start: int) -> Iterator[tuple[int, Element]]:
        """The elements of these shards from position `start` on, each with the position that comes after it."""


@dataclass(frozen=True)
class FileRows:
    """Rows in the order of the files, shard by shard. A position is a number of rows."""

    open_shard: OpenShard
    shard_rows: tuple[int, ...]
    features: ClassVar = ROW

    def read(self, shards: Sequence[int], start: int) -> Iterator[tuple[int, Element]]:
        """Elements of plain Python values."""
        for position, (block, row) in enumerate(self.rows(shards, start), start + 1):
            yield (
                position,
                {
                    "row": int(block.rows[row]),
                    "user": int(block.users[row]),
                    "items": block.values[block.bounds[row] : block.bounds[row + 1]].tolist(),
                    "example_offset": int(block.example_offsets[row]),
                },
            )

    def rows(self, shards: Sequence[int], start: int) -> Iterator[tuple[RowBlock, int]]:
        """Each row as its place in a block; what lies before `start` is not read, but for its own row group."""
        for shard in shards:
            if start >= self.shard_rows[shard]:
                start -= self.shard_rows[shard]
                continue
            file = self.open_shard(shard)
            for group, num_rows in enumerate(file.group_rows):
                if start < num_rows:
                    yield from zip(repeat(file.read_group(group)), range(start, num_rows), strict=False)
                start = max(start - num_rows, 0)


@dataclass(frozen=True)
class FileBatches:
    """Rows in the order of the files, `batch_size` at a time, padded to the window. A position is a number of rows."""

    files: FileRows
    batch_size: int
    window: int
    features: ClassVar = BATCH

    def read(self, shards: Sequence[int], start: int) -> Iterator[tuple[int, Element]]:
        """Elements of arrays; the last one may be smaller."""
        rows = self.files.rows(shards, start)
        while picked := list(islice(rows, self.batch_size)):
            start += len(picked)
            yield start, padded(picked, self.window)


@dataclass(frozen=True)
class EpochBatches:
    """What some shards have of each global batch of an epoch, padded to its longest row. A position is a step."""

    open_shard: OpenShard
    order: EpochOrder
    features: ClassVar = BATCH

    def read(self, shards: Sequence[int], start: int) -> Iterator[tuple[int, Element]]:
        """Elements of arrays, one for every step, whatever the shards; one row group of each shard is in memory."""
        read_here = frozenset(shards)
        cursors: dict[int, _ShardCursor] = {}
        for step in range(start, self.order.num_steps):
            picked = []
            for shard, index in zip(*(array.tolist() for array in self.order.batch(step)), strict=True):
                if shard in read_here:
                    if shard not in cursors:
                        cursors[shard] = _ShardCursor(self.open_shard(shard), shard, self.order, index)
                    picked.append(cursors[shard].next_row())
            yield step + 1, padded(picked)


class _ShardCursor:
    """Hands out one shard's rows in the epoch's order; holds one row group."""

    def __init__(self, file: Shard, shard: int, order: EpochOrder, start: int) -> None:
        self._file = file
        self._groups = order.shard_order(shard, file.group_rows, start)
        self._rows: Iterator[int] = iter(())
        self._block: RowBlock | None = None

    def next_row(self) -> tuple[RowBlock, int]:
        row = next(self._rows, None)
        while row is None:
            group, rows = next(self._groups)
            self._block, self._rows = self._file.read_group(group), iter(rows.tolist())
            row = next(self._rows, None)
        assert self._block is not None
        return self._block, row


class _Examples(_BaseExamplesIterable):
    """The elements of some shards from position `start` on, in the form that `IterableDataset` takes.

    Its elements have the declared features already (`is_typed`), so that nothing encodes them again.
    """

    is_typed = True
    sleep_on_threads_shutdown = False

    def __init__(self, elements: Elements, shards: Sequence[int], start: int) -> None:
        super().__init__()
        self._elements, self._shards, self._start = elements, tuple(shards), start

    @property
    def features(self) -> Features:
        """Of every element, known without reading one."""
        return self._elements.features

    @property
    def num_shards(self) -> int:
        """Shards that are read."""
        return len(self._shards)

    def _init_state_dict(self) -> dict[str, Any]:
        self._state_dict = {"position": self._start, "type": type(self).__name__}
        return self._state_dict

    def __iter__(self) -> Iterator[tuple[int, Element]]:
        # The dict that is current now: a second iteration begins another, and both go on undisturbed.
        state: dict[str, Any] = self._state_dict or self._init_state_dict()
        for position, element in self._elements.read(self._shards, state["position"]):
            state["position"] = position  # before the element is handed out, as a state taken then is to follow it
            yield position, element

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> "_Examples":
        """Part `index` of `num_shards` parts of the shards."""
        indices = self.split_shard_indices_by_worker(num_shards, index, contiguous=contiguous)
        return _Examples(self._elements, [self._shards[i] for i in indices], self._start)

    def shuffle_data_sources(self, generator: np.random.Generator) -> "_Examples":
        """The shards in another order, which changes that of the files' rows and not that of an epoch."""
        indices = deepcopy(generator).permutation(len(self._shards))
        return _Examples(self._elements, [self._shards[i] for i in indices], self._start)

    def reshard_data_sources(self) -> "_Examples":
        """Itself: a shard is the least that is read alone."""
        return self


def iterable(elements: Elements, shards: Sequence[int], split: str, start: int = 0) -> IterableDataset:
    """The elements of some shards from position `start` on, as Hugging Face's dataset."""
    info = DatasetInfo(features=elements.features)
    return IterableDataset(_Examples(elements, shards, start), info=info, split=NamedSplit(split))
