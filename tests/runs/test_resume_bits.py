"""Every model, stopped twice in mid-epoch, ends with the bytes of an unbroken training, on one thread and on two."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from csrec_dist.config import Config, parse_config
from csrec_dist.distributed import Runtime
from csrec_dist.files import read_json
from csrec_dist.losses import Loss
from csrec_dist.models import MODELS
from csrec_dist.runs.pipeline import execute
from csrec_dist.runs.run import Run
from csrec_dist.training import Stopped
from csrec_dist.training.stepping import Stepper


@contextmanager
def threads(num: int) -> Iterator[None]:
    """In the block torch computes with that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def stopped_in(step: int) -> Iterator[None]:
    """In the block this process gets SIGTERM as it begins its step number `step` and is to end after it."""
    real, begun = Stepper.train, 0

    def train(*arguments: Any) -> Loss:
        nonlocal begun
        begun += 1
        if begun == step:
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "train", train)
        yield


def config_of(model: str, dataset: Path, output: Path) -> Config:
    return parse_config(
        {
            "name": "r",
            "output": str(output),
            "dataset": {"path": str(dataset)},
            "model": {"name": model, "width": 32},
            "method": "base",
            "training": {"batch_size": 16, "max_epochs": 2, "learning_rate": 0.01},
            "evaluation": {"top_n": [10], "lists": False, "calibration": False},
        }
    )


def train(config: Config) -> bytes:
    """The bytes of a run's student."""
    execute(config, Runtime.start(), ["prepare", "distill"])
    return (Run.of(config).folder / "student/model.safetensors").read_bytes()


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_stopped_twice_in_mid_epoch_ends_with_the_bytes_of_an_unbroken_training(
    model: str, num_threads: int, small_dataset: Path, tmp_path: Path
) -> None:
    with threads(num_threads):
        whole = train(config_of(model, small_dataset, tmp_path / "whole"))
        cut = config_of(model, small_dataset, tmp_path / "cut")
        for step, place in ((2, [0, 2]), (6, [1, 3])):
            with stopped_in(step), pytest.raises(Stopped):
                train(cut)
            newest = read_json(max((Run.of(cut).folder / "checkpoints/distill").glob("step-*")) / "state.json")
            assert [newest["epoch"], newest["step"]] == place
        assert train(cut) == whole
    environments = read_json(Run.of(cut).folder / "student/metrics.json")["environments"]
    assert [each["threads"] for each in environments] == [num_threads]


def test_another_number_of_threads_is_said_and_recorded(
    small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of("gru4rec", small_dataset, tmp_path)
    with stopped_in(1), pytest.raises(Stopped):
        train(config)
    with threads(2):
        train(config)
    assert "resumes in another environment: threads was 1, is 2." in " ".join(capsys.readouterr().out.split())
    environments = read_json(Run.of(config).folder / "student/metrics.json")["environments"]
    assert [each["threads"] for each in environments] == [1, 2]
