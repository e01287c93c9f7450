"""Streams: the rows of a split as a `datasets.IterableDataset` that has shards and can be entered at any position.

`IterableDataset` takes its examples from a `_BaseExamplesIterable`. datasets keeps that to itself, yet has kept it the
same from 3.3 to 5.2: (key, example) pairs, `features`, `num_shards`, `shard_data_sources`, and a state of plain values
that `_init_state_dict` begins and `__iter__` keeps up to date. Its ready-made one, `from_generator`, resumes by
generating all that came before once more, and goes through every number of an example with declared features in Python.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar, Protocol

import numpy as np
from datasets import DatasetInfo, Features, IterableDataset, NamedSplit, Value
from datasets import Sequence as ListOf
from datasets.iterable_dataset import _BaseExamplesIterable

from csrec_dist.data.batches import batch_columns
from csrec_dist.data.order import EpochOrder
from csrec_dist.data.shards import KeptGroups, RowBlock, Shard
from csrec_dist.errors import UserError

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
    are_steps: ClassVar[bool]
    """Whether a position is a step, to which each shard gives its part, and not a number of rows of these shards."""

    def read(self, shards: Sequence[int], start: int) -> Iterator[tuple[int, Element]]:
        """The elements of these shards from position `start` on, each with the position that comes after it."""


@dataclass(frozen=True)
class FileRows:
    """Rows in the order of the files, shard by shard. A position is a number of rows."""

    open_shard: OpenShard
    shard_rows: tuple[int, ...]
    features: ClassVar = ROW
    are_steps: ClassVar = False

    def read(self, shards: Sequence[int], start: int) -> Iterator[tuple[int, Element]]:
        """Elements of plain Python values."""
        for block, rows in self.blocks(shards, start):
            for row in rows:
                start += 1
                yield (
                    start,
                    {
                        "row": int(block.rows[row]),
                        "user": int(block.users[row]),
                        "items": block.items_of(row).tolist(),
                        "example_offset": int(block.example_offsets[row]),
                    },
                )

    def blocks(self, shards: Sequence[int], start: int) -> Iterator[tuple[RowBlock, range]]:
        """Each row group, with those of its rows that do not lie before `start`; groups before that are not read."""
        for shard in shards:
            if start >= self.shard_rows[shard]:
                start -= self.shard_rows[shard]
                continue
            file = self.open_shard(shard)
            for group, num_rows in enumerate(file.group_rows):
                if start < num_rows:
                    yield file.read_group(group), range(start, num_rows)
                start = max(start - num_rows, 0)


@dataclass(frozen=True)
class FileBatches:
    """Rows in the order of the files, `batch_size` at a time, padded to the window. A position is a number of rows."""

    files: FileRows
    batch_size: int
    window: int
    features: ClassVar = BATCH
    are_steps: ClassVar = False

    def read(self, shards: Sequence[int], start: int) -> Iterator[tuple[int, Element]]:
        """Elements of arrays; the last one may be smaller."""
        ahead: list[dict[str, np.ndarray]] = []
        for block, rows in self.files.blocks(shards, start):
            ahead.append(block.padded(np.asarray(rows), self.window))
            while sum(len(part["items"]) for part in ahead) >= self.batch_size:
                joined = {name: np.concatenate([part[name] for part in ahead]) for name in ahead[0]}
                ahead = [{name: column[self.batch_size :] for name, column in joined.items()}]
                start += self.batch_size
                yield start, batch_columns({name: column[: self.batch_size] for name, column in joined.items()})
        if left := sum(len(part["items"]) for part in ahead):
            joined = {name: np.concatenate([part[name] for part in ahead]) for name in ahead[0]}
            yield start + left, batch_columns(joined)


@dataclass(frozen=True)
class EpochBatches:
    """What some shards have of each global batch of an epoch, padded to its longest row. A position is a step."""

    open_shard: OpenShard
    order: EpochOrder
    window: int
    kept: KeptGroups
    features: ClassVar = BATCH
    are_steps: ClassVar = True

    def read(self, shards: Sequence[int], start: int) -> Iterator[tuple[int, Element]]:
        """Elements of arrays, one for every step, whatever the shards."""
        ahead, slots = _RowsAhead(self, shards), self.order.slots(shards)
        for step in range(start, self.order.num_steps):
            columns = ahead.take(*self.order.batch(step, slots))
            longest = int(columns["lengths"].max(initial=2))
            columns["items"] = columns["items"][:, :longest]
            yield step + 1, batch_columns(columns)


class _RowsAhead:
    """The next rows of some shards in the epoch's order, padded: of each shard those of one row group.

    They lie in one array for all shards, so that the rows of a batch are taken at once, not one by one. Slot s is that
    of the s-th shard; it has the rows first[s] … stop[s] − 1 of the shard's order.
    """

    def __init__(self, batches: EpochBatches, shards: Sequence[int]) -> None:
        self._batches, self._shards = batches, shards
        self._slots = np.zeros(batches.order.num_shards, np.int64)
        self._slots[list(shards)] = np.arange(len(shards))
        self._first, self._stop = (np.zeros(len(shards), np.int64) for _ in range(2))
        self._blocks: dict[int, Iterator[dict[str, np.ndarray]]] = {}
        self._columns: dict[str, np.ndarray] = {}
        self._reserve(1)

    def take(self, shards: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of the rows with these indices in their shards' order."""
        slots = self._slots[shards]
        columns = {name: np.zeros((len(slots), *c.shape[2:]), np.int64) for name, c in self._columns.items()}
        pending = np.arange(len(slots))
        # Rows of one shard come in rising order, so rows beyond its row group wait until the next group is read.
        while len(pending):
            is_ahead = indices[pending] < self._stop[slots[pending]]
            ready, pending = pending[is_ahead], pending[~is_ahead]
            rows = slots[ready], indices[ready] - self._first[slots[ready]]
            for name, column in self._columns.items():
                columns[name][ready] = column[rows]
            for slot, first in zip(*np.unique(slots[pending], return_index=True), strict=True):
                self._read_on(int(slot), int(indices[pending[first]]))
        return columns

    def _read_on(self, slot: int, index: int) -> None:
        """Have the next row group of a shard in its slot; its first row has this index in the shard's order."""
        if slot not in self._blocks:
            self._blocks[slot] = self._padded_blocks(self._shards[slot], index)
        block = next(self._blocks[slot])
        num_rows = len(block["items"])
        self._reserve(num_rows)
        self._first[slot], self._stop[slot] = index, index + num_rows
        for name, column in block.items():
            self._columns[name][slot, :num_rows] = column

    def _padded_blocks(self, shard: int, start: int) -> Iterator[dict[str, np.ndarray]]:
        kept, opened = self._batches.kept, cache(partial(self._batches.open_shard, shard))
        for group, rows in self._batches.order.shard_order(shard, kept.sizes(shard, opened), start):
            if len(rows):
                yield {name: column[rows] for name, column in kept.group(shard, group, opened).items()}

    def _reserve(self, num_rows: int) -> None:
        """Have room for row groups of this size."""
        shapes = {"items": (self._batches.window,), "lengths": (), "rows": (), "users": (), "example_offsets": ()}
        for name, shape in shapes.items():
            column = self._columns.get(name, np.zeros((len(self._shards), 0, *shape), np.int64))
            if column.shape[1] < num_rows:
                more = np.zeros((len(self._shards), num_rows - column.shape[1], *shape), np.int64)
                self._columns[name] = np.concatenate([column, more], axis=1)


