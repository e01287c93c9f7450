"""Checkpoints of a training: everything that resuming needs, as safetensors and JSON; the last few are kept."""

import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from safetensors import SafetensorError
from torch import Tensor

from csrec_dist.distributed.engines import Pieces, Snapshot
from csrec_dist.distributed.groups import Group
from csrec_dist.errors import StorageError, UserError
from csrec_dist.files import differences, flatten, parse_record, read_json, remove, write_record
from csrec_dist.models.weight_files import ROW_NAME, row_name
from csrec_dist.tensor_files import checksum_problem, open_tensors, save_tensors, stored_checksum
from csrec_dist.writers import is_visible, server_time

PARTS = ("best", "model", "optimizer")
POLL_SECONDS = 0.02
ASK_SECONDS = 1.0
GRACE_SECONDS = 5.0
"""How long a checkpoint in flight waits for other ranks' files when the training has broken off."""

Tensors = dict[str, Tensor]


@dataclass
class EpochSums:
    """The sums of an epoch that has not ended yet.

    `total` and `window` are (weight, loss, cross-entropy, divergence, examples), summed over the ranks up to the last
    point of the loss curve and in the `window_steps` since; losses are weighted sums, and `weight` is that of the
    examples. Seconds and waits are the writing rank's.
    """

    total: list[float] = field(default_factory=lambda: [0.0] * 5)
    window: list[float] = field(default_factory=lambda: [0.0] * 5)
    window_steps: int = 0
    seconds: float = 0.0
    data_wait: float = 0.0
    collective_wait: float = 0.0

    @property
    def is_finite(self) -> bool:
        """Whether no step had a loss that is NaN or infinite."""
        return all(map(math.isfinite, [*self.total, *self.window]))


@dataclass
class TrainState:
    """The position of a training. `epoch` and `step` name the next global batch; `total_steps` counts all so far.

    `environments` are those in which it was trained, in order: one, unless a later start had another. After the last
    batch of an epoch, and before its evaluation, `step` is the number of its batches.
    """

    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    best: float = -1.0
    best_epoch: int = -1
    seconds: float = 0.0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    environments: list[dict[str, Any]] = field(default_factory=list)
    so_far: EpochSums = field(default_factory=EpochSums)

    def summary(self) -> dict[str, Any]:
        """The state of a finished training, without the sums of an unfinished epoch."""
        return {name: value for name, value in asdict(self).items() if name != "so_far"}


class StoredState:
    """A checkpoint's folder, opened for reading.

    Each part has a file from every rank that wrote some of it. A tensor is whole in one of them, or divided into runs
    of its numbers: flat tensors, whose names say which numbers they are.
    """

    def __init__(self, folder: Path) -> None:
        self._stored: dict[str, dict[str, list[_StoredRun]]] = {part: {} for part in PARTS}
        for path in sorted(folder.glob("*.safetensors")):
            file, part = open_tensors(path), path.name.removesuffix(".safetensors").partition("-")[0]
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                tensor, first = named_run(name)
                self._stored[part].setdefault(tensor, []).append(_StoredRun(file, name, first))

    def names(self, part: str) -> Collection[str]:
        """The names of a part's tensors."""
        return self._stored[part].keys()

    def copy(self, part: str, name: str, numbers: Tensor, first: int = 0) -> None:
        """Fill `numbers` [n] with those of a tensor from `first` on, in C order; KeyError where it is not whole.

        The files are mapped, so that only these numbers are read, and no other memory is taken.
        """
        num_copied = 0
        for run in self._stored[part].get(name, ()):
            values = run.values()
            low, high = max(first, run.first), min(first + len(numbers), run.first + len(values))
            if low < high:
                numbers[low - first : high - first] = values[low - run.first : high - run.first]
                num_copied += high - low
        if num_copied != len(numbers):
            raise KeyError(f"{part} holds {num_copied} of {len(numbers)} numbers of {name}")


