"""The processes that a launcher started, as a stage that computes nothing needs them; one process needs no torch."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

from csrec_dist.errors import UserError

LAUNCH_HINT = (
    "Use `accelerate launch --multi_gpu --num_processes N -m csrec_dist ...` (with and without GPUs) "
    "or `torchrun --nproc_per_node N -m csrec_dist ...`."
)
LAUNCHER_ENGINES = {"DEEPSPEED": "deepspeed", "FSDP": "fsdp"}
"""What accelerate's launcher calls the engines that it can be started for."""


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
    def rank(self) -> int:
        """This rank's number, from 0."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""

    def on_main(self, work: Callable[[], Any]) -> Any:
        """Do `work` on rank 0; its result on every rank."""

    def begin(self, stage: str) -> Waits:
        """Begin a stage on this rank; returns the rank's waits so far, which go on growing."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on every rank."""

    def __enter__(self) -> Self:
        """These processes, for the block."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        """Leave the other processes, and tell them what this one could not do."""


class SoleProcess:
    """A run's only process, without torch, groups and device: enough to prepare a dataset."""

    is_main, rank, world_size = True, 0, 1

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nobody to leave."""


def check_launch(environ: Mapping[str, str], engine: str = "ddp", precision: str = "fp32") -> None:
    """Refuse a launcher that starts fewer processes than it was asked for, or for another engine or precision.

    `accelerate launch --cpu --num_processes N` (and a MULTI_CPU config) exports the address of a rendezvous and
    then starts one process without a rank.
    """
    if "ACCELERATE_MIXED_PRECISION" in environ and "MASTER_ADDR" in environ and "RANK" not in environ:
        raise UserError(
            "accelerate was asked for several processes but started one: its CPU launcher does not "
            f"start ranks. {LAUNCH_HINT}"
        )
    launcher_precision = environ.get("ACCELERATE_MIXED_PRECISION") or "no"
    if launcher_precision not in ("no", precision):
        raise UserError(
            f"The launcher asks for mixed precision {launcher_precision}, but training.precision, which decides, is "
            f"{precision} (fp32 or bf16). Ask the launcher for `no`."
        )
    for name, meant in LAUNCHER_ENGINES.items():
        if environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true" and engine != meant:
            raise UserError(
                f"The launcher was started for {name}, but distributed.engine is {engine}. Set distributed.engine to "
                f"{meant}, or start it without {name}. {LAUNCH_HINT}"
            )
