"""What one rank asks of all ranks: a checkpoint, or an end; agreed on with the sum of the examples of each step."""

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor

from csrec_dist.distributed import Group

SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT_SECONDS = 3.0
"""A launcher passes Ctrl-C on to ranks that had it from the terminal already; a later one is meant."""


class Stopped(SystemExit):
    """A training was asked to end and has left a checkpoint. The status is 128 + the signal: 143 or, by Ctrl-C, 130."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = int(signum)


class StopSignals:
    """Within the block SIGTERM and SIGINT are noted instead of ending the process at once.

    SIGINT ends it at once when it comes again, more than three seconds later. A signal that nobody acted on is
    delivered at the end of the block. In another thread than the main one, signals are left alone.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._first = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._note) for each in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        if self._received is not None and kind is None:
            signal.raise_signal(self._received)

    @property
    def received(self) -> signal.Signals | None:
        """The first signal that came, or None."""
        return self._received

    def _note(self, signum: int, _: FrameType | None) -> None:
        if self._received is None:
            self._received, self._first = signal.Signals(signum), time.monotonic()
        elif signum == signal.SIGINT and time.monotonic() - self._first > REPEAT_SECONDS:
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Agreed:
    """What all ranks do after a step."""

    save: bool
    signal: signal.Signals | None
    has_failed: bool


class Requests:
    """Carries each rank's requests in the all-reduce of the step's count, so that all ranks learn of them together.

    The group's first rank asks for a checkpoint when `minutes` have gone by since the last one, and any rank says when
    it `has_failed` to write its part of one. One rank alone asks nobody, and its host does not wait for its GPU.
    """

    def __init__(
        self,
        group: Group,
        signals: StopSignals,
        minutes: float,
        device: torch.device,
        clock: Callable[[], float] = time.monotonic,
        has_failed: Callable[[], bool] = lambda: False,
    ) -> None:
        self._group, self._signals, self._seconds, self._clock = group, signals, 60 * minutes, clock
        self._saved, self._has_failed = clock(), has_failed
        self._device, self._is_pinned = device, device.type == "cuda" and group.size > 1
        self._host = torch.zeros(2 + len(SIGNALS), pin_memory=self._is_pinned)
        self._copied = torch.cuda.Event() if self._is_pinned else None

    def begin_count(self, count: float) -> Callable[[], Tensor]:
        """Begin to sum `count` over the ranks; what is returned gives the sum, for which a CPU waits."""
        values = torch.tensor([count, *self._requested()], pin_memory=self._is_pinned)
        if self._group.size == 1:
            self._host = values[1:]
            total = torch.full((), count, dtype=torch.float32, device=self._device)
            return lambda: total
        pending = self._group.begin_sum(values.to(self._device, non_blocking=True))

        def summed() -> Tensor:
            sums = pending()
            self._host.copy_(sums[1:], non_blocking=True)
            if self._copied:
                self._copied.record()
            return sums[0]

        return summed

    def agreed(self) -> Agreed:
        """What the ranks asked for with the last count. On a GPU it is read while the backward pass runs."""
        if self._copied:
            with self._group.watch.collective("the count of the step", self._group.ranks, timed=False):
                self._copied.synchronize()
        save, has_failed, *signals = (self._host > 0).tolist()
        signum = next((each for each, asked in zip(SIGNALS, signals, strict=True) if asked), None)
        return Agreed(save, signum, has_failed)

    def saved(self) -> None:
        """A checkpoint was written now."""
        self._saved = self._clock()

    def _requested(self) -> list[float]:
        """What this rank asks for: a checkpoint, an end because of one, and each of the signals."""
        is_due = self._group.is_leader and self._clock() - self._saved >= self._seconds
        return [float(is_due), float(self._has_failed()), *(float(each == self._signals.received) for each in SIGNALS)]
