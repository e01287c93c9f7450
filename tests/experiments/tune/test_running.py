"""Searches of real runs: what trials share and leave out, how they end, and that none is lost or counted twice."""

import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from csrec_dist.cli import main
from csrec_dist.config import load_config
from csrec_dist.distributed import Runtime
from csrec_dist.errors import UserError
from csrec_dist.experiments.tune import Tuning, tune
from csrec_dist.experiments.tune import trials as trials_module
from csrec_dist.experiments.tune.running import do_trials
from csrec_dist.experiments.tune.search import make_search
from csrec_dist.experiments.tune.trials import Proposal, Trial
from csrec_dist.files import read_json, sha256_file, write_record
from csrec_dist.lock import FolderLock
from csrec_dist.models import TrainingInputs, TrainingStates
from csrec_dist.models.gru4rec import GRU4Rec
from csrec_dist.runs.run import Run
from tests.helpers.ranks import run_ranks
from tests.helpers.searches import CONFIG, SPACE, after, small_search, write_search
from tests.helpers.training_streams import at_each_batch

NUM_TRIALS = 8


@pytest.fixture(scope="module")
def whole(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(["tune", *write_search(folder, small_log), "--trials", str(NUM_TRIALS)]) == 0
    return folder / "small"


def timeless(trials: list[Trial]) -> list[Trial]:
    return [replace(trial, seconds=0.0) for trial in trials]


def test_trials_share_dataset_teachers_and_labels(whole: Path) -> None:
    runs = [whole / f"runs/trial-{number:03d}" for number in range(NUM_TRIALS)]
    for shared in ("dataset", "teachers", "labels"):
        assert [(run / shared).is_symlink() for run in runs] == [False, *[True] * (NUM_TRIALS - 1)]
    values = {Run.open(run).config.training.temperature for run in runs}
    assert len(values) == NUM_TRIALS


def test_trials_are_runs_of_their_values_pruned_or_trained_to_their_end(whole: Path) -> None:
    tuning = Tuning(whole)
    assert {trial.state for trial in tuning.trials} == {"complete", "pruned"}
    for trial in tuning.trials:
        run = Run.open(whole / "runs" / trial.name)
        training = run.config.training
        assert trial.values == {
            "training.temperature": training.temperature,
            "training.beta": training.beta,
            "training.kl": training.kl,
        }
        is_complete = trial.state == "complete"
        assert (run.record("distill") is not None) == is_complete == (trial.num_epochs == 4)
        assert (run.folder / "checkpoints/distill").exists() == is_complete
        if is_complete:
            epochs = run.trainings["student"]["epochs"]
            assert trial.value == max(epoch["valid"]["ndcg@10"] for epoch in epochs)


def test_no_test_row_is_read(whole: Path, small_log: Path, tmp_path: Path) -> None:
    """The rows are overwritten once they are prepared: nobody minds but an evaluation."""
    arguments = ["tune", *write_search(tmp_path, small_log)]
    assert main([*arguments, "--trials", "1"]) == 0
    runs = tmp_path / "small/runs"
    description = runs / "trial-000/dataset/dataset.json"
    info = read_json(description)
    for shard in description.parent.glob("test-*.parquet"):
        shard.write_bytes(b"no rows")
        info["files"][shard.name] = sha256_file(shard)
    write_record(description, info)
    assert main([*arguments, "--trials", "3"]) == 0
    assert timeless(Tuning(tmp_path / "small").trials) == timeless(Tuning(whole).trials[:3])
    assert not [*runs.glob("*/metrics.json"), *runs.glob("*/ranks"), *runs.glob("*/evaluate.done.json")]
    config = load_config(tmp_path / "small.yaml", [f"output={runs}", "name=trial-000"])
    written = read_json(runs / "trial-000/student/metrics.json")
    assert {name for epoch in written["epochs"] for name in epoch["valid"]} == {"recall@10", "ndcg@10", "mrr@10", "mrr"}
    assert Run.of(config).missing == ["evaluate"]


def test_the_best_config_is_one_that_run_takes(whole: Path, tmp_path: Path) -> None:
    best = Tuning(whole).best
    assert best is not None
    assert main(["run", "--config", str(whole / "best.yaml"), "--set", f"output={tmp_path}"]) == 0
    run = Run.open(tmp_path / "small_best")
    assert run.metrics["valid"]["ndcg@10"] == best.value, "the same training, to the bit"
    assert {
        f"training.{key}": getattr(run.config.training, key) for key in ("temperature", "beta", "kl")
    } == best.values


def kill_at(rank: int, world_size: int, folder: str, log: str, num_batches: int) -> None:
    """Search, and be killed by the system at a batch of some training."""
    search = small_search(Path(folder), Path(log), NUM_TRIALS)
    with at_each_batch(after(num_batches, partial(os.kill, os.getpid(), signal.SIGKILL))):
        do_trials(search, Runtime.start(), print)


@pytest.mark.parametrize(
    ("num_batches", "begun"),
    [
        pytest.param(26, "trial-000/teachers/teacher-0/metrics.json", marks=pytest.mark.long),
        (42, "trial-000/checkpoints/distill/step-*"),
        (58, "trial-001/checkpoints/distill/step-*"),
    ],
)
def test_a_search_that_is_killed_goes_on_by_the_same_command(
    whole: Path, small_log: Path, tmp_path: Path, num_batches: int, begun: str
) -> None:
    """In a member, in the first student and in a later one; nothing is lost or counted twice."""
    with pytest.raises(AssertionError, match="exit code -9"):
        run_ranks(kill_at, 1, str(tmp_path), str(small_log), num_batches)
    runs = tmp_path / "small/runs"
    assert [*runs.glob(begun)]
    assert not (runs / begun.partition("/")[0] / "distill.done.json").exists()
    assert main(["tune", *write_search(tmp_path, small_log), "--trials", str(NUM_TRIALS)]) == 0
    assert timeless(Tuning(tmp_path / "small").trials) == timeless(Tuning(whole).trials)


def search_on(rank: int, world_size: int, folder: str, log: str) -> None:
    """The same search, on all ranks, each of which can read the results."""
    place = Path(folder) / f"given-{rank}"
    search = replace(small_search(place, Path(log), NUM_TRIALS), folder=Path(folder) / "small")
    do_trials(search, Runtime.start(), print)
    assert len(Tuning(search.folder).trials) == NUM_TRIALS


def test_ranks_agree_on_what_is_tried_and_pruned(whole: Path, small_log: Path, tmp_path: Path) -> None:
    run_ranks(search_on, 2, str(tmp_path), str(small_log))
    for one, two in zip(Tuning(whole).trials, Tuning(tmp_path / "small").trials, strict=True):
        assert (one.values, one.state, one.num_epochs) == (two.values, two.state, two.num_epochs)
        assert two.value == pytest.approx(one.value, abs=1e-4)


def test_values_that_exclude_each_other_fail_and_the_search_goes_on(small_log: Path, tmp_path: Path) -> None:
    space = {"labels.form": ["factored", "topk"], "training.kl": ["reverse", "forward"]}
    values = yaml.safe_load(CONFIG.format(log=small_log))
    values["training"]["max_epochs"] = 1
    tuning = tune(values, space, trials=9, output=tmp_path)
    failed = [trial for trial in tuning.trials if trial.state == "failed"]
    assert len(tuning.trials) == 4
    assert [trial.values for trial in failed] == [{"labels.form": "topk", "training.kl": "reverse"}]
    assert "labels.form: topk stores only some items of a row" in failed[0].reason
    assert "labels.form: topk stores only some" in (tmp_path / "small/tuning.md").read_text()


def test_values_that_are_refused_at_work_fail_and_the_search_goes_on(small_log: Path, tmp_path: Path) -> None:
    """A share of less than a window is refused as the members are trained."""
    values = yaml.safe_load(CONFIG.format(log=small_log)) | {"method": "data_level"}
    values["training"]["max_epochs"] = 1
    tuning = tune(values, {"teachers.sample": [0.001, 0.5]}, trials=2, output=tmp_path, seed=5000)
    assert {trial.values["teachers.sample"]: trial.state for trial in tuning.trials} == {
        0.001: "failed",
        0.5: "complete",
    }
    (failed,) = [trial for trial in tuning.trials if trial.state == "failed"]
    assert "is less than one window" in failed.reason
    with pytest.raises(UserError, match=r"none\.csv"):
        tune(values | {"name": "other", "dataset": {"source": "none.csv"}}, {"teachers.sample": [0.5]}, output=tmp_path)


def test_trainings_that_diverge_are_failed_trials(
    small_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = GRU4Rec.training_states

    def infinite(model: GRU4Rec, inputs: TrainingInputs) -> TrainingStates:
        given = real(model, inputs)
        return given._replace(states=given.states * torch.inf)

    monkeypatch.setattr(GRU4Rec, "training_states", infinite)
    values = yaml.safe_load(CONFIG.format(log=small_log)) | {"method": "base"}
    tuning = tune(values, {"training.learning_rate": [0.01, 0.02]}, trials=2, output=tmp_path)
    assert [trial.state for trial in tuning.trials] == ["failed", "failed"]
    assert all("the training diverged" in trial.reason for trial in tuning.trials)
    assert repr(tuning).endswith("2 trials; none complete)")
    assert "No trial is complete yet." in (tmp_path / "small/tuning.md").read_text()
    assert not (tmp_path / "small/best.yaml").exists()


def test_the_function_takes_values_and_goes_on(small_log: Path, tmp_path: Path) -> None:
    values, space = yaml.safe_load(CONFIG.format(log=small_log)), yaml.safe_load(SPACE)
    values["training"]["max_epochs"] = 1
    first = tune(values, space, trials=1, output=tmp_path)
    tuning = tune(values, space, trials=2, output=tmp_path, prune=False)
    assert tuning.trials[0] == first.trials[0]
    assert len(tuning.trials) == 2
    assert tuning.best is not None
    assert tuning.best_config["training"]["temperature"] == tuning.best.values["training.temperature"]
    assert repr(tuning).startswith(f"Tuning({tmp_path / 'small'}: 2 trials; best Validation NDCG@10 0.")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"trials": 0}, "needs at least one trial, not 0"),
        ({"seed": -1}, "The seed of a search is 0 to 2³¹ - 1, not -1"),
        ({"config": {"name": "r", "modle": "sasrec"}}, "modle: unknown key; did you mean model?"),
        ({"space": {"training.beta": [2]}}, "less than or equal to 1"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(
    small_log: Path, tmp_path: Path, setting: dict[str, Any], said: str
) -> None:
    given: dict[str, Any] = {"config": yaml.safe_load(CONFIG.format(log=small_log)), "space": yaml.safe_load(SPACE)}
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        tune(**(given | setting), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", [{}, {"model": None}, {"model": "sasrec"}])
def test_the_width_of_a_model_that_is_not_said_is_searched(
    small_log: Path, tmp_path: Path, model: dict[str, Any]
) -> None:
    values = {"name": "r", "dataset": {"source": str(small_log)}, **model}
    search = make_search(values, {"model.width": [8]}, {}, num_trials=1, output=tmp_path, seed=0, prunes=True)
    config = search.config(Proposal("trial-000", {"model.width": 8}))
    assert (config.model.name, config.model.width) == ("sasrec", 8)


def test_a_folder_of_other_things_is_left_alone(small_log: Path, tmp_path: Path) -> None:
    search = small_search(tmp_path, small_log, 1)
    search.folder.mkdir()
    (search.folder / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"contains no search, but thesis.tex. Give another --output"):
        do_trials(search, Runtime.start(), print)
    assert [path.name for path in search.folder.iterdir()] == ["thesis.tex"]


def test_two_processes_do_not_search_in_one_folder(small_log: Path, tmp_path: Path) -> None:
    search = small_search(tmp_path, small_log, 1)
    other = FolderLock(search.folder, "The search's folder")
    other.acquire()
    try:
        with pytest.raises(UserError, match=f"is in use by process {os.getpid()}"):
            do_trials(search, Runtime.start(), print)
    finally:
        other.release()


def test_without_optuna_it_says_how_to_get_it(small_log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials_module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install optuna"):
        small_search(tmp_path, small_log, 1)
