"""Checkpoints: copies written beside the training, the newest whole one found, failures said."""

import shutil
import socket
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from csrec_dist import writers
from csrec_dist.distributed import Runtime
from csrec_dist.distributed.engines import DataParallel, Snapshot, base
from csrec_dist.distributed.groups import ALONE
from csrec_dist.distributed.layout import Layout
from csrec_dist.errors import StorageError, UserError
from csrec_dist.training import checkpoints as checkpoints_module
from csrec_dist.training.checkpoints import Checkpoints, StoredState, TrainState, checkpoint_folders, read_state
from tests.helpers.permissions import as_a_colleague
from tests.helpers.ranks import run_ranks

INPUTS = {"seed": 0, "training": {"learning_rate": 0.1}}


class Model(DataParallel):
    """A linear layer in the hands of an engine."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(2, 1), Layout(ALONE, ALONE, ALONE), torch.device("cpu"))

    @property
    def weight(self) -> torch.Tensor:
        return self.module.weight.detach()

    def train(self) -> None:
        self.backward(self.forward(torch.ones(1, 2)).sum())
        self.step(0.1)

    def parts(self) -> Snapshot:
        return self.snapshot() | {"best": {}}


def named(step: int) -> str:
    """The folder of a checkpoint in the first epoch."""
    return f"step-{step:09d}-epoch-00000"


def test_a_checkpoint_is_a_copy_and_is_written_beside_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, real = threading.Event(), checkpoints_module.save_tensors
    monkeypatch.setattr(checkpoints_module, "save_tensors", lambda *arguments: gate.wait(10) and real(*arguments))
    model = Model()
    model.train()
    kept = model.weight.clone()
    checkpoints = Checkpoints(tmp_path / "c", INPUTS, ALONE)
    checkpoints.save(TrainState(total_steps=1), model.parts())
    model.train()
    assert not checkpoints.has_failed
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
    meets_full_disk = threading.Event()

    def full(*_: Any) -> None:
        meets_full_disk.wait(10)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints_module, "save_tensors", full)
    checkpoints = Checkpoints(tmp_path, INPUTS, ALONE)
    checkpoints.save(TrainState(), Model().parts())
    (writer,) = (thread for thread in threading.enumerate() if thread.name.startswith("checkpoint"))
    meets_full_disk.set()
    writer.join()
    assert checkpoints.has_failed
    with pytest.raises(StorageError, match=r"No checkpoint can be written to .*: No space left on device"):
        checkpoints.wait()


def test_the_newest_whole_checkpoint_is_taken_and_leftovers_are_removed(tmp_path: Path) -> None:
    model, checkpoints = Model(), Checkpoints(tmp_path, INPUTS, ALONE, keep=3)
    for step in range(1, 5):
        model.train()
        checkpoints.save(TrainState(total_steps=step), model.parts())
    checkpoints.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == [named(step) for step in (2, 3, 4)]
    (tmp_path / named(4) / "model.safetensors").write_bytes(b"damaged")
    (tmp_path / named(3) / "optimizer.safetensors").unlink()
    (tmp_path / ".step-000000005.1.tmp").mkdir()
    restored = checkpoints.restore()
    assert restored is not None
    assert restored[0].total_steps == 2
    assert not (tmp_path / ".step-000000005.1.tmp").exists()
    assert checkpoints.set_aside == [named(4), named(3)]
    assert sorted(path.name for path in tmp_path.glob("step-*")) == [named(2)]
    with pytest.raises(UserError, match=r"training\.learning_rate was 0\.1, is 0\.2\."):
        Checkpoints(tmp_path, INPUTS | {"training": {"learning_rate": 0.2}}, ALONE).restore()


def test_no_checkpoint_takes_the_place_of_another(tmp_path: Path) -> None:
    """The last step of an epoch may be saved twice: before the evaluation, and after it."""
    checkpoints = Checkpoints(tmp_path, INPUTS, ALONE)
    for epoch in (9, 10):
        checkpoints.save(TrainState(total_steps=7, epoch=epoch), Model().parts())
    checkpoints.wait()
    assert len(checkpoint_folders(tmp_path)) == 2
    restored = checkpoints.restore()
    assert restored is not None
    assert restored[0].epoch == 10


@pytest.mark.parametrize("file", ["state.json", "model.safetensors", "optimizer.safetensors"])
def test_after_a_damaged_checkpoint_the_new_ones_are_kept(tmp_path: Path, file: str) -> None:
    """The damaged one has the highest step, so pruning by name would keep it and remove all that are written."""
    model, before = Model(), Checkpoints(tmp_path, INPUTS, ALONE, keep=2)
    for step in (5, 9):
        before.save(TrainState(total_steps=step), model.parts())
    before.wait()
    damaged = tmp_path / named(9) / file
    damaged.write_bytes(damaged.read_bytes()[:-7])
    checkpoints = Checkpoints(tmp_path, INPUTS, ALONE, keep=1)
    restored = checkpoints.restore()
    assert restored is not None
    assert restored[0].total_steps == 5
    for step in (6, 7):
        model.train()
        checkpoints.save(TrainState(total_steps=step), model.parts())
    checkpoints.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"damaged-{named(9)}",
        named(7),
    ]
    checkpoints.conclude()
    assert [path.name for path in tmp_path.iterdir()] == [named(7)]


@pytest.mark.parametrize("file", ["state.json", "model.safetensors"])
def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_damaged(tmp_path: Path, file: str) -> None:
    checkpoints = Checkpoints(tmp_path, INPUTS, ALONE)
    for step in (1, 2):
        checkpoints.save(TrainState(total_steps=step), Model().parts())
    checkpoints.wait()
    with (
        as_a_colleague(tmp_path / named(2) / file),
        pytest.raises(UserError, match=f"{file} cannot be read: Permission denied"),
    ):
        Checkpoints(tmp_path, INPUTS, ALONE).restore()
    assert [path.name for path in checkpoint_folders(tmp_path)] == [
        named(1),
        named(2),
    ]


def resume_on(rank: int, world_size: int, folder: str) -> str:
    """What this rank says of the checkpoint, of which rank 1 may not read its share."""
    layout = Runtime.start().layout([(0, 1)], 1)
    model = Path(folder) / named(1) / "model.safetensors"
    with as_a_colleague(model) if rank == 1 else nullcontext(), pytest.raises(UserError) as refused:
        Checkpoints(Path(folder), INPUTS, layout.group).restore()
    return str(refused.value)


def test_all_ranks_hear_what_one_may_not_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, INPUTS, ALONE)
    checkpoints.save(TrainState(total_steps=1), Model().parts())
    checkpoints.wait()
    first, second = run_ranks(resume_on, 2, str(tmp_path))
    assert first == second
    assert "model.safetensors cannot be read: Permission denied" in first
    assert [path.name for path in checkpoint_folders(tmp_path)] == [named(1)]


def resume_apart(rank: int, world_size: int, folder: str) -> str:
    """What this rank says of checkpoints that rank 1 looks for on a disk of its own, which has the older one alone."""
    writers.VISIBLE_SECONDS = 0.1
    layout = Runtime.start().layout([(0, 1)], 1)
    place = Path(folder) / ("shared" if rank == 0 else "its own")
    with pytest.raises(UserError) as refused:
        Checkpoints(place, INPUTS, layout.group).restore()
    return str(refused.value)


def test_a_checkpoint_that_one_rank_does_not_see_is_not_damaged(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "shared", INPUTS, ALONE)
    for step in (1, 2):
        checkpoints.save(TrainState(total_steps=step), Model().parts())
    checkpoints.wait()
    shutil.copytree(tmp_path / "shared" / named(1), tmp_path / "its own" / named(1))
    first, second = run_ranks(resume_apart, 2, str(tmp_path))
    assert first == second
    assert f"Rank 1 on {socket.gethostname()} does not see the checkpoint" in first
    assert f"{named(2)}, which rank 0 reads: is it on a disk that all machines share?" in first
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == [named(1), named(2)]


def save_with(rank: int, world_size: int, folder: str) -> int:
    """Train a layer of 7 × 5 weights and save it, each rank a part; how many numbers this rank copied."""
    base.FEWEST_CUT = 3
    layout = Runtime.start().layout([tuple(range(world_size))], 1)
    torch.manual_seed(0)
    engine = DataParallel(torch.nn.Linear(5, 7), layout, torch.device("cpu"))
    engine.backward(engine.forward(torch.ones(1, 5)).square().sum())
    engine.step(0.1)
    snapshot = engine.snapshot() | {"best": engine.copy_weights("weight")}
    checkpoints = Checkpoints(Path(folder), INPUTS, layout.group)
    checkpoints.save(TrainState(total_steps=1), dict(snapshot), range(world_size))
    checkpoints.wait()
    return sum(len(piece.numbers) for pieces in snapshot.values() for piece in pieces.values())


def test_ranks_write_a_part_each_of_what_all_hold_and_any_run_of_numbers_is_read_back(tmp_path: Path) -> None:
    counts = {world: run_ranks(save_with, world, str(tmp_path / str(world))) for world in (1, 3)}
    assert sum(counts[3]) == sum(counts[1]) == 3 * (35 + 7) + 2 + 35
    assert max(counts[3]) <= 1.5 * min(counts[3])
    states = {world: StoredState(tmp_path / str(world) / named(1)) for world in (1, 3)}
    whole = load_file(tmp_path / "1" / named(1) / "optimizer.safetensors")
    assert whole["weight.exp_avg"].shape == (7, 5)
    for part in ("model", "optimizer", "best"):
        assert set(states[1].names(part)) == set(states[3].names(part))
    for first, num in ((0, 35), (0, 1), (11, 2), (12, 23), (34, 1), (5, 0)):
        found = torch.full((num,), torch.nan)
        states[3].copy("optimizer", "weight.exp_avg", found, first)
        wanted = whole["weight.exp_avg"].flatten()[first : first + num]
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)
    with pytest.raises(KeyError, match="34 of 35"):
        states[3].copy("best", "weight", torch.zeros(35), 1)


def test_a_state_that_is_no_mapping_is_damaged(tmp_path: Path) -> None:
    (tmp_path / named(1)).mkdir()
    (tmp_path / named(1) / "state.json").write_text("[]")
    assert read_state(tmp_path / named(1)) is None


def test_nothing_is_changed_when_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, INPUTS, ALONE)
    for step in (1, 2):
        checkpoints.save(TrainState(total_steps=step), Model().parts())
    checkpoints.wait()
    for path in tmp_path.rglob("model.safetensors"):
        path.unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"All checkpoints in .* are damaged"):
        Checkpoints(tmp_path, INPUTS, ALONE).restore()
    assert sorted(tmp_path.rglob("*")) == before
