"""The processes of a run as a stage that computes nothing needs them, and one process that needs no torch for it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from csrec_dist.distributed.launching import check_launch


@dataclass
class Waits:
    """Seconds that this rank has waited so far, for data and for other ranks."""

    data: float = 0.0
    ranks: float = 0.0


class Processes(Protocol):
    """What every stage needs of a `Runtime`; those that compute need the rest of it, too."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""

    def on_main(self, work: Callable[[], Any]) -> Any:
        """Do `work` on rank 0; its result on every rank."""

    def begin(self, stage: str) -> Waits:
        """This rank begins a stage; what it has waited so far, which goes on growing."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on every rank."""

    def close(self) -> None:
        """Leave the other processes."""


class SoleProcess:
    """A run's only process, without torch, groups and device: enough to prepare a dataset."""

    is_main, world_size = True, 1

    def __init__(self, engine: str = "ddp", precision: str = "fp32") -> None:
        """UserError when a launcher was asked for more, or for other than this engine and precision."""
        check_launch(os.environ, engine, precision)
        self._waits = Waits()

    def on_main(self, work: Callable[[], Any]) -> Any:
        """The result of `work`."""
        return work()

    def begin(self, stage: str) -> Waits:
        """Nothing was waited for."""
        return self._waits

    def gather(self, value: Any) -> list[Any]:
        """The value of this process."""
        return [value]

    def close(self) -> None:
        """There is nobody to leave."""
