"""A training that was cut off anywhere, however often, ends with the bytes of an unbroken one, for every model."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

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


class KilledError(Exception):
    """A training ends here at once, without another checkpoint."""


def kill(*_: object) -> NoReturn:
    raise KilledError


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


@contextmanager
def cut_in(step: int, cut: Callable[[], object] = terminate) -> Iterator[None]:
    """In the block this process is cut off as it begins its step number `step`; told by SIGTERM, it ends after it."""
    real, begun = Stepper.train, 0

    def train(*arguments: Any) -> Loss:
        nonlocal begun
        begun += 1
        if begun == step:
            cut()
        return real(*arguments)

    # A signal in the last step takes effect when the model has been saved, as it would have without a training.
    before = signal.signal(signal.SIGTERM, kill)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Stepper, "train", train)
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def config_of(model: str, dataset: Path, output: Path, **training: Any) -> Config:
    return parse_config(
        {
            "name": "r",
            "output": str(output),
            "dataset": {"path": str(dataset)},
            "model": {"name": model, "width": 32},
            "method": "base",
            "training": {"batch_size": 16, "max_epochs": 2, "learning_rate": 0.01, **training},
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
            with cut_in(step), pytest.raises(Stopped):
                train(cut)
            newest = read_json(max((Run.of(cut).folder / "checkpoints/distill").glob("step-*")) / "state.json")
            assert [newest["epoch"], newest["step"]] == place
        assert train(cut) == whole
    environments = read_json(Run.of(cut).folder / "student/metrics.json")["environments"]
    assert [each["threads"] for each in environments] == [num_threads]


MOST_STEPS = 5  # of a start: an epoch, of two
CUTS = st.lists(st.tuples(st.integers(1, MOST_STEPS), st.sampled_from([terminate, kill])), min_size=1, max_size=4)
CHECKPOINTS = st.fixed_dictionaries(
    {"checkpoint_steps": st.sampled_from([1, 2, 3, None]), "keep_checkpoints": st.integers(1, 3)}
)


@pytest.fixture(scope="module")
def unbroken(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """A function from a model's name to the bytes that an unbroken training of it ends with."""

    @cache
    def bytes_of(model: str) -> bytes:
        return train(config_of(model, small_dataset, tmp_path_factory.mktemp(model)))

    return bytes_of


def assert_resumes(
    model: str,
    dataset: Path,
    whole: bytes,
    cuts: list[tuple[int, Callable[[], object]]],
    checkpoints: dict[str, int | None],
) -> None:
    """Cut a training off at these steps of its starts, one after the other, and let the last start end."""
    with TemporaryDirectory() as folder:
        config, num_cut = config_of(model, dataset, Path(folder), **checkpoints), 0
        for step, cut in cuts:
            try:
                with cut_in(step, cut):
                    train(config)
            except (Stopped, KilledError):
                num_cut += 1
        event(f"cut off {num_cut} times")
        assert train(config) == whole


@given(cuts=CUTS, checkpoints=CHECKPOINTS)
@settings(max_examples=6)
def test_cut_off_anywhere_and_however_often_it_ends_with_the_bytes_of_an_unbroken_training(
    small_dataset: Path, unbroken: Callable[[str], bytes], cuts: Any, checkpoints: Any
) -> None:
    assert_resumes("gru4rec", small_dataset, unbroken("gru4rec"), cuts, checkpoints)


@pytest.mark.long
@given(model=st.sampled_from(sorted(MODELS)), cuts=CUTS, checkpoints=CHECKPOINTS)
@settings(max_examples=200)
def test_each_model_cut_off_anywhere_ends_with_the_bytes_of_an_unbroken_training(
    small_dataset: Path, unbroken: Callable[[str], bytes], model: str, cuts: Any, checkpoints: Any
) -> None:
    assert_resumes(model, small_dataset, unbroken(model), cuts, checkpoints)


def test_another_number_of_threads_is_said_and_recorded(
    small_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of("gru4rec", small_dataset, tmp_path)
    with cut_in(1), pytest.raises(Stopped):
        train(config)
    with threads(2):
        train(config)
    assert "resumes in another environment: threads was 1, is 2." in " ".join(capsys.readouterr().out.split())
    environments = read_json(Run.of(config).folder / "student/metrics.json")["environments"]
    assert [each["threads"] for each in environments] == [1, 2]
