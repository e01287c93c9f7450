"""A run that notes when each of its steps ended, and how long the ranks had waited by then."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter as clock
from typing import NamedTuple

import torch

from csrec_dist.config import Config
from csrec_dist.distributed import Group, Runtime
from csrec_dist.runs.stages.active import ActiveRun
from csrec_dist.training.telemetry import StageLog


class Mark(NamedTuple):
    """The end of a step: seconds of the host's clock, seconds waited so far, and what this rank trained on in it.

    A GPU's host runs ahead, so an event in its stream says there when the step ended.
    """

    end: torch.cuda.Event | None
    data_wait: float
    rank_wait: float
    num_examples: int
    clock: float

    def since(self, before: "Mark") -> float:
        """Seconds from the end of another step."""
        if self.end is None or before.end is None:
            return self.clock - before.clock
        return before.end.elapsed_time(self.end) / 1e3


class MeasuringLog(StageLog):
    """The log of a stage, which keeps a mark of each step and prints little: the numbers are in the table."""

    def __init__(self, stage: str, runtime: Runtime) -> None:
        super().__init__(stage, None, show=runtime.is_main)
        self.marks: list[Mark] = []
        self._runtime = runtime

    def advance(self, note: str = "", num_examples: int = 0) -> None:
        """See `StageLog.advance`."""
        super().advance(note)
        end = None
        if self._runtime.device.type == "cuda":
            end = torch.cuda.Event(enable_timing=True)
            end.record()
        waits = self._runtime.watch.waits
        self.marks.append(Mark(end, waits.data, waits.ranks, num_examples, clock()))

    def say(self, text: str) -> None:
        """Print what concerns the whole run: too many busy processes beside it."""
        if self.stage == "run":
            super().say(text)


class MeasuredRun(ActiveRun):
    """A run whose logs keep marks; no TensorBoard files are written."""

    def __init__(self, config: Config, runtime: Runtime) -> None:
        super().__init__(config, runtime)
        self.logs: list[MeasuringLog] = []

    def log(self, stage: str, group: Group | None = None) -> StageLog:
        """See `ActiveRun.log`."""
        self.logs.append(MeasuringLog(stage, self.runtime))
        return self.logs[-1]


@dataclass(frozen=True)
class Training:
    """This rank's part of a training: all that it trained on, and of the steps that count the times and examples."""

    name: str
    examples: int
    counted_examples: int
    seconds: list[float]
    data_wait: float
    rank_wait: float


def trainings(logs: Sequence[MeasuringLog], stage: str, warmup: int) -> list[Training]:
    """The trainings of a stage that this rank took part in; their first `warmup` ≥ 1 steps do not count."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    measured = []
    for log in logs:
        if not log.marks or log.stage.split("/")[0] != stage:
            continue
        counted = log.marks[warmup - 1 :]
        measured.append(
            Training(
                log.stage,
                sum(mark.num_examples for mark in log.marks),
                sum(mark.num_examples for mark in counted[1:]),
                [after.since(before) for before, after in pairwise(counted)],
                counted[-1].data_wait - counted[0].data_wait,
                counted[-1].rank_wait - counted[0].rank_wait,
            )
        )
    return measured
