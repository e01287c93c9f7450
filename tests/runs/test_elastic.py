"""Members trained side by side on ranks that help each other: curves, kills, signals, and who is waited for."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from csrec_dist.config import load_config
from csrec_dist.distributed import RankFailure, Runtime
from csrec_dist.distributed.scheduler import Scheduler
from csrec_dist.files import read_json
from csrec_dist.runs.pipeline import execute
from csrec_dist.runs.stages import elastic as teamwork
from csrec_dist.runs.stages.fitting import Training
from csrec_dist.training import Stopped, Trainer
from csrec_dist.training import trainer as loop
from tests.helpers.ranks import run_ranks, wait_until

RUN = """
name: small
dataset: {path: %s}
model: {name: gru4rec, width: 16, dropout: 0}
method: model_level
training: {batch_size: 7, max_epochs: 4, learning_rate: 0.01, log_steps: 3}
evaluation: {top_n: [10]}
"""
EPOCHS = {"teacher-0": 1, "teacher-2": 2}
"""Members that end before the others' four epochs."""
THREE = "teachers.num=3"
PATIENCE = 40.0  # seconds

Wait = tuple[str, str, int]
"""A file, a member that waits for it, and the epoch before whose evaluation it does."""


class CutOffError(Exception):
    """Stands for whatever ends a process."""


def wait_for(path: Path) -> None:
    """Wait for a file that another rank writes."""
    wait_until(path.exists, PATIENCE, str(path))


def offered(block: int, number: int = 1) -> str:
    """The file that says that a block of ranks waits to help, by the offer of this number."""
    return f"offered-{block}-{number}"


def is_saved(training: Training) -> bool:
    """Whether a member is trained: those that end before the limits do so too."""
    return (training.folder / "metrics.json").exists()


def teach(
    folder: str,
    dataset: str,
    waits: list[Wait],
    *overrides: str,
    at_epoch: Callable[[Trainer], None] = lambda trainer: None,
    timeout_minutes: float = 30,
) -> Runtime:
    """The stage teach, where members end after EPOCHS and wait for files; `at_epoch` is called before each epoch.

    A block of ranks that waits to help leaves a file, see `offered`.
    """
    path = Path(folder, f"config-{os.getpid()}.yaml")
    path.write_text(RUN % dataset)
    config = load_config(path, [f"output={folder}", *overrides])
    runtime = Runtime.start(timeout_minutes)
    finished, train, is_ended, offer = Trainer.is_finished, Trainer.train_epoch, Training.is_ended, Scheduler.offer

    def is_finished(trainer: Trainer) -> bool:
        member = trainer.stage.partition("/")[2]
        return finished(trainer) or (trainer.state.step == 0 and trainer.state.epoch >= EPOCHS.get(member, 99))

    def train_epoch(trainer: Trainer) -> Any:
        at_epoch(trainer)
        done = train(trainer)
        for file, member, epoch in waits:
            if trainer.stage == f"teach/{member}" and trainer.state.epoch == epoch:
                wait_for(Path(folder, file))
        return done

    def offer_and_tell(scheduler: Scheduler, block: int, number: int) -> None:
        offer(scheduler, block, number)
        Path(folder, offered(block, number)).touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "is_finished", is_finished)
        patch.setattr(loop.Trainer, "train_epoch", train_epoch)
        patch.setattr(Scheduler, "offer", offer_and_tell)
        patch.setattr(Training, "is_ended", lambda self, options: is_ended(self, options) or is_saved(self))
        execute(config, runtime, ["prepare", "teach"])
    return runtime


def teach_ranks(rank: int, world_size: int, *arguments: Any) -> float:
    """Seconds that this rank has waited for others."""
    return teach(*arguments).watch.waits.ranks


def cut_off(rank: int, world_size: int, *arguments: Any) -> None:
    """All ranks of teacher-1 end before its last epoch."""

    def at_epoch(trainer: Trainer) -> None:
        if trainer.stage == "teach/teacher-1" and trainer.state.epoch == 3:
            raise CutOffError

    with pytest.raises(CutOffError):
        teach(*arguments, at_epoch=at_epoch)


def signalled(rank: int, world_size: int, folder: str, dataset: str, waits: list[Wait]) -> list[Any]:
    """Rank 0, which has trained its member, gets SIGTERM while it waits; the statuses, and where teacher-1 stands."""

    def tell() -> None:
        wait_for(Path(folder, offered(0)))
        os.kill(os.getpid(), signal.SIGTERM)
        Path(folder, "told").touch()

    if rank == 0:
        threading.Thread(target=tell, daemon=True).start()
    teamwork.LOOK_SECONDS = 0.0
    with pytest.raises(Stopped) as caught:
        teach(folder, dataset, waits)
    newest = max(Path(folder, "small/checkpoints/teach/teacher-1").glob("step-*"))
    state = read_json(newest / "state.json")
    return [caught.value.code, state["epoch"], state["step"]]


def killed(rank: int, world_size: int, folder: str, dataset: str) -> None:
    """Rank 1 is killed in its first epoch, when rank 0 has nothing to train."""

    def at_epoch(trainer: Trainer) -> None:
        if rank == 1:
            wait_for(Path(folder, offered(0)))
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RankFailure) as caught:
        teach(folder, dataset, [], at_epoch=at_epoch)
    Path(folder, "said").write_text(str(caught.value))


def killed_quietly(rank: int, world_size: int, *arguments: Any) -> None:
    """Rank 1 is killed before teacher-1's last epoch."""

    def at_epoch(trainer: Trainer) -> None:
        if rank == 1 and trainer.state.epoch == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    teach(*arguments, at_epoch=at_epoch, timeout_minutes=0.05)


def member(folder: Path, number: int) -> dict[str, Any]:
    return read_json(folder / f"small/teachers/teacher-{number}/metrics.json")


