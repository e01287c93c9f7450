"""Checkpoints of a training: everything that resuming needs, as safetensors and JSON; the last few are kept."""

import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from csrec_dist.errors import UserError
from csrec_dist.files import read_json, save_tensors, write_json

PARTS = ("best", "model", "optimizer")


@dataclass
class TrainState:
    """Where a training stands. `epoch` and `step` name the next global batch; `total_steps` counts all so far."""

    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    best: float = -1.0
    best_epoch: int = -1
    seconds: float = 0.0
    epochs: list[dict[str, Any]] = field(default_factory=list)


class Checkpoints:
    """A folder of checkpoints of one stage; `fingerprint` says of which inputs."""

    def __init__(self, folder: Path, fingerprint: str, keep: int = 2) -> None:
        self.folder = folder
        self._fingerprint = fingerprint
        self._keep = keep

    def _found(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if (path / "state.json").exists())

    def save(
        self, state: TrainState, weights: dict[str, Tensor], best: dict[str, Tensor], optimizer: torch.optim.Optimizer
    ) -> None:
        """Write a checkpoint and drop the oldest ones. Only a whole checkpoint gets its final name."""
        final = self.folder / f"step-{state.total_steps:09d}"
        temporary = self.folder / f".{final.name}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        save_tensors(temporary / "model.safetensors", weights)
        save_tensors(temporary / "best.safetensors", best)
        save_tensors(temporary / "optimizer.safetensors", _optimizer_tensors(optimizer))
        write_json(temporary / "state.json", {"fingerprint": self._fingerprint, **asdict(state)})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        for old in self._found()[: -self._keep]:
            shutil.rmtree(old)

    def restore(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[TrainState, dict[str, Tensor]] | None:
        """Load the newest whole checkpoint into model and optimizer; its state and the best weights, or None.

        Raises:
            UserError: the checkpoint belongs to other inputs, or all checkpoints are damaged.
        """
        found = self._found()
        for folder in reversed(found):
            saved = read_json(folder / "state.json")
            if saved.pop("fingerprint", None) != self._fingerprint:
                raise UserError(
                    f"{folder} is of a training with other settings or data. "
                    "Restart the stage with --restart, or give the run another name."
                )
            try:
                best, weights, moments = (load_file(folder / f"{name}.safetensors") for name in PARTS)
            except (SafetensorError, FileNotFoundError):
                continue
            model.load_state_dict(weights)
            _load_optimizer(optimizer, moments)
            return TrainState(**saved), best
        if found:
            raise UserError(f"All checkpoints in {self.folder} are damaged. Restart the stage with --restart.")
        return None

    def clear(self) -> None:
        """Remove all checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    states = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, state in states.items() for name, value in state.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
