"""What a stage of a run is: the stages it needs, what decides its result, its work, and what it leaves."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from csrec_dist.runs.stages.active import ActiveRun
from csrec_dist.training.options import LoopOptions

Inputs = dict[str, Any]


def _no_check(run: ActiveRun, inputs: Inputs) -> None:
    return


class TrainingFiles(Protocol):
    """A training as its files tell of it: see stages/fitting.py."""

    def is_ended(self, options: LoopOptions) -> bool:
        """Whether the model is trained to the end that these limits set."""

    def require_checkpoint(self) -> None:
        """UserError unless the checkpoint is there from which an ended training goes on."""


def _no_trainings(run: ActiveRun, inputs: Inputs, root: Path) -> list[TrainingFiles]:
    return []


@dataclass(frozen=True)
class Stage:
    """A stage: the stages it needs, what decides its result (JSON values), its work, and what it leaves in the run.

    `check`, which every rank calls before anything is written, finds what the stage cannot read. `trainings` are those
    that end in the stage, with their folders under a root. Where only inputs called `free` differ, the stage is simply
    done again.
    """

    name: str
    needs: tuple[str, ...]
    inputs: Callable[[ActiveRun], Inputs]
    work: Callable[[ActiveRun, Inputs], dict[str, Any]]
    leaves: tuple[str, ...]
    check: Callable[[ActiveRun, Inputs], None] = _no_check
    trainings: Callable[[ActiveRun, Inputs, Path], list[TrainingFiles]] = _no_trainings
    free: str | None = None

    @property
    def all_leaves(self) -> tuple[str, ...]:
        """All that the stage writes into the run's folder, but for its record."""
        return (*self.leaves, f"checkpoints/{self.name}", f"tensorboard/{self.name}")
