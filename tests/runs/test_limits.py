"""Limits raised after a training has ended or was stopped: it goes on, and ends with the bits of an unbroken one."""

import math
from pathlib import Path

import pytest

from csrec_dist.cli import main
from csrec_dist.config import load_config
from csrec_dist.data.dataset import Split
from csrec_dist.distributed import Runtime
from csrec_dist.files import read_json
from csrec_dist.runs.pipeline import execute
from csrec_dist.runs.run import Run
from csrec_dist.training.defaults import resolve
from csrec_dist.training.limits import exceeded, num_epochs
from csrec_dist.training.options import ResolvedTraining, TrainingOptions
from tests.helpers.finished_runs import content, refused
from tests.helpers.ranks import run_ranks
from tests.runs.test_restarts import KilledError, killed_after

CONFIG = """
name: r
dataset: {{source: {log}, window: 8, min_interactions: 3, num_shards: 4}}
model: {{name: sasrec, width: 8, inner_width: 8, dropout: 0.3}}
training: {{batch_size: 16, max_epochs: 2, learning_rate: 0.01, checkpoint_steps: 2}}
"""
ROBUST = ["--set", "method=training_level", "--set", "teachers={noise_rank: 2}"]
FEW = ["--set", "training.patience=1"]


@pytest.fixture
def config(small_log: Path, tmp_path: Path) -> str:
    (tmp_path / "config.yaml").write_text(CONFIG.format(log=small_log))
    return str(tmp_path / "config.yaml")


def run(config: str, output: str, *settings: str) -> Path:
    """A whole run with these settings; its folder."""
    parsed = load_config(config, [f"output={Path(config).parent / output}", *settings[1::2]])
    return execute(parsed, Runtime.start()).folder


def arguments(config: str, output: str, *settings: str) -> list[str]:
    return ["run", "--config", config, "--set", f"output={Path(config).parent / output}", *settings]


def weights(folder: Path) -> dict[str, str]:
    """Of all models, and of the labels."""
    return {
        name: digest
        for name, digest in content(folder).items()
        if name.endswith(".safetensors") and name.split("/")[0] in ("student", "teachers", "labels")
    }


def curves(folder: Path) -> dict[str, list[object]]:
    trained = Run.open(folder).trainings
    return {name: [(each["loss"], each["valid"]) for each in found["epochs"]] for name, found in trained.items()}


def raised(epochs: int) -> list[str]:
    return ["--set", f"training.max_epochs={epochs}"]


@pytest.mark.parametrize(
    "method", [["--set", "method=base"], [], ROBUST], ids=["base", "model_level", "training_level"]
)
def test_raised_epochs_end_with_the_bits_of_an_unbroken_run(config: str, method: list[str]) -> None:
    unbroken = run(config, "unbroken", *method, *raised(4))
    cut = run(config, "cut", *method)
    assert weights(cut) != weights(unbroken)
    run(config, "cut", *method, *raised(4))
    assert weights(cut) == weights(unbroken)
    assert curves(cut) == curves(unbroken)
    assert read_json(cut / "metrics.json") == read_json(unbroken / "metrics.json")
    assert not (cut / "restart").exists()
    assert Run.open(cut).config.training.max_epochs == 4


def test_raised_patience_goes_on_and_more_of_what_did_not_end_it_changes_nothing(config: str) -> None:
    patient = [*raised(12), "--set", "training.patience=3", "--set", "training.learning_rate=0.1"]
    impatient = [*patient[:2], "--set", "training.patience=1", *patient[4:]]
    base = ["--set", "method=base"]
    unbroken = run(config, "unbroken", *base, *patient)
    cut = run(config, "cut", *base, *impatient)
    num = len(Run.open(cut).trainings["student"]["epochs"])
    assert num < len(Run.open(unbroken).trainings["student"]["epochs"]), "patience ended it"
    with killed_after(0):
        run(config, "cut", *base, *impatient, "--set", "training.log_steps=3", "--set", "training.keep_checkpoints=1")
        run(config, "cut", *base, *raised(50), *impatient[2:])
        run(config, "cut", *base, *raised(num), *impatient[2:])
    run(config, "cut", *base, *patient)
    assert weights(cut) == weights(unbroken)