class _StoredRun(NamedTuple):
    """A tensor in a file: a run of the numbers of one of the training's tensors, from `first` on."""

    file: Any
    name: str
    first: int

    def values(self) -> Tensor:
        """The numbers [n], mapped."""
        tensor: Tensor = self.file.get_tensor(self.name)
        return tensor.view(-1)


def named_run(name: str) -> tuple[str, int]:
    """The training's tensor to which a tensor in a checkpoint's file belongs, and the index of its first number."""
    match = ROW_NAME.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, 0)


def in_file(pieces: Pieces) -> Tensors:
    """A rank's pieces as they are written: whole tensors in their shape, runs of numbers under names that say so."""
    tensors = {}
    for name, (numbers, first, shape) in pieces.items():
        is_whole = len(numbers) == math.prod(shape)
        run = slice(first, first + len(numbers))
        tensors[name if is_whole else row_name(name, run)] = numbers.view(shape) if is_whole else numbers
    return tensors


class Checkpoints:
    """A folder of checkpoints of one training on the ranks of a group; `inputs` are all that decides the training.

    A thread of each rank writes that rank's pieces while the training goes on, one checkpoint at a time; the first
    rank's thread waits for the files of all, and then writes state.json, which names them. A failure of one thread is
    raised on all ranks of the group, which call the methods together.
    """

    def __init__(self, folder: Path, inputs: dict[str, Any], group: Group, keep: int = 2) -> None:
        self.folder = folder
        self._inputs, self._group, self._keep = flatten(inputs), group, keep
        self.set_aside: list[str] = []
        self._num_saved = 0
        self._parts: list[Future[None]] = []
        self._num_writers = 1
        self._abandoned = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave nothing in flight, however the training ended."""
        if kind is not None:
            self._abandoned.set()
        wait(self._parts)

    def save(self, state: TrainState, snapshot: Snapshot, writers: Sequence[int] = (0,)) -> None:
        """Begin to write a checkpoint, after the one before it; every rank that trains the model calls this.

        `writers` are the ranks, within the group, that have pieces; the first rank is one of them.
        """
        self.wait()
        self._num_saved += 1
        self._num_writers = len(writers)
        if self._group.rank not in writers:
            return
        final = self.folder / folder_name(state)
        temporary = self.folder / f".{final.name}.{self._num_saved}.tmp"
        files = [{part: file_name(part, number, len(writers)) for part in PARTS} for number in range(len(writers))]
        # `asdict` copies, as the snapshot has: the training goes on and changes both while the thread writes.
        values = {"inputs": self._inputs, **asdict(state)}
        thread = ThreadPoolExecutor(1, "checkpoint")
        local_files = files[writers.index(self._group.rank)]
        tensors = thread.submit(self._write, temporary, snapshot, local_files)
        self._parts = [tensors]
        if self._group.is_leader:
            self._parts.append(thread.submit(self._complete, tensors, final, temporary, values, files))
        thread.shutdown(wait=False)

    @property
    def has_failed(self) -> bool:
        """Whether this rank could not write its part of the checkpoint in flight."""
        return any(part.done() and part.exception() is not None for part in self._parts)

    def wait(self) -> None:
        """Wait until the checkpoint in flight is written; every rank calls this.

        Raises:
            StorageError: one of the ranks could not write its part of it.
        """
        if self._num_writers > 1:  # first of all: the first rank's thread would wait for a file that failed
            self._group.on_all(lambda: self._result_of(self._parts[:1]))
        self._group.on_leader(lambda: self._result_of(self._parts))
        self._parts = []

    def _result_of(self, parts: Sequence[Future[None]]) -> None:
        try:
            with self._group.watch.doing(f"waiting until all ranks' files of a checkpoint are in {self.folder}"):
                for part in parts:
                    part.result()
        except (OSError, StorageError) as error:
            reason = f"{error.strerror}." if isinstance(error, OSError) else str(error)
            raise StorageError(
                f"No checkpoint can be written to {self.folder}: {reason} The run resumes from its newest checkpoint."
            ) from error

    def restore(self) -> tuple[TrainState, StoredState] | None:
        """The newest whole checkpoint: its state and its tensors; None if there is none.

        The group's first rank chooses it; every rank calls this. Newer ones that are damaged are renamed to
        damaged-step-…, so that they are never taken for the newest again; `set_aside` names them.

        Raises:
            UserError: the checkpoint belongs to other inputs, all checkpoints are damaged, or a rank does not see one
                that the first rank reads.
        """
        damaged: list[str] = []
        while True:
            chosen = self._group.on_leader(partial(self._choose, damaged))
            if chosen is None:
                return None
            folder = self.folder / chosen["name"]
            # Each rank checks a share of the files, so that all tensors are read once.
            local_files = chosen["files"][self._group.rank :: self._group.size]
            if all(self._group.on_all(partial(self._are_whole, folder, local_files))):
                break
            damaged.append(chosen["name"])
        self.set_aside = chosen["damaged"]

        def read() -> Any:
            self._tidy(self.set_aside)  # renamed only now that there is one to resume from
            return read_json(folder / "state.json")

        saved = self._group.on_leader(read)
        for name in ("inputs", "files"):
            saved.pop(name)
        so_far = EpochSums(**saved.pop("so_far", {}))
        return TrainState(**saved, so_far=so_far), StoredState(folder)

    def conclude(self) -> None:
        """Remove all checkpoints but the last, from which a training goes on when its limits are raised."""
        for folder in [*checkpoint_folders(self.folder)[:-1], *self.folder.glob("damaged-step-*")]:
            shutil.rmtree(folder, ignore_errors=True)

    def _are_whole(self, folder: Path, files: Sequence[tuple[str, str]]) -> bool:
        """Whether these files of a checkpoint, all of which the group's first rank has seen, have their checksums.

        What only this rank does not see is not damaged: UserError.
        """
        paths = [folder / "state.json", *(folder / name for name, _ in files)]
        with _readable():
            if not is_visible(lambda: all(path.exists() for path in paths), folder):
                rank, first = self._group.ranks[self._group.rank], self._group.ranks[0]
                raise UserError(
                    f"Rank {rank} on {socket.gethostname()} does not see the checkpoint {folder}, which rank {first} "
                    "reads: is it on a disk that all machines share? Nothing was changed; mend that and give the same "
                    "command again."
                )
            return all(is_whole_file(folder / name, sha256) for name, sha256 in files)

    def _choose(self, known_damaged: list[str]) -> dict[str, Any] | None:
        """The newest checkpoint that seems whole, its files with their checksums, and the damaged ones after it."""
        damaged: list[str] = []
        for folder in reversed(checkpoint_folders(self.folder)):
            with _readable():
                saved = None if folder.name in known_damaged else read_state(folder)
            if saved is None:
                damaged.append(folder.name)
                continue
            if changes := differences(saved["inputs"], self._inputs):
                raise UserError(
                    f"{folder} belongs to a training with different inputs: {'; '.join(changes)}. "
                    "Restart the stage with --restart, or give the run another name."
                )
            return {"name": folder.name, "files": sorted(saved["files"].items()), "damaged": damaged}
        if damaged:
            raise UserError(f"All checkpoints in {self.folder} are damaged. Restart the stage with --restart.")
        self._tidy([])
        return None

    def _tidy(self, damaged: list[str]) -> None:
        """Remove what a killed process left unfinished, and set damaged checkpoints aside."""
        for path in self.folder.glob(".step-*.tmp"):
            remove(path)
        for name in damaged:
            aside = self.folder / f"damaged-{name}"
            remove(aside)
            os.replace(self.folder / name, aside)

    def _write(self, temporary: Path, snapshot: Snapshot, local_files: dict[str, str]) -> None:
        """Write this rank's files."""
        for part in PARTS:
            # Each part's memory is free for the next copy as soon as it is written.
            save_tensors(temporary / local_files[part], in_file(snapshot.pop(part)))

    def _complete(
        self,
        tensors: Future[None],
        final: Path,
        temporary: Path,
        values: dict[str, Any],
        of_all: list[dict[str, str]],
    ) -> None:
        """Write the rest on the first rank, unless its `tensors` failed; a whole checkpoint gets its final name."""
        if tensors.exception() is not None:
            return
        files = [name for names in of_all for name in names.values()]
        # By looking for their files, not by a collective: this thread runs beside the training's collectives, and the
        # ranks would enter the two in different orders.
        self._await(temporary, files)
        checksums = {name: stored_checksum(temporary / name) for name in files}
        # The last file: it vouches for the others.
        write_record(temporary / "state.json", {**values, "files": checksums})
        remove(final)
        os.replace(temporary, final)
        # Only now, when the new one has its name: whenever the process is killed there is a whole checkpoint.
        for old in checkpoint_folders(self.folder)[: -self._keep]:
            hidden = old.with_name(f".{old.name}.tmp")
            with suppress(OSError):  # what stays is removed by the next start, or kept
                os.replace(old, hidden)  # at once, so that nobody reads half of it
                shutil.rmtree(hidden, ignore_errors=True)

    def _await(self, folder: Path, files: list[str]) -> None:
        """Wait for other ranks' files, each of which appears whole; only for GRACE_SECONDS once the training broke off.

        A rank that is alive finishes its files by then, and one that died never does. A client of NFS keeps in mind for
        half a minute that a file was not there, unless it changes the folder itself.
        """
        deadline, ask = math.inf, time.monotonic() + ASK_SECONDS
        while not all((folder / name).exists() for name in files):
            if time.monotonic() > ask:
                with suppress(OSError):
                    server_time(folder)
                ask = time.monotonic() + ASK_SECONDS
            if self._abandoned.is_set() and deadline == math.inf:
                deadline = time.monotonic() + GRACE_SECONDS
            if time.monotonic() > deadline:
                raise FileNotFoundError(f"{folder} was left unfinished")
            time.sleep(POLL_SECONDS)


