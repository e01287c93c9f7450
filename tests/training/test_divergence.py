"""A training that diverges ends at the next look at its loss, on all ranks, and leaves the last good checkpoint."""

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from csrec_dist.cli import main
from csrec_dist.config import load_config
from csrec_dist.distributed import Runtime
from csrec_dist.errors import UserError
from csrec_dist.files import read_json
from csrec_dist.models import TrainingInputs, TrainingStates
from csrec_dist.models.gru4rec import GRU4Rec
from csrec_dist.runs.pipeline import execute
from csrec_dist.training import step_seed
from csrec_dist.training.stepping import SHARED_STREAM
from tests.helpers.ranks import run_ranks

RUN = """
name: small
dataset: {path: %s}
model: {name: gru4rec, width: 8, dropout: 0}
method: base
training: {batch_size: 7, max_epochs: 2, learning_rate: 0.01, checkpoint_steps: 2, keep_checkpoints: 1}
"""
LAST_GOOD = "step-000000004-epoch-00000"


@contextmanager
def broken_at(step: int, part: str) -> Iterator[None]:
    """The loss, or only the gradient, of this step (from 1) is not finite."""
    real, seed = GRU4Rec.training_states, step_seed(0, step - 1, SHARED_STREAM)

    def training_states(model: GRU4Rec, inputs: TrainingInputs) -> TrainingStates:
        given = real(model, inputs)
        if inputs.seed != seed:
            return given
        if part == "loss":
            return given._replace(states=given.states * torch.inf)
        given.states.register_hook(lambda gradient: gradient * torch.nan)
        return given

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRU4Rec, "training_states", training_states)
        yield


def write_config(folder: Path, dataset: Path, *settings: str, output: Path | None = None) -> list[str]:
    """Arguments of the command line."""
    (folder / "config.yaml").write_text(RUN % dataset)
    return [part for setting in (f"output={output or folder}", *settings) for part in ("--set", setting)]


def run(folder: Path, dataset: Path, *settings: str) -> Path:
    write_config(folder, dataset)
    return execute(load_config(folder / "config.yaml", [f"output={folder}", *settings]), Runtime.start()).folder


def assert_last_good_is_kept(folder: Path) -> None:
    (checkpoint,) = (folder / "small/checkpoints/distill").iterdir()
    assert checkpoint.name == LAST_GOOD
    for part in checkpoint.glob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(part).values())
    assert read_json(checkpoint / "state.json")["total_steps"] == 4


@pytest.mark.parametrize(
    ("part", "broken", "log_steps", "step", "what"),
    [
        ("loss", 5, 5, 5, "the loss is"),  # a point of the curve
        ("loss", 5, 1000, 6, "the loss is"),  # a checkpoint
        ("gradient", 6, 1000, 6, "weights are"),  # a checkpoint of weights that no loss has shown yet
        ("gradient", 5, 6, 6, "the loss is"),
    ],
)
def test_it_ends_at_the_next_look_and_a_resumed_run_is_the_unbroken_one(
    small_dataset: Path, tmp_path: Path, part: str, broken: int, log_steps: int, step: int, what: str
) -> None:
    settings = f"training.log_steps={log_steps}"
    folder, whole = tmp_path / "broken", tmp_path / "whole"
    folder.mkdir()
    whole.mkdir()
    message = (
        rf"distill: {what} NaN or infinite at step {step} .*training\.learning_rate \(0\.01 now\).*clip_norm \(null"
    )
    with broken_at(broken, part), pytest.raises(UserError, match=message):
        run(folder, small_dataset, settings)
    assert_last_good_is_kept(folder)
    weights = "student/model.safetensors"
    assert (run(folder, small_dataset, settings) / weights).read_bytes() == (
        run(whole, small_dataset, settings) / weights
    ).read_bytes()


@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_the_last_step_of_an_epoch_is_looked_at(small_dataset: Path, tmp_path: Path, part: str) -> None:
    settings = ("training.checkpoint_steps=null", "training.max_steps=4", "training.log_steps=1000")
    with broken_at(4, part), pytest.raises(UserError, match="NaN or infinite at step 4 "):
        run(tmp_path, small_dataset, *settings)
    assert not (tmp_path / "small/student").exists()


def diverge(rank: int, world_size: int, folder: str, dataset: str, settings: list[str]) -> tuple[int, str]:
    """Exit status and stderr of a command whose loss is infinite at step 5 on the last rank alone."""
    arguments = write_config(Path(folder) / str(rank), Path(dataset), *settings, output=Path(folder))
    said = io.StringIO()
    broken = broken_at(5, "loss") if rank == world_size - 1 else contextlib.nullcontext()
    with broken, contextlib.redirect_stderr(said):
        status = main(["run", "--config", str(Path(folder) / str(rank) / "config.yaml"), *arguments])
    return status, said.getvalue()


@pytest.mark.parametrize(
    ("world_size", "settings"), [(2, ["training.log_steps=5"]), (3, []), (2, ["distributed.catalog_parallel=2"])]
)
def test_all_ranks_end_alike_and_one_says_why(
    small_dataset: Path, tmp_path: Path, world_size: int, settings: list[str]
) -> None:
    for rank in range(world_size):
        (tmp_path / str(rank)).mkdir()
    found = run_ranks(diverge, world_size, str(tmp_path), str(small_dataset), settings)
    assert [status for status, _ in found] == [2] * world_size
    first, *others = (said for _, said in found)
    assert first.count("csrec-dist: distill: the loss is NaN or infinite at step") == 1
    assert not any("infinite" in said for said in others)
    assert_last_good_is_kept(tmp_path)
