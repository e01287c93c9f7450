"""Starts that do not fit: what differs is named, and nothing on disk is changed, whatever the reason."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from csrec_dist.cli import main
from csrec_dist.files import read_json, write_json
from tests.helpers.finished_runs import content, refused

Change = Callable[[Path], None]


def nothing(folder: Path) -> None:
    return


def flip(file: str) -> Change:
    """Change the last byte of a file."""

    def change(folder: Path) -> None:
        data = bytearray((folder / file).read_bytes())
        data[-1] ^= 1
        (folder / file).write_bytes(data)

    return change


def without(*names: str) -> Change:
    """Remove files and folders."""

    def change(folder: Path) -> None:
        for name in names:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return change


def with_file(name: str) -> Change:
    """Put a file of somebody else's there."""

    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("years of work")

    return change


def mid_epoch(folder: Path) -> None:
    """As if the student's training had been cut off in its second epoch."""
    without("distill.done.json", "evaluate.done.json", "student/metrics.json")(folder)
    state = next((folder / "checkpoints/distill").glob("step-*")) / "state.json"
    write_json(state, read_json(state) | {"step": 1})


def all_damaged(folder: Path) -> None:
    """As if the student's training had been cut off, and its only checkpoint were damaged."""
    without("distill.done.json", "evaluate.done.json", "student")(folder)
    for path in (folder / "checkpoints/distill").glob("*/best.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])


def somebodys(folder: Path) -> None:
    """Not a run at all, though the names are like one's."""
    shutil.rmtree(folder)
    (folder / "student").mkdir(parents=True)
    (folder / "config.yaml").write_text("name: mine\n")
    (folder / "student/thesis.txt").write_text("years of work")


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("years of work")


LOST = {
    "dataset/dataset.json": "prepare",
    "teachers/teacher-1/model.safetensors": "teach",
    "teachers/teacher-0/config.json": "teach",
    "labels/label_cache.index.json": "label",
    "student/metrics.json": "distill",
    "student/model.safetensors": "distill",
}
"""Files without which later commands fail, and the stages that left them."""

REFUSALS: dict[str, tuple[Change, list[str], str]] = {
    **{
        f"lost {name}": (
            without(name),
            ["run"],
            f"{name} is missing. Re-run it and what depends on it with --restart {stage},",
        )
        for name, stage in LOST.items()
    },
    "no such log": (nothing, ["run", "--restart", "prepare", "--set", "dataset.source=nowhere.csv"], "nowhere.csv"),
    "other windows": (nothing, ["run", "--set", "dataset.window=6"], "dataset.window was 8, is 6"),
    "other seed": (nothing, ["run", "--set", "seed=1"], "members.teacher-0.seed was"),
    "other rate": (nothing, ["run", "--set", "training.learning_rate=0.5"], "training.learning_rate was 0.01, is 0.5"),
    "other loss": (nothing, ["run", "--set", "training.beta=0.75"], "training.beta was 0.5, is 0.75"),
    "other labels": (nothing, ["run", "--set", "labels.dtype=float32"], "labels.dtype was 'float16', is 'float32'"),
    "other selection": (nothing, ["run", "--set", "evaluation.exclude_seen=true"], "exclude_seen was False, is True"),
    "other model after a stop": (
        without("distill.done.json", "evaluate.done.json", "student"),
        ["run", "--set", "model.width=16", "--set", "teachers.model={name: gru4rec, width: 8, hidden: 8, dropout: 0}"],
        "model.width was 8, is 16",
    ),
    "max_epochs under a schedule": (
        without("distill.done.json", "evaluate.done.json"),
        ["run", "--set", "training.schedule=cosine", "--set", "training.max_epochs=3"],
        "training.schedule was 'constant', is 'cosine'",
    ),
    "fewer epochs than were begun": (mid_epoch, ["run"], "training.max_epochs is 1, with which the training would"),
    "raised, but the checkpoint is gone": (
        without("checkpoints"),
        ["run", "--set", "training.max_epochs=3"],
        "the checkpoint to resume from is not in",
    ),
    "restart of a stage with changes before it": (
        nothing,
        ["run", "--restart", "distill", "--set", "training.learning_rate=0.1"],
        "training.learning_rate was 0.01, is 0.1",
    ),
    "damaged labels": (flip("labels/labels-00001-of-00004.safetensors"), ["run", "--restart", "distill"], "damaged"),
    "labels that are missing": (
        without("labels/labels-00001-of-00004.safetensors"),
        ["run", "--restart", "distill"],
        "labels-00001-of-00004",
    ),
    "a damaged member": (flip("teachers/teacher-1/model.safetensors"), ["run", "--restart", "label"], "teacher-1"),
    "a damaged student": (flip("student/model.safetensors"), ["run", "--restart", "evaluate"], "other weights"),
    "a shard that is missing": (
        without("dataset/train-00002-of-00004.parquet"),
        ["run", "--restart", "teach"],
        "train-00002-of-00004.parquet is missing",
    ),
    "another dataset": (
        lambda folder: write_json(
            folder / "dataset/dataset.json", read_json(folder / "dataset/dataset.json") | {"fingerprint": "other"}
        ),
        ["run", "--restart", "teach"],
        "not the dataset that stage prepare",
    ),
    "no such pretrained member": (
        nothing,
        ["run", "--restart", "teach", "--set", "teachers={pretrained: [nowhere]}"],
        "nowhere",
    ),
    "a pretrained member of other items": (
        nothing,
        ["run", "--restart", "teach", "--set", "teachers={pretrained: [SMALLER]}"],
        "knows",
    ),
    "a result that is gone": (without("student"), ["run"], "student is missing"),
    "a record that is damaged": (
        lambda folder: (folder / "teach.done.json").write_text("{}") and None,
        ["run"],
        "damaged",
    ),
    "checkpoints of other inputs": (
        without("distill.done.json", "evaluate.done.json", "student"),
        ["run", "--set", "training.temperature=9"],
        "training.temperature was 3.0, is 9.0",
    ),
    "checkpoints that are all damaged": (all_damaged, ["run", "--set", "training.log_steps=7"], "are damaged"),
    "an unknown stage": (nothing, ["run", "--restart", "polish"], "this command does"),
    "a stage of another command": (nothing, ["evaluate", "--restart", "prepare"], "this command does evaluate"),
    "a stage that waits": (without("teach.done.json"), ["label"], "is complete, but its input teach is not"),
    "an earlier stage that is missing": (
        without("distill.done.json", "evaluate.done.json"),
        ["evaluate"],
        "Stage distill",
    ),
    "a baseline without its stage": (
        nothing,
        ["run", "--set", "baseline=true"],
        "is complete, but its input baseline is",
    ),
    "a method without a baseline": (nothing, ["baseline"], "Set baseline: true"),
    "a file that no run writes": (with_file("student/thesis.txt"), ["run", "--restart", "distill"], "student/thesis.t"),
    "one in a stage that depends on it": (
        with_file("ranks/notes.md"),
        ["run", "--restart", "teach"],
        "ranks/notes.md, a file that no run writes",
    ),
    "a folder of somebody else's": (somebodys, ["run", "--restart", "distill"], "not the folder of a run"),
    "to prepare in one": (somebodys, ["prepare"], "it contains config.yaml, student"),
    "a file in its place": (a_file, ["run"], "is a file"),
    "more shards than the labels have": (nothing, ["run", "--set", "dataset.num_shards=2"], "num_shards was 4, is 2"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_start_says_what_differs_and_changes_nothing(
    run_copy: tuple[list[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    options, folder = run_copy
    change, (command, *arguments), words = REFUSALS[name]
    change(folder)
    if "SMALLER" in " ".join(arguments):
        smaller = smaller_model(tmp_path / "smaller")
        arguments = [argument.replace("SMALLER", str(smaller)) for argument in arguments]
    before = content(tmp_path)
    assert words in " ".join(refused(capsys, command, *options, *arguments).split())
    assert content(tmp_path) == before


def smaller_model(folder: Path) -> Path:
    """A model of seven items."""
    from csrec_dist import models
    from csrec_dist.models import config_class

    models.build(config_class("gru4rec").model_validate({"width": 8}), 7, 7, 0).save_pretrained(folder)
    return folder


def test_a_first_start_that_is_refused_leaves_no_folder(
    run_copy: tuple[list[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options, _ = run_copy
    before = content(tmp_path)
    assert "nowhere.csv" in refused(capsys, "run", *options, "--set", "name=new", "--set", "dataset.source=nowhere.csv")
    assert content(tmp_path) == before


def test_the_runs_own_config_still_fits_after_a_refusal(
    run_copy: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options, folder = run_copy
    refused(capsys, "run", *options, "--set", "training.beta=1")
    assert main(["run", "--config", str(folder / "config.yaml"), "--set", f"output={folder.parent}"]) == 0


def test_a_disk_without_room_for_old_and_new_is_said_before(
    run_copy: tuple[list[str], Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options, folder = run_copy
    taken = sum(path.stat().st_size for path in (folder / "labels").rglob("*"))
    usage = shutil.disk_usage(tmp_path)
    before = content(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=taken - 1))
    assert main(["label", *options, "--restart", "label"]) == 1
    assert "The new result of stage label is written beside the old one" in capsys.readouterr().err
    assert content(tmp_path) == before
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * taken))
    assert main(["label", *options, "--restart", "label"]) == 0


@pytest.mark.parametrize("lines", [[], ["# hash: 0123456789abcdef"], ["# hash: wrong", "name: r"]])
def test_a_folder_is_known_by_how_its_config_begins(
    run_copy: tuple[list[str], Path], capsys: pytest.CaptureFixture[str], lines: list[str]
) -> None:
    options, folder = run_copy
    (folder / "config.yaml").write_text("\n".join([*lines, "seed: 0\n"]))
    assert "not the folder of a run" in refused(capsys, "run", *options)


def test_a_given_split_whose_file_is_not_there_is_not_taken_for_unchanged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{user},{(user + step) % 7},{step}" for user in range(12) for step in range(8)]
    parts = {"train": lines, "valid": lines[::8], "test": lines[1::8]}
    for name, part in parts.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(["user,item,timestamp", *part]))
    config = tmp_path / "config.yaml"
    config.write_text(
        f"name: r\noutput: {tmp_path}\nmodel: gru4rec\ndataset: {{source: {tmp_path}/train.csv, split: given, "
        f"valid_source: {tmp_path}/valid.csv, test_source: {tmp_path}/test.csv, min_interactions: 1}}\n"
    )
    assert main(["prepare", "--config", str(config)]) == 0
    assert main(["prepare", "--config", str(config)]) == 0
    gone = f"dataset.test_source={tmp_path}/other.csv"
    assert "other.csv' does not exist" in refused(capsys, "prepare", "--config", str(config), "--set", gone)


@pytest.mark.parametrize("setting", ["dataset.columns.user=usr", "dataset.window=3", "dataset.min_interactions=999"])
def test_a_first_start_that_is_refused_for_its_log_leaves_no_folder(
    setting: str, run_copy: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, folder = run_copy
    refused(capsys, "run", *arguments, "--set", "name=other", "--set", setting)
    assert not (folder.parent / "other").exists()