class _Examples(_BaseExamplesIterable):
    """The elements of some shards from position `start` on, in the form that `IterableDataset` takes.

    Its elements have the declared features already (`is_typed`), so that nothing encodes them again. A position
    that counts rows counts those of all these shards, and says nothing of a part of them or of others.
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
        self._state_dict = {"position": self._start, "shards": self._named_shards, "type": type(self).__name__}
        return self._state_dict

    @property
    def _named_shards(self) -> str:
        return " ".join(map(str, self._shards))

    def __iter__(self) -> Iterator[tuple[int, Element]]:
        # The dict that is current now: a second iteration begins another, and both go on undisturbed.
        state: dict[str, Any] = self._state_dict or self._init_state_dict()
        if not self._elements.are_steps and state["shards"] != self._named_shards:
            raise UserError(
                f"The state is that of a stream of the shards {state['shards']}, and these are {self._named_shards}: "
                "go on with as many workers and ranks as there were."
            )
        if self._elements.are_steps and _num_workers() > 1:
            raise UserError(
                "An element of an epoch's stream is a step, of which each of several workers would read a part: use a "
                "DataLoader with num_workers=1, or none."
            )
        for position, element in self._elements.read(self._shards, state["position"]):
            state["position"] = position  # before the element is handed out, as a state taken then is to follow it
            yield position, element

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> "_Examples":
        """Part `index` of `num_shards` parts of the shards."""
        if self._start and num_shards > 1 and not self._elements.are_steps:
            raise UserError(
                f"A stream that begins at position {self._start} of all its shards cannot be shared out: use a "
                "DataLoader with num_workers=1, or begin at 0."
            )
        indices = self.split_shard_indices_by_worker(num_shards, index, contiguous=contiguous)
        return _Examples(self._elements, [self._shards[i] for i in indices], self._start)

    def shuffle_data_sources(self, generator: np.random.Generator) -> "_Examples":
        """The shards in another order, which changes that of the files' rows and not that of an epoch."""
        indices = deepcopy(generator).permutation(len(self._shards))
        return _Examples(self._elements, [self._shards[i] for i in indices], self._start)

    def reshard_data_sources(self) -> "_Examples":
        """Itself: a shard is the least that is read alone."""
        return self


def _num_workers() -> int:
    """How many workers a DataLoader has of which this process is one; 1 elsewhere."""
    torch = sys.modules.get("torch")
    worker = torch.utils.data.get_worker_info() if torch is not None else None
    return worker.num_workers if worker is not None else 1


def iterable(elements: Elements, shards: Sequence[int], split: str, start: int = 0) -> IterableDataset:
    """The elements of some shards from position `start` on, as Hugging Face's dataset."""
    info = DatasetInfo(features=elements.features)
    return IterableDataset(_Examples(elements, shards, start), info=info, split=NamedSplit(split))
