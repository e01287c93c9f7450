"""Checkpoints of a training: everything that resuming needs, as safetensors and JSON; the last few are kept."""

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from csrec_dist.distributed import Group
from csrec_dist.errors import SharedUserError, UserError
from csrec_dist.files import read_json, save_tensors, write_json

PARTS = ("best", "model", "optimizer")

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


@dataclass
class TrainState:
    """Where a training stands. `epoch` and `step` name the next global batch; `total_steps` counts all so far.

    After the last batch of an epoch, and before its evaluation, `step` is the number of its batches.
    """

    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    best: float = -1.0
    best_epoch: int = -1
    seconds: float = 0.0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    so_far: EpochSums = field(default_factory=EpochSums)

    def summary(self) -> dict[str, Any]:
        """What is worth keeping of a finished training."""
        return {name: value for name, value in asdict(self).items() if name != "so_far"}


def copy_tensors(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copies in the host's memory, which later steps do not change."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def gather_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensors]:
    """Whole tensors of model and optimizer, copied to the host: the parts "model" and "optimizer" of a checkpoint.

    Every rank that trains the model calls this: here, and in `load_state`, state that an engine has sharded would be
    gathered and dealt out, so that a checkpoint does not depend on the number of ranks.
    """
    states = optimizer.state_dict()["state"]
    moments = {f"{index}.{name}": value for index, state in states.items() for name, value in state.items()}
    return {"model": copy_tensors(model.state_dict()), "optimizer": copy_tensors(moments)}


def load_state(model: nn.Module, optimizer: torch.optim.Optimizer, parts: Mapping[str, Tensors]) -> None:
    """Put the tensors of `gather_state` into model and optimizer; every rank that trains the model calls this."""
    states: dict[int, Tensors] = {}
    for key, value in parts["optimizer"].items():
        index, name = key.split(".", 1)
        states.setdefault(int(index), {})[name] = value
    model.load_state_dict(parts["model"])
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


class Checkpoints:
    """A folder of checkpoints of one training on the ranks of a group; `fingerprint` says of which inputs.

    A thread of the group's first rank writes them while the training goes on, one at a time.
    """

    def __init__(self, folder: Path, fingerprint: str, group: Group, keep: int = 2) -> None:
        self.folder = folder
        self._fingerprint, self._group, self._keep = fingerprint, group, keep
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing in flight, however the training ended."""
        if self._writing:
            wait([self._writing])

    def save(self, state: TrainState, parts: Mapping[str, Tensors]) -> None:
        """Begin to write a checkpoint of copied tensors, after the one before it; only the first rank writes."""
        if self._group.is_leader:
            self.wait()
            values = {"fingerprint": self._fingerprint, **asdict(state)}
            thread = ThreadPoolExecutor(1, "checkpoint")
            self._writing = thread.submit(self._write, state.total_steps, values, dict(parts))
            thread.shutdown(wait=False)

    def check(self) -> None:
        """Raise what the writing thread met, if it is done.

        Raises:
            UserError: the checkpoint could not be written.
        """
        if self._writing and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint in flight is written; raises as `check` does."""
        writing, self._writing = self._writing, None
        try:
            if writing:
                writing.result()
        except OSError as error:
            raise UserError(
                f"No checkpoint can be written to {self.folder}: {error.strerror}. Mend that and start again; the "
                "run goes on from its newest checkpoint."
            ) from error

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[TrainState, Tensors] | None:
        """Load the newest whole checkpoint into model and optimizer; its state and the best weights, or None.

        The group's first rank chooses it; every rank calls this.

        Raises:
            UserError: the checkpoint belongs to other inputs, or all checkpoints are damaged.
        """
        chosen: dict[str, str | None] = {}
        if self._group.is_leader:
            try:
                chosen["name"] = self._choose()
            except UserError as error:
                chosen["error"] = str(error)
        chosen = self._group.broadcast_object(chosen)
        if problem := chosen.get("error"):
            raise UserError(problem) if self._group.is_leader else SharedUserError(problem)
        if chosen["name"] is None:
            return None
        folder = self.folder / chosen["name"]
        saved, parts = read_json(folder / "state.json"), _read_parts(folder)
        saved.pop("fingerprint")
        so_far = EpochSums(**saved.pop("so_far", {}))
        load_state(model, optimizer, parts)
        return TrainState(**saved, so_far=so_far), parts["best"]

    def clear(self) -> None:
        """Remove all checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if (path / "state.json").exists())

    def _choose(self) -> str | None:
        """The newest whole checkpoint's name; what a killed process left unfinished is removed."""
        for path in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(path, ignore_errors=True)
        found = self._found()
        for folder in reversed(found):
            if read_json(folder / "state.json").get("fingerprint") != self._fingerprint:
                raise UserError(
                    f"{folder} is of a training with other settings or data. "
                    "Restart the stage with --restart, or give the run another name."
                )
            try:
                _read_parts(folder)
            except (SafetensorError, FileNotFoundError):
                continue
            return folder.name
        if found:
            raise UserError(f"All checkpoints in {self.folder} are damaged. Restart the stage with --restart.")
        return None

    def _write(self, total_steps: int, state: dict[str, Any], parts: dict[str, Tensors]) -> None:
        """Write a checkpoint and drop the oldest ones. Only a whole checkpoint gets its final name."""
        final = self.folder / f"step-{total_steps:09d}"
        temporary = self.folder / f".{final.name}.{os.getpid()}.tmp"
        for name in PARTS:
            save_tensors(temporary / f"{name}.safetensors", parts[name])
        write_json(temporary / "state.json", state)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        for old in self._found()[: -self._keep]:
            shutil.rmtree(old)


def _read_parts(folder: Path) -> dict[str, Tensors]:
    return {name: load_file(folder / f"{name}.safetensors") for name in PARTS}
