"""Stages: what is done stays, what was cut off goes on, what does not fit is refused before anything is removed."""

import shutil
from pathlib import Path

import pytest

from csrec_dist.cli import main
from csrec_dist.files import read_json
from tests.helpers.finished_runs import CONFIG, content, refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--restart", "prepare", "--set", "dataset.source=nowhere.csv"], "nowhere.csv"),
        (
            ["run", "--restart", "distill", "--set", "training.learning_rate=0.1"],
            "training.learning_rate was 0.01, is 0.1",
        ),
        (["evaluate", "--restart", "prepare"], "this command does evaluate"),
        (["run", "--restart", "polish"], "this command does"),
        (["run", "--set", "baseline=true"], "is complete, but its input baseline is not"),
        (["baseline"], "Set baseline: true"),
        (["run", "--set", "seed=1"], "--restart"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_removed(
    run_copy: tuple[list[str], Path], capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    options, folder = run_copy
    before = content(folder)
    assert words in refused(capsys, arguments[0], *options, *arguments[1:])
    assert content(folder) == before


@pytest.mark.parametrize(
    ("stage", "changed"),
    [
        ("teach", {"teachers", "labels", "student"}),
        ("label", {"labels", "student"}),
        ("distill", {"student"}),
        ("evaluate", set()),
    ],
)
def test_a_restart_redoes_the_stage_and_what_depends_on_it(
    run_copy: tuple[list[str], Path], stage: str, changed: set[str]
) -> None:
    options, folder = run_copy
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert main(["run", *options, "--restart", stage]) == 0
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert before.keys() == after.keys()
    replaced = {path.relative_to(folder).parts[0] for path in before if before[path] != after[path]}
    assert replaced - {"checkpoints"} == changed
    assert not (folder / "restart").exists()


def test_a_baseline_is_added_beside_a_finished_run(run_copy: tuple[list[str], Path]) -> None:
    options, folder = run_copy
    before = (folder / "student/model.safetensors").stat().st_mtime_ns
    assert main(["run", *options, "--set", "baseline=true", "--restart", "evaluate"]) == 0
    assert "base" in read_json(folder / "metrics.json")["models"]
    assert (folder / "student/model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("gone", ["student", "dataset", "labels", "teachers", "metrics.json"])
def test_a_done_stage_whose_result_is_gone_is_not_taken_for_done(
    run_copy: tuple[list[str], Path], capsys: pytest.CaptureFixture[str], gone: str
) -> None:
    options, folder = run_copy
    (folder / gone).rename(folder / "elsewhere")
    assert f"{gone} is missing" in refused(capsys, "run", *options)


def test_a_model_left_by_a_killed_stage_is_not_taken_for_one_of_other_settings(
    run_copy: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options, folder = run_copy
    for stage in ("distill", "evaluate"):
        (folder / f"{stage}.done.json").unlink()
    assert "training.beta was 0.5, is 1.0" in refused(capsys, "run", *options, "--set", "training.beta=1")
    before = (folder / "student/model.safetensors").stat().st_mtime_ns
    assert main(["run", *options]) == 0
    assert (folder / "student/model.safetensors").stat().st_mtime_ns == before


def test_a_flipped_byte_in_the_labels_is_found_before_training(
    run_copy: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options, folder = run_copy
    shard = folder / "labels/labels-00001-of-00004.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    for stage in ("distill", "evaluate"):
        (folder / f"{stage}.done.json").unlink()
    assert "--restart label" in refused(capsys, "run", *options)


def test_the_log_may_go_once_it_is_prepared(
    small_log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.csv"
    shutil.copy(small_log, log)
    (tmp_path / "config.yaml").write_text(CONFIG.format(folder=tmp_path, log=log))
    options = ["--config", str(tmp_path / "config.yaml")]
    assert main(["run", *options]) == 0
    log.rename(tmp_path / "moved.csv")
    assert main(["evaluate", *options, "--restart", "evaluate"]) == 0
    assert "moved.csv" in refused(capsys, "run", *options, "--set", "dataset.source=moved.csv")


def test_damaged_records_and_checkpoints_are_said(
    run_copy: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options, folder = run_copy
    (folder / "teach.done.json").write_text("{}")
    assert "damaged" in refused(capsys, "run", *options)
