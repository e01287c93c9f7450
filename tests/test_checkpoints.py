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
from csrec_dist.errors import UserError

ALONE = Group((0,), 0)


class Model(torch.nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 1)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=0.1)

    def step(self) -> None:
        self(torch.ones(1, 2)).sum().backward()
        self.optimizer.step()

    def parts(self) -> dict[str, Any]:
        return {**checkpoints_module.gather_state(self, self.optimizer), "best": {}}


def test_a_checkpoint_is_a_copy_and_is_written_beside_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, real = threading.Event(), Checkpoints._write
    monkeypatch.setattr(Checkpoints, "_write", lambda *arguments: gate.wait(10) and real(*arguments))
    model = Model()
    model.step()
    kept = model.weight.detach().clone()
    checkpoints = Checkpoints(tmp_path / "c", "inputs", ALONE)
    checkpoints.save(TrainState(total_steps=1), model.parts())
    model.step()
    checkpoints.check()
    assert not (tmp_path / "c").exists()
    gate.set()
    checkpoints.wait()
    other = Model()
    restored = checkpoints.restore(other, other.optimizer)
    assert restored is not None
    assert restored[0] == TrainState(total_steps=1)
    torch.testing.assert_close(other.weight.detach(), kept, rtol=0, atol=0)


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
        model.step()
        checkpoints.save(TrainState(total_steps=step), model.parts())
    checkpoints.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:09d}" for step in (2, 3, 4)]
    (tmp_path / "step-000000004/model.safetensors").write_bytes(b"damaged")
    (tmp_path / "step-000000003/optimizer.safetensors").unlink()
    (tmp_path / ".step-000000005.1.tmp").mkdir()
    restored = checkpoints.restore(model, model.optimizer)
    assert restored is not None
    assert restored[0].total_steps == 2
    assert not (tmp_path / ".step-000000005.1.tmp").exists()
    with pytest.raises(UserError, match="other settings or data"):
        Checkpoints(tmp_path, "others", ALONE).restore(model, model.optimizer)