def folder_name(state: TrainState) -> str:
    """The name of a checkpoint's folder, of steps and of epochs done; in the order of names the newest is last.

    After the last step of an epoch there are two, before its evaluation and after it.
    """
    return f"step-{state.total_steps:09d}-epoch-{state.epoch:05d}"


def file_name(part: str, number: int, num_files: int) -> str:
    """The file of a part that the writer of this number, from 0, writes."""
    return f"{part}.safetensors" if num_files == 1 else f"{part}-{number + 1:05d}-of-{num_files:05d}.safetensors"


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or damaged, oldest first."""
    return sorted(folder.glob("step-*"))


def read_state(folder: Path) -> dict[str, Any] | None:
    """The content of a checkpoint's state.json; None if it, or a file that it names, is missing, cut off or malformed.

    The tensors' checksums are not compared (see `is_whole_file`). Raises OSError or UserError when a file cannot be
    read, though it may be whole.
    """
    try:
        saved = parse_record((folder / "state.json").read_text(encoding="utf-8"))
        if not isinstance(saved, dict) or not saved.keys() >= {"inputs", "files"}:
            return None
        for name in saved["files"]:
            open_tensors(folder / name)
    except (ValueError, SafetensorError, FileNotFoundError):
        return None
    return saved


@contextmanager
def _readable() -> Iterator[None]:
    """Turn an error of reading into a UserError: such a file is not taken for damaged, because it may be whole."""
    try:
        yield
    except OSError as error:
        raise UserError(f"The checkpoint {error.filename} cannot be read: {error.strerror}.") from None


def is_whole_file(path: Path, sha256: str) -> bool:
    """Whether a checkpoint's file of tensors names this checksum, and its bytes have it."""
    try:
        return stored_checksum(path) == sha256 and checksum_problem(path) is None
    except (UserError, FileNotFoundError):
        return False


def last_state(folder: Path) -> dict[str, Any] | None:
    """The state of the newest whole checkpoint in a folder; None if there is none."""
    return next((saved for path in reversed(checkpoint_folders(folder)) if (saved := read_state(path))), None)
