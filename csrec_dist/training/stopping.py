"""Requests of one rank to all ranks, for a checkpoint or an end, carried by the all-reduce of each step's count."""

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
"""A launcher passes Ctrl-C on to ranks that got it from the terminal already; one that comes later is a second one."""


class Stopped(SystemExit):
    """A training ended by a signal, after a checkpoint. The exit status is 128 + the signal: 143 or, by Ctrl-C, 130."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = int(signum)


class StopSignals:
    """Within the block SIGTERM and SIGINT are noted instead of ending the process at once.

    A second SIGINT, more than three seconds later, ends it at once. A signal that nobody acted on is delivered at the
    end of the block. Outside the main thread signals are left alone.
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

    The group's first rank requests a checkpoint when `minutes` have passed since the last one, and any rank reports
    that it `has_failed` to write its part of one. A single rank enters no collective, and its host does not wait for
    its GPU.
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
        """Begin to sum `count` over the ranks; the function returned gives the sum, for which it waits on a CPU."""
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
        """The ranks' requests with the last count. On a GPU they are read while the backward pass runs."""
        if self._copied:
            with self._group.watch.collective("the count of the step", self._group.ranks, timed=False):
                self._copied.synchronize()
        save, has_failed, *signals = (self._host > 0).tolist()
        signum = next((each for each, is_requested in zip(SIGNALS, signals, strict=True) if is_requested), None)
        return Agreed(save, signum, has_failed)

    def saved(self) -> None:
        """Note that a checkpoint was begun now."""
        self._saved = self._clock()

    def _requested(self) -> list[float]:
        """This rank's requests: a checkpoint, an end because writing one failed, and each of the signals."""
        is_due = self._group.is_leader and self._clock() - self._saved >= self._seconds
        return [float(is_due), float(self._has_failed()), *(float(each == self._signals.received) for each in SIGNALS)]