def curve(folder: Path, number: int) -> torch.Tensor:
    values = [[e["loss"], e["valid"]["ndcg@10"], e["num_examples"]] for e in member(folder, number)["epochs"]]
    return torch.tensor(values, dtype=torch.float64)


def sizes(folder: Path, number: int) -> list[int]:
    """How many ranks trained each epoch."""
    return [epoch["num_ranks"] for epoch in member(folder, number)["epochs"]]


def points(folder: Path, number: int) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # ranks need not load it

    log = EventAccumulator(str(folder / f"small/tensorboard/teach/teacher-{number}")).Reload()
    return {event.step: event.value for event in log.Scalars("train/loss")}


@pytest.fixture(scope="module")
def alone(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three members, trained by one process."""
    folder = tmp_path_factory.mktemp("alone")
    teach(str(folder), str(small_dataset), [], THREE)
    return folder


def assert_equal(folder: Path, alone: Path, members: range) -> None:
    for number in members:
        torch.testing.assert_close(curve(folder, number), curve(alone, number), rtol=0, atol=1e-4)


def test_a_rank_whose_member_is_trained_joins_the_other_at_the_end_of_an_epoch(
    small_dataset: Path, alone: Path, tmp_path: Path
) -> None:
    waits = [(offered(0), "teacher-1", 0)]
    run_ranks(teach_ranks, 2, str(tmp_path), str(small_dataset), waits)
    assert_equal(tmp_path, alone, range(2))
    assert sizes(tmp_path, 0) == [1]
    assert sizes(tmp_path, 1) == [1, 2, 2, 2]
    assert member(tmp_path, 0)["trained_by"]["ranks"] == [0]
    assert member(tmp_path, 1)["trained_by"]["ranks"] == [0, 1]
    assert points(tmp_path, 1) == pytest.approx(points(alone, 1), abs=1e-4)
    left = (tmp_path / "small/checkpoints/teach").glob("*/*")
    assert sorted(path.parent.name for path in left) == ["teacher-0", "teacher-1"], "the last one of each is kept"


def test_three_members_on_two_ranks_need_no_rounds(small_dataset: Path, alone: Path, tmp_path: Path) -> None:
    """teacher-1 does not end its first epoch before teacher-2 is trained, which rank 0 takes without it."""
    waits = [(offered(0), "teacher-1", 0)]
    run_ranks(teach_ranks, 2, str(tmp_path), str(small_dataset), waits, THREE)
    assert_equal(tmp_path, alone, range(3))
    assert member(tmp_path, 2)["trained_by"]["ranks"] == [0]
    assert sizes(tmp_path, 1) == [1, 2, 2, 2]


def test_a_team_that_has_grown_joins_another_one_as_a_whole(small_dataset: Path, alone: Path, tmp_path: Path) -> None:
    waits = [(offered(0), "teacher-1", 0), (offered(0, 2), "teacher-2", 0), (offered(1), "teacher-2", 0)]
    run_ranks(teach_ranks, 3, str(tmp_path), str(small_dataset), waits, THREE)
    assert_equal(tmp_path, alone, range(3))
    assert (sizes(tmp_path, 1), sizes(tmp_path, 2)) == ([1, 2, 2, 2], [1, 3])


def test_killed_after_ranks_have_joined_and_resumed_at_3_ranks(
    small_dataset: Path, alone: Path, tmp_path: Path
) -> None:
    waits = [(offered(0), "teacher-1", 0)]
    run_ranks(cut_off, 2, str(tmp_path), str(small_dataset), waits)
    assert not (tmp_path / "small/teachers/teacher-1").exists()
    run_ranks(teach_ranks, 3, str(tmp_path), str(small_dataset), [])
    assert_equal(tmp_path, alone, range(2))
    assert sizes(tmp_path, 1) == [1, 2, 2, 3]


def test_a_signal_to_a_rank_that_waits_stops_all_with_a_checkpoint(
    small_dataset: Path, alone: Path, tmp_path: Path
) -> None:
    found = run_ranks(signalled, 2, str(tmp_path), str(small_dataset), [("told", "teacher-1", 0)])
    assert found[0] == found[1]
    status, epoch, step = found[0]
    assert status == 143
    assert epoch == 0 or (epoch, step) == (1, 1), "within the epoch, or a step later where the rank was slower"
    teach(str(tmp_path), str(small_dataset), [])
    assert_equal(tmp_path, alone, range(2))


def test_a_rank_that_waits_notices_that_another_one_has_died(small_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="rank 1 died"):
        run_ranks(killed, 2, str(tmp_path), str(small_dataset))
    said = (tmp_path / "said").read_text()
    assert "in waiting to help of ranks 0, 1 and gave up (rank 1 has died)" in said
    assert "Rank 1 gives no sign of life; it was last seen in stage" in said


def test_members_that_keep_their_ranks_are_bit_equal_also_when_resumed(small_dataset: Path, tmp_path: Path) -> None:
    settings = ["distributed.reassign=false", "model.dropout=0.3"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    run_ranks(teach_ranks, 2, str(whole), str(small_dataset), [], *settings)
    waits = [("small/teachers/teacher-0/metrics.json", "teacher-1", 0)]
    with pytest.raises(AssertionError, match=r"RankFailure|died"):
        run_ranks(killed_quietly, 2, str(cut), str(small_dataset), waits, *settings)
    assert (cut / "small/teachers/teacher-0").exists()
    run_ranks(teach_ranks, 2, str(cut), str(small_dataset), [], *settings)
    weights = [(folder / "small/teachers/teacher-1/model.safetensors").read_bytes() for folder in (whole, cut)]
    assert weights[0] == weights[1]
    assert sizes(cut, 1) == [1] * 4
