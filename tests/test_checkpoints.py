"""Checkpoints: copies written beside the training, the newest whole one found, failures said."""

import threading
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
import torch

from csrec_dist import checkpoints as checkpoints_module
from csrec_dist.checkpoints import Checkpoints, TrainState
from csrec_dist.distributed import Group
from csrec_dist.distributed.engines import DataParallel, Snapshot, Updates
from csrec_dist.distributed.layout import Layout
from csrec_dist.errors import UserError

ALONE = Layout(*[Group((0,), 0)] * 3)


class Model(DataParallel):
    """A linear layer in the hands of an engine."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(2, 1), ALONE, torch.device("cpu"), Updates())

    @property
    def weight(self) -> torch.Tensor:
        return self.module.weight.detach()

    def train(self) -> None:
        self.backward(self.forward(torch.ones(1, 2)).sum())
        self.step(0.1)

    def parts(self) -> Snapshot:
        found = self.snapshot()
        found.add("best", {}, ())
        return found


def test_a_checkpoint_is_a_copy_and_is_written_beside_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, real = threading.Event(), Checkpoints._write
    monkeypatch.setattr(Checkpoints, "_write", lambda *arguments: gate.wait(10) and real(*arguments))
    model = Model()
    model.train()
    kept = model.weight.clone()
    checkpoints = Checkpoints(tmp_path / "c", "inputs", ALONE)
    checkpoints.save(TrainState(total_steps=1), model.parts())
    model.train()
    checkpoints.check()
    assert not (tmp_path / "c").exists()
    gate.set()
    checkpoints.wait()
    other = Model()
    restored = checkpoints.restore()
    assert restored is not None
    other.restore(restored[1])
    assert restored[0] == TrainState(total_steps=1)
    torch.testing.assert_close(other.weight, kept, rtol=0, atol=0)


def test_a_failed_write_is_said_at_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints_module, "save_tensors", full)
    checkpoints = Checkpoints(tmp_path, "inputs", ALONE)
    checkpoints.save(TrainState(), Model().parts())
    assert checkpoints._writing is not None
    wait([checkpoints._writing])
    with pytest.raises(UserError, match=r"No checkpoint can be written to .*: No space left on device"):
        checkpoints.check()


def test_the_newest_whole_checkpoint_is_taken_and_leftovers_are_removed(tmp_path: Path) -> None:
    model, checkpoints = Model(), Checkpoints(tmp_path, "inputs", ALONE, keep=3)
    for step in range(1, 5):
        model.train()
        checkpoints.save(TrainState(total_steps=step), model.parts())
    checkpoints.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:09d}" for step in (2, 3, 4)]
    (tmp_path / "step-000000004/model.safetensors").write_bytes(b"damaged")
    (tmp_path / "step-000000003/optimizer.safetensors").unlink()
    (tmp_path / ".step-000000005.1.tmp").mkdir()
    restored = checkpoints.restore()
    assert restored is not None
    assert restored[0].total_steps == 2
    assert not (tmp_path / ".step-000000005.1.tmp").exists()
    with pytest.raises(UserError, match="other settings or data"):
        Checkpoints(tmp_path, "others", ALONE).restore()
