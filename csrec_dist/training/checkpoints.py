"""Checkpoints of a training: everything that resuming needs, as safetensors and JSON; the last few are kept."""

import math
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor

from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.distributed.engines import Snapshot
from csrec_dist.distributed.layout import Layout
from csrec_dist.errors import SharedUserError, StorageError, UserError
from csrec_dist.files import differences, flatten, parse_record, read_json, write_record
from csrec_dist.tensor_files import checksum_problem, open_tensors, save_tensors, stored_checksum

PARTS = ("best", "model", "optimizer")
POLL_SECONDS = 0.02

Tensors = dict[str, Tensor]


@dataclass
class EpochSums:
    """What an epoch that is not at its end has summed so far.

    `total` and `window` are (examples, loss, cross-entropy, divergence), summed over the ranks up to the last point of
    the loss curve and in the `window_steps` since. Seconds and waits are the writing rank's.
    """

    total: list[float] = field(default_factory=lambda: [0.0] * 4)
    window: list[float] = field(default_factory=lambda: [0.0] * 4)
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
    """Where a training stands. `epoch` and `step` name the next global batch; `total_steps` counts all so far.

    `environments` are those that it was trained in, in their order: one, unless a later start had another.
    After the last batch of an epoch, and before its evaluation, `step` is the number of its batches.
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
        """What is worth keeping of a finished training."""
        return {name: value for name, value in asdict(self).items() if name != "so_far"}


class StoredState:
    """A checkpoint's folder, opened for reading: whole tensors, and those kept in slices of rows.

    A part has one file of whole tensors, and one for each slice of the catalog, whose name says which rows it holds.
    """

    def __init__(self, folder: Path) -> None:
        self._files = {path.name: open_tensors(path) for path in sorted(folder.glob("*.safetensors"))}
        self._names = {name: set(file.keys()) for name, file in self._files.items()}

    def names(self, part: str) -> list[str]:
        """What a part holds."""
        return sorted(set().union(*(names for path, names in self._names.items() if _part_of(path) == part)))

    def read(self, part: str, name: str, rows: slice | None = None) -> Tensor:
        """A tensor on the CPU, or some of its rows; KeyError when the part has none of this name."""
        whole = f"{part}.safetensors"
        if name in self._names.get(whole, ()):
            file = self._files[whole]
            return file.get_tensor(name) if rows is None else file.get_slice(name)[rows.start : rows.stop]
        pieces = []
        for path, names in self._names.items():
            if _part_of(path) == part and name in names:
                pieces += _overlap(self._files[path], name, _rows_of(path), rows)
        if not pieces:
            raise KeyError(f"{part} holds no {name}")
        return torch.cat(pieces)

    def part(self, part: str, slices: Mapping[str, slice | None]) -> Tensors:
        """All tensors of a part; of those in `slices`, their rows."""
        return {name: self.read(part, name, slices.get(name)) for name in self.names(part)}


def _slice_file(part: str, rows: slice) -> str:
    return f"{part}-rows-{rows.start:012d}-{rows.stop:012d}.safetensors"


def _part_of(file: str) -> str:
    return file.removesuffix(".safetensors").partition("-rows-")[0]


def _rows_of(file: str) -> slice:
    first, stop = file.removesuffix(".safetensors").partition("-rows-")[2].split("-")
    return slice(int(first), int(stop))


def _overlap(file: Any, name: str, stored: slice, wanted: slice | None) -> list[Tensor]:
    """The rows of a file, which has the rows `stored`, that are `wanted`: one piece, or none."""
    low = stored.start if wanted is None else max(stored.start, wanted.start)
    high = stored.stop if wanted is None else min(stored.stop, wanted.stop)
    return [file.get_slice(name)[low - stored.start : max(high, low) - stored.start]] if low <= stored.stop else []


class Checkpoints:
    """A folder of checkpoints of one training on the ranks of a layout; `inputs` are all that decides the training.

    A thread of the group's first rank writes them while the training goes on, one at a time. Where the catalog is
    split, so do the ranks that hold its slices first, each its own; the first rank's thread waits for their files.
    """

    def __init__(
        self, folder: Path, inputs: dict[str, Any], layout: Layout, catalog: CatalogSlice, keep: int = 2
    ) -> None:
        """`catalog` is this rank's slice of the items on that layout."""
        self.folder, self._catalog = folder, catalog
        self._inputs, self._group, self._keep = flatten(inputs), layout.group, keep
        self.set_aside: list[str] = []
        self._has_slices = not catalog.is_whole and layout.data.is_leader
        self._num_saved = 0
        self._writing: Future[None] | None = None
        self._abandoned = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave nothing in flight, however the training ended."""
        if kind is not None:
            self._abandoned.set()
        if self._writing:
            wait([self._writing])

    def save(self, state: TrainState, snapshot: Snapshot) -> None:
        """Begin to write a checkpoint, after the one before it; every rank that trains the model calls this."""
        self._num_saved += 1
        if not (self._group.is_leader or self._has_slices):
            return
        self.wait()
        final = self.folder / f"step-{state.total_steps:09d}"
        temporary = self.folder / f".{final.name}.{self._num_saved}.tmp"
        # `asdict` copies, as the snapshot has: the training goes on and changes both while the thread writes.
        values = {"inputs": self._inputs, **asdict(state)}
        thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing = thread.submit(self._write, final, temporary, values, snapshot)
        thread.shutdown(wait=False)

    def check(self) -> None:
        """Raise what the writing thread met, if it is done.

        Raises:
            StorageError: the checkpoint could not be written.
        """
        if self._writing and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint in flight is written; raises as `check` does."""
        writing, self._writing = self._writing, None
        try:
            if writing:
                writing.result()
        except (OSError, StorageError) as error:
            reason = f"{error.strerror}." if isinstance(error, OSError) else str(error)
            raise StorageError(
                f"No checkpoint can be written to {self.folder}: {reason} The run resumes from its newest checkpoint."
            ) from error

    def restore(self) -> tuple[TrainState, StoredState] | None:
        """The newest whole checkpoint: where it stands, and its tensors; None where there is none.

        The group's first rank chooses it; every rank calls this. Damaged ones that are newer are renamed to
        damaged-step-…, so that they are never taken for the newest again; `set_aside` names them.

        Raises:
            UserError: the checkpoint belongs to other inputs, or all checkpoints are damaged.
        """
        damaged: list[str] = []
        while True:
            chosen = self._group.broadcast_object(self._choose(damaged) if self._group.is_leader else {})
            if problem := chosen.get("error"):
                raise UserError(problem) if self._group.is_leader else SharedUserError(problem)
            if chosen["name"] is None:
                return None
            folder = self.folder / chosen["name"]
            # All tensors once, a share of the files on each rank.
            mine = chosen["files"][self._group.rank :: self._group.size]
            found = self._group.gather_objects(_compare(folder, mine))
            if unreadable := next((each["error"] for each in found if "error" in each), None):
                raise SharedUserError(unreadable)
            if all(each["is_sound"] for each in found):
                break
            damaged.append(chosen["name"])
        self.set_aside = chosen["damaged"]
        if self._group.is_leader:
            self._tidy(self.set_aside)  # renamed only now that there is one to resume from
        self._group.barrier()
        saved = read_json(folder / "state.json")
        for name in ("inputs", "files"):
            saved.pop(name)
        so_far = EpochSums(**saved.pop("so_far", {}))
        return TrainState(**saved, so_far=so_far), StoredState(folder)

    def conclude(self) -> None:
        """Keep the last checkpoint alone, from which a training goes on when its limits are raised."""
        for folder in [*checkpoint_folders(self.folder)[:-1], *self.folder.glob("damaged-step-*")]:
            shutil.rmtree(folder)

    def _choose(self, known_damaged: list[str]) -> dict[str, Any]:
        """The newest checkpoint that seems whole, its files with their checksums, and the damaged ones after it.

        {"name": None} where there is none; {"error": what the user has to mend}, which is raised on all ranks.
        """
        damaged: list[str] = []
        for folder in reversed(checkpoint_folders(self.folder)):
            try:
                saved = None if folder.name in known_damaged else read_state(folder)
            except UserError as error:
                return {"error": str(error)}
            except OSError as error:  # not damage: it may be whole
                return {"error": _unreadable(error)}
            if saved is None:
                damaged.append(folder.name)
                continue
            if changes := differences(saved["inputs"], self._inputs):
                return {
                    "error": f"{folder} belongs to a training with different inputs: {'; '.join(changes)}. "
                    "Restart the stage with --restart, or give the run another name."
                }
            return {"name": folder.name, "files": sorted(saved["files"].items()), "damaged": damaged}
        if damaged:
            return {"error": f"All checkpoints in {self.folder} are damaged. Restart the stage with --restart."}
        self._tidy([])
        return {"name": None}

    def _tidy(self, damaged: list[str]) -> None:
        """Remove what a killed process left unfinished, and set damaged checkpoints aside."""
        for path in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(path, ignore_errors=True)
        for name in damaged:
            aside = self.folder / f"damaged-{name}"
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(self.folder / name, aside)

    def _write(self, final: Path, temporary: Path, values: dict[str, Any], snapshot: Snapshot) -> None:
        """Write this rank's files; on the first rank also all else. Only a whole checkpoint gets its final name."""
        if self._has_slices:
            for part in PARTS:
                save_tensors(temporary / _slice_file(part, self._catalog.rows), snapshot.slices[part])
        if not self._group.is_leader:
            return
        for part in PARTS:
            save_tensors(temporary / f"{part}.safetensors", snapshot.whole[part])
        files = [f"{part}.safetensors" for part in PARTS]
        if self._has_slices:
            files += [_slice_file(part, rows) for part in PARTS for rows in self._catalog.all_rows]
            # By looking for their files, not by a collective: this thread works beside the training's collectives, and
            # the ranks would enter the two in different orders.
            self._await(temporary, files)
        checksums = {name: stored_checksum(temporary / name) for name in files}
        # The last file: it vouches for the others.
        write_record(temporary / "state.json", {**values, "files": checksums})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        # Only now, when the new one has its name: whenever the process is killed there is a whole checkpoint.
        for old in checkpoint_folders(self.folder)[: -self._keep]:
            shutil.rmtree(old)

    def _await(self, folder: Path, files: list[str]) -> None:
        """Wait for the files of other ranks, each of which appears whole, unless the training breaks off."""
        while not all((folder / name).exists() for name in files):
            if self._abandoned.wait(POLL_SECONDS):
                raise FileNotFoundError(f"{folder} was left unfinished")


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or damaged, oldest first."""
    return sorted(folder.glob("step-*"))


def read_state(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint says of itself; None when it, or a file that it names, is missing, cut off or no such file.

    The tensors' checksums are not compared (see `is_whole_file`). Raises OSError or UserError when one cannot be read,
    which may be whole.
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


def _compare(folder: Path, files: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Whether these files of a checkpoint are sound, or why one of them, which may be whole, cannot be read."""
    try:
        return {"is_sound": all(is_whole_file(folder / name, sha256) for name, sha256 in files)}
    except OSError as error:
        return {"error": _unreadable(error)}


def _unreadable(error: OSError) -> str:
    return f"The checkpoint {error.filename} cannot be read: {error.strerror}."


def is_whole_file(path: Path, sha256: str) -> bool:
    """Whether a checkpoint's file of tensors is the one with this checksum, and its bytes have it."""
    try:
        return stored_checksum(path) == sha256 and checksum_problem(path) is None
    except (UserError, FileNotFoundError):
        return False


def last_state(folder: Path) -> dict[str, Any] | None:
    """What the newest whole checkpoint in a folder says of itself; None where there is none."""
    return next((saved for path in reversed(checkpoint_folders(folder)) if (saved := read_state(path))), None)