def test_a_raised_run_that_is_cut_off_goes_on_and_leaves_the_old_model_until_then(config: str) -> None:
    base = ["--set", "method=base"]
    unbroken = run(config, "unbroken", *base, *raised(4))
    cut = run(config, "cut", *base)
    before = weights(cut)
    with killed_after(1), pytest.raises(KilledError):
        run(config, "cut", *base, *raised(4))
    assert weights(cut) == before
    assert Run.open(cut).missing == []
    with killed_after(0):
        run(config, "cut", *base)
    run(config, "cut", *base, *raised(4))
    assert weights(cut) == weights(unbroken)
    assert curves(cut) == curves(unbroken)


def test_limits_raised_after_a_stop_go_on_at_once(config: str) -> None:
    unbroken = run(config, "unbroken", *raised(4))
    with killed_after(12), pytest.raises(KilledError):
        run(config, "cut")
    cut = run(config, "cut", *raised(4))
    assert weights(cut) == weights(unbroken)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("is_stopped", [True, False])
def test_a_schedule_that_depends_on_max_epochs_keeps_it(
    config: str, capsys: pytest.CaptureFixture[str], schedule: str, is_stopped: bool
) -> None:
    settings = ["--set", "method=base", "--set", f"training.schedule={schedule}"]
    with killed_after(3 if is_stopped else 1000):
        try:
            main(arguments(config, "o", *settings))
        except KilledError:
            assert is_stopped
    before = content(Path(config).parent)
    said = refused(capsys, *arguments(config, "o", *settings, *raised(4)))
    assert f"training.max_epochs was 2, is 4 (with schedule {schedule} every learning rate depends on it)" in said
    assert content(Path(config).parent) == before
    if not is_stopped:
        run(config, "o", *settings, "--set", "training.patience=50")


def test_fewer_epochs_than_were_trained_are_refused(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(config, "o")
    before = content(Path(config).parent)
    said = refused(capsys, *arguments(config, "o", *raised(1)))
    assert "training.max_epochs is 1, with which the training would have ended after 1 epochs; 2 are done" in said
    assert content(Path(config).parent) == before


def options(**limits: int) -> ResolvedTraining:
    given = TrainingOptions.model_validate({"max_epochs": 100, "patience": 2} | limits)
    return resolve(given, Split("train", (9,), (9,)))


def epochs(*values: float) -> list[dict[str, object]]:
    return [{"valid": {"ndcg@10": value}, "step": 10 * number} for number, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("values", "limits", "ended"),
    [
        ([], {}, None),
        ([0.1, 0.2], {}, None),
        ([0.1, 0.2], {"max_epochs": 2}, 2),
        ([0.1, 0.2, 0.3], {"max_epochs": 2}, 2),
        ([0.3, 0.2, 0.3], {}, 3),
        ([0.3, math.nextafter(0.3, 1), 0.3], {}, 3),  # equal but for the order of its sums
        ([0.3, 0.2, 0.31, 0.1, 0.1, 0.9], {}, 5),
        ([0.1, 0.2, 0.3], {"max_steps": 15}, 2),
    ],
)
def test_when_a_training_ends(values: list[float], limits: dict[str, int], ended: int | None) -> None:
    assert num_epochs(epochs(*values), options(**limits)) == ended
    is_beyond = ended is not None and ended < len(values)
    assert (exceeded(epochs(*values), False, options(**limits)) is not None) is is_beyond
    assert (exceeded(epochs(*values), True, options(**limits)) is not None) is (ended is not None)


def on_ranks(rank: int, world_size: int, config: str, output: str, settings: list[str]) -> None:
    run(config, output, "--set", "distributed.reassign=false", *settings)


def test_raised_epochs_on_two_ranks_end_with_the_bits_of_an_unbroken_run(config: str) -> None:
    for output, starts in (("unbroken", [raised(3)]), ("cut", [[], raised(3)])):
        for settings in starts:
            run_ranks(on_ranks, 2, config, output, settings)
    unbroken, cut = (Path(config).parent / output / "r" for output in ("unbroken", "cut"))
    assert weights(cut) == weights(unbroken)
    assert not (cut / "restart").exists()
