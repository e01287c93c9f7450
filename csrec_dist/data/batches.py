"""Batches: rows padded into arrays, as tensors, and read ahead by a thread."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right with item 0. An empty slot has weight 0 and no items."""

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
        """The same rows in `num_parts` batches; one without rows has an empty slot."""
        if num_parts == 1:
            return [self]
        bounds = [len(self.rows) * part // num_parts for part in range(num_parts + 1)]
        parts = [
            replace(self, **{f.name: getattr(self, f.name)[i:j] for f in fields(self)}) for i, j in pairwise(bounds)
        ]
        empty = replace(self, **{f.name: torch.zeros_like(getattr(self, f.name)[:1]) for f in fields(self)})
        return [part if len(part.rows) else empty for part in parts]

    def padded_to(self, num_rows: int, length: int) -> Self:
        """The same rows, with empty places below them and no items behind them: `items` is [num_rows, length]."""
        rows, columns = num_rows - len(self.rows), length - self.items.shape[1]
        assert rows >= 0 <= columns, f"a batch of {list(self.items.shape)} does not fit {num_rows} x {length}"
        padded = {f.name: F.pad(getattr(self, f.name), (0, rows)) for f in fields(self) if f.name != "items"}
        return replace(self, items=F.pad(self.items, (0, columns, 0, rows)), **padded)

    def to(self, device: torch.device) -> Self:
        """The batch on `device`."""
        if device.type == "cpu":
            return self
        return replace(self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


class EvaluationBatch(Protocol):
    """Rows of a history followed by its target, on the model's device."""

    @property
    def items(self) -> torch.Tensor:
        """[B, L] int64, right-padded with 0; the last item of a row is its target."""

    @property
    def lengths(self) -> torch.Tensor:
        """[B] int64, targets included: at least 2 where the weight is not 0."""

    @property
    def weights(self) -> torch.Tensor:
        """[B] float; 0 for rows that only fill the batch."""


class Question(NamedTuple):
    """Histories [B, L−1] without their targets, and the targets [B] in 1…V (any item where the weight is 0)."""

    histories: torch.Tensor
    targets: torch.Tensor


def question(batch: EvaluationBatch) -> Question:
    """What a model is shown of a batch, and what it should have said."""
    assert bool(((batch.lengths >= 2) | (batch.weights == 0)).all())
    last = (batch.lengths - 1).clamp(min=1).unsqueeze(1)
    targets = batch.items.gather(1, last).squeeze(1).clamp(min=1)
    return Question(batch.items.scatter(1, last, 0)[:, :-1], targets)


def batch_columns(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An element of a stream of batches, of padded rows; without any row, one empty place keeps the shapes valid."""
    if len(columns["items"]) == 0:
        columns = {name: np.zeros((1, *column.shape[1:]), np.int64) for name, column in columns.items()}
    return {**columns, "weights": (columns["lengths"] > 0).astype(np.float32)}


def to_batch(columns: dict[str, Any]) -> Batch:
    """An element of a stream of batches, of arrays or of tensors."""
    columns = {field.name: columns[field.name] for field in fields(Batch)}
    return Batch(**{name: c if torch.is_tensor(c) else torch.from_numpy(c) for name, c in columns.items()})


def blank_batch(window: int) -> Batch:
    """A batch without rows, padded to the window: for a rank that takes part with nothing."""
    rows = np.zeros(0, np.int64)
    columns = dict.fromkeys(("lengths", "rows", "users", "example_offsets"), rows)
    return to_batch(batch_columns({"items": np.zeros((0, window), np.int64), **columns}))


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
