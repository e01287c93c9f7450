"""What a run reports: progress on the terminal, TensorBoard scalars, seconds and peak memory of a stage."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from csrec_dist.distributed.alone import Waits
from csrec_dist.training.notebook import NotebookBar

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

MIB = 2**20


def _spread(name: str) -> list[Any]:
    return ["Margin", [f"time/{name}/{kind}" for kind in ("mean", "min", "max")]]


CHARTS: dict[str, dict[str, list[Any]]] = {
    "Training": {
        "loss and its parts": ["Multiline", ["train/loss", "train/cross_entropy", "train/divergence"]],
        "validation": ["Multiline", [r"valid/ndcg@.*", r"valid/recall@.*"]],
    },
    "Seconds of an epoch, mean and range over ranks": {
        "busy": _spread("busy"),
        "waiting for data": _spread("data_wait"),
        "waiting for other ranks": _spread("collective_wait"),
    },
}
"""TensorBoard's Custom Scalars: what belongs together, in one chart."""


@dataclass
class Usage:
    """The resources of a stage on this rank; its seconds consist of waits for data, waits for other ranks, and work."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    data_wait_seconds: float = 0.0
    collective_wait_seconds: float = 0.0
    peak_memory_mib: float = 0.0


def uses_gpu() -> bool:
    """Whether this process computes on a GPU; without torch it does not."""
    if "torch" not in sys.modules:
        return False
    import torch

    return torch.cuda.is_initialized()


def reset_peak_memory() -> None:
    """Start a new measurement of the peak memory of this process (and of its GPU)."""
    if uses_gpu():
        import torch

        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mib() -> float:
    """Peak GPU memory since the reset, or without a GPU the peak resident memory, in MiB."""
    if uses_gpu():
        import torch

        return torch.cuda.max_memory_allocated() / MIB
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return psutil.Process().memory_info().rss / MIB
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


@contextmanager
def measured(waits: Waits) -> Iterator[Usage]:
    """Measure the seconds, those of this process on its cores, its waits, and the peak memory of the block."""
    usage, begin, cpu_begin, before = Usage(), time.perf_counter(), time.process_time(), replace(waits)
    reset_peak_memory()
    yield usage
    usage.seconds, usage.cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    usage.data_wait_seconds, usage.collective_wait_seconds = waits.data - before.data, waits.ranks - before.ranks
    usage.peak_memory_mib = peak_memory_mib()


class StageLog:
    """Progress and scalars of one stage.

    `show` is true on the one rank that talks to the terminal; `folder` is the stage's TensorBoard
    folder on the rank that writes it, None elsewhere. Without a terminal or a notebook, one line is printed
    for each epoch instead of a moving bar. What is said is appended to `file`, too, with its time, as long as its disk
    takes it: a run does not end because of its log.
    """

    def __init__(self, stage: str, folder: Path | None, show: bool, file: Path | None = None) -> None:
        self.stage, self._file = stage, file
        self._console = Console(quiet=not show)
        self._folder = folder
        self._resumed_at: int | None = None
        self._bar = NotebookBar() if show and self._console.is_jupyter else _terminal_bar(self._console)
        self._task = self._bar.add_task(stage, total=None, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        self._note("begins")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.stop()
        self._note("ends" if kind is None else f"ends by {kind.__name__}")
        if "_writer" in self.__dict__ and self._writer:
            # Its disk has perhaps failed already: the error that ended the stage is the one to be said.
            with suppress(OSError) if kind else nullcontext():
                self._writer.close()

    @cached_property
    def _writer(self) -> "SummaryWriter | None":
        """Made by the first value, so that a stage without values leaves no file.

        In a resumed stage it hides the values written after the checkpoint from which the stage goes on.
        """
        if self._folder is None:
            return None
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self._folder), purge_step=self._resumed_at)
        writer.add_custom_scalars(CHARTS)
        return writer

    @property
    def is_written(self) -> bool:
        """Whether what this rank logs is written for TensorBoard."""
        return self._folder is not None

    def expect(self, total: int, completed: int = 0) -> None:
        """Say how many steps the stage has, and how many of them are done; before the first value."""
        self._resumed_at = completed + 1 if completed else None
        self._bar.update(self._task, total=total, completed=completed)

    def advance(self, note: str = "", num_examples: int = 0) -> None:
        """A step is done: move the bar. `num_examples` of the step were this rank's, for a log that measures rates."""
        self._bar.update(self._task, advance=1, note=note)

    def progress(self, completed: int, total: int) -> None:
        """Set the bar to `completed` of `total`."""
        self._bar.update(self._task, completed=completed, total=total)

    def say(self, text: str) -> None:
        """Print one line above the bar."""
        self._console.print(Text.assemble((self.stage, "bold"), " ", text), soft_wrap=True)
        self._note(text)

    def _note(self, text: str) -> None:
        if self._file is None:
            return
        try:
            with open(self._file, "a", encoding="utf-8") as file:
                file.write(f"{datetime.now().astimezone().isoformat(timespec='milliseconds')} {self.stage} {text}\n")
        except OSError as error:
            reason = f"{self._file} cannot be written: {error.strerror}"
            print(f"csrec-dist: {reason}; stage {self.stage} goes on without it.", file=sys.stderr, flush=True)
            self._file = None

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write TensorBoard scalars at `step`."""
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def histogram(self, name: str, values: "Tensor", step: int) -> None:
        """Write a TensorBoard histogram of values [N] at `step`."""
        if self._writer:
            self._writer.add_histogram(name, values, step)

    def hparams(self, settings: Mapping[str, Any]) -> None:
        """Write a row of TensorBoard's HParams table: the settings, beside whatever scalars the stage writes.

        The row lies in the stage's own event file. TensorBoard makes the table's columns of the rows of all runs.
        """
        if self._writer:
            from torch.utils.tensorboard.summary import hparams

            numbers = {key: value for key, value in settings.items() if type(value) in (int, float)}
            texts = {key: str(value) for key, value in settings.items() if key not in numbers}
            _, begin, end = hparams(numbers | texts, {})
            events: Any = self._writer.file_writer
            for summary in (begin, end):
                events.add_summary(summary)


def _terminal_bar(console: Console) -> Progress:
    """A bar that is moved where the console is a terminal, and nothing elsewhere."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        disable=console.quiet or not console.is_terminal,
        transient=True,
    )
