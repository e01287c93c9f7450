"""A restarted stage replaces its old result when the new one is whole, goes on when cut off, and survives any kill."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from csrec_dist.cli import main
from csrec_dist.files import read_json
from csrec_dist.runs.restarts import Restarts
from csrec_dist.runs.run import Record, Run
from csrec_dist.runs.stages import evaluate
from tests.helpers.finished_runs import content
from tests.helpers.training_streams import at_each_batch

Copy = tuple[list[str], Path]


class KilledError(Exception):
    """Stands for whatever ends a process."""


@contextmanager
def killed_after(steps: int) -> Iterator[list[int]]:
    """In the block a training is cut off after so many steps; the steps that were done are noted."""
    done = [0]

    def count() -> None:
        if done[0] == steps:
            raise KilledError
        done[0] += 1

    with at_each_batch(count):
        yield done


def cut_off(steps: int, *arguments: str) -> None:
    with killed_after(steps), pytest.raises(KilledError):
        main([*arguments])


SMALL_STEPS = ["--set", "training.batch_size=16", "--set", "training.checkpoint_steps=1"]
"""Keys that do not change the finished run's labels would be refused: these runs are trained anew with them."""


@pytest.fixture
def stepwise(run_copy: Copy) -> Copy:
    """Arguments and folder of a finished run of several steps, each with a checkpoint."""
    options, folder = run_copy
    options = [*options, *SMALL_STEPS]
    assert main(["run", *options, "--restart", "teach"]) == 0
    return options, folder


def weights(folder: Path, name: str = "student") -> bytes:
    return (folder / name / "model.safetensors").read_bytes()


def test_until_the_new_result_is_whole_the_old_one_stands_with_all_that_depends_on_it(stepwise: Copy) -> None:
    options, folder = stepwise
    before = content(folder)
    cut_off(2, "run", *options, "--restart", "distill", "--set", "training.beta=1")
    after = {name: digest for name, digest in content(folder).items() if not name.startswith("restart/")}
    assert after == before, "config.yaml too, by which figures are read"
    old = Run.open(folder)
    assert old.config.training.beta != 1
    assert old.missing == []
    assert old.metrics["test"]


@pytest.mark.parametrize("again", [[], ["--restart", "distill"]], ids=["run", "the same command"])
def test_a_restart_that_was_cut_off_goes_on_where_it_stopped(stepwise: Copy, again: list[str]) -> None:
    options, folder = stepwise
    changed = [*options, "--set", "training.beta=1"]
    cut_off(2, "run", *changed, "--restart", "distill")
    with killed_after(1000) as done:
        assert main(["run", *changed, *again]) == 0
    trained = read_json(folder / "student/metrics.json")
    assert done[0] == trained["epochs"][-1]["step"] - 2
    assert trained["inputs"]["training.beta"] == 1
    assert not (folder / "restart").exists()
    resumed = weights(folder)
    assert main(["run", *changed, "--restart", "distill"]) == 0
    assert weights(folder) == resumed


def test_a_restart_that_was_cut_off_in_a_later_stage_does_not_begin_again(stepwise: Copy) -> None:
    options, folder = stepwise
    teacher = folder / "teachers/teacher-0/model.safetensors"
    before = teacher.stat().st_mtime_ns
    steps = 2 * read_json(folder / "teachers/teacher-0/metrics.json")["epochs"][-1]["step"]
    cut_off(steps + 1, "run", *options, "--restart", "teach")
    replaced = teacher.stat().st_mtime_ns
    assert replaced != before
    assert Run.open(folder).missing == ["distill", "evaluate"]
    assert Run.open(folder).metrics == {}, "they are of the student before"
    assert (folder / "metrics.json").exists()
    assert main(["run", *options, "--restart", "teach"]) == 0
    assert teacher.stat().st_mtime_ns == replaced
    assert Run.open(folder).missing == []
    assert main(["run", *options, "--restart", "teach"]) == 0
    assert teacher.stat().st_mtime_ns != replaced, "the restart before came to its end"


def test_the_settings_of_before_find_the_old_result_beside_a_restart_that_was_cut_off(stepwise: Copy) -> None:
    options, folder = stepwise
    before = weights(folder)
    cut_off(2, "run", *options, "--restart", "distill", "--set", "training.beta=1")
    with killed_after(0):
        assert main(["run", *options]) == 0
    assert weights(folder) == before
    with killed_after(1000) as done:
        assert main(["run", *options, "--restart", "distill", "--set", "training.beta=0"]) == 0
    assert done[0] == read_json(folder / "student/metrics.json")["epochs"][-1]["step"], "it begins at its beginning"


def test_a_training_cut_off_the_first_time_can_be_begun_again_and_that_too_goes_on(
    stepwise: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    options, folder = stepwise
    options = [*options, "--set", "name=new"]
    new = folder.parent / "new"
    base = [*options, "--set", "method=base"]
    cut_off(2, "run", *base)
    first = content(new / "checkpoints")
    cut_off(1, "run", *base, "--restart", "distill")
    assert content(new / "checkpoints") == first
    capsys.readouterr()
    assert main(["run", *base, "--restart", "distill"]) == 0
    assert "continues at epoch 1, step 2" in capsys.readouterr().out
    assert not (new / "restart").exists()


def test_other_options_of_the_dataset_prepare_the_same_log_again(run_copy: Copy) -> None:
    options, folder = run_copy
    options = [*options, "--set", "dataset.window=7"]
    assert main(["prepare", *options, "--restart", "prepare"]) == 0
    assert Run.open(folder).dataset.window == 7
    assert Run.open(folder).missing == ["teach", "label", "distill", "evaluate"]
    assert main(["run", *options]) == 0
    assert not (folder / "restart").exists()


def test_truths_and_numbers_are_not_taken_for_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user,item,time,good\n" + "".join(f"{n % 9},{n % 7},{n},{n % 2}\n" for n in range(200)))
    options = ["--set", f"output={tmp_path}", "--config", str(tmp_path / "c.yaml")]
    (tmp_path / "c.yaml").write_text(f"name: r\ndataset: {{source: {log}, min_interactions: 1, keep: {{good: 1}}}}\n")
    assert main(["prepare", *options]) == 0
    assert main(["prepare", *options, "--set", "dataset.keep={good: true}"]) == 2
    assert "dataset.keep.good was 1, is True" in capsys.readouterr().err


def test_a_run_is_not_made_of_its_own_parts(run_copy: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    """A restart would remove the dataset, or train on from a model that it replaces."""
    options, folder = run_copy
    before = content(folder)
    path = ["--set", f"dataset={{path: {folder / 'dataset'}}}"]
    start = ["--set", f"training.init_from={folder}"]
    for arguments in ([*path, "--restart", "prepare"], path, [*start, "--restart", "distill"], start):
        assert main(["run", *options, *arguments]) == 2
        assert "lies in the run's own folder" in capsys.readouterr().err
        assert content(folder) == before


def test_models_and_labels_of_another_method_are_not_of_the_run(run_copy: Copy) -> None:
    options, folder = run_copy
    base = [*options, "--set", "method=base", "--set", "dataset.window=7"]
    assert main(["run", *base, "--restart", "prepare"]) == 0
    run = Run.open(folder)
    assert set(run.trainings) == {"student"}
    assert (run.labels, run.missing) == (None, [])
    assert (folder / "teachers").exists()
    assert [run.record(stage) for stage in ("teach", "label")] == [None, None], "they are of another dataset"
    assert main(["verify", str(folder)]) == 0
    assert main(["run", *options, "--set", "dataset.window=7", "--restart", "distill"]) == 0, "teachers are made first"
    assert set(Run.open(folder).trainings) == {"student", "teacher-0", "teacher-1"}
    assert Run.open(folder).labels is not None
    assert not (folder / "restart").exists()


def test_what_a_finished_run_was_made_of_may_go(run_copy: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    options, folder = run_copy
    other = folder.parent / "other"
    members = [str(other / "teachers" / name) for name in ("teacher-0", "teacher-1")]
    shutil.copytree(folder, other)
    options = [*options, "--set", "name=new", "--set", f"teachers.pretrained={members}"]
    taken = [*options, "--set", f"training.init_from={other}"]
    assert main(["run", *taken]) == 0
    before = weights(folder.parent / "new")
    shutil.rmtree(other)
    assert main(["run", *taken]) == 0
    assert main(["evaluate", *taken, "--set", "evaluation.top_n=[3]"]) == 0
    assert weights(folder.parent / "new") == before
    capsys.readouterr()
    assert main(["run", *options, "--set", f"training.init_from={other}-2"]) == 2
    assert "neither the folder of a finished run" in capsys.readouterr().err


def test_other_options_of_the_evaluation_evaluate_again_and_nothing_else(run_copy: Copy) -> None:
    options, folder = run_copy
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert main(["run", *options, "--set", "evaluation.top_n=[3]", "--set", "evaluation.lists=false"]) == 0
    found = read_json(folder / "metrics.json")
    assert "recall@3" in found["test"]
    assert "lists" not in found
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def test_an_evaluation_that_fails_leaves_the_old_figures(run_copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    options, folder = run_copy
    before = {name: value for name, value in content(folder).items() if name.startswith(("ranks", "metrics"))}

    def fail(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "diversity", fail)
        with pytest.raises(KilledError):
            main(["run", *options, "--restart", "evaluate"])
    after = {name: value for name, value in content(folder).items() if name.startswith(("ranks", "metrics"))}
    assert after == before
    assert Run.open(folder).missing == []


LEAVES = {"first": ("a", "a.json", "gone"), "second": ("b",)}


def old_and_new(folder: Path) -> Restarts:
    """A stage with an old and a whole new result, and one that depends on it."""
    for root, text in ((folder, "old"), (folder / "restart", "new")):
        (root / "a/inner").mkdir(parents=True)
        (root / "a/inner/file").write_text(text)
        (root / "a.json").write_text(text)
    (folder / "gone").mkdir()
    (folder / "b").mkdir()
    for stage in LEAVES:
        Run(folder).finish(stage, Record({"x": "old"}, {}, []))
    (folder / "restart/first.begun.json").write_text('{"inputs": {"x": "new"}}')
    return Restarts(Run(folder))


def replace(found: Restarts) -> None:
    found.replace("first", Record({"x": "new"}, {}, []), LEAVES["first"], {"second": LEAVES["second"]}, "new\n")


@contextmanager
def dying_at(call: int) -> Iterator[None]:
    """In the block the process ends in place of that change of the disk."""
    left = call

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                raise KilledError
            left -= 1
            return real(*arguments, **options)

        return act

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((os, "replace"), (shutil, "rmtree"), (Path, "unlink")):
            patch.setattr(owner, name, dying(getattr(owner, name)))
        yield


def test_a_replacement_that_is_killed_at_any_point_is_carried_out_by_the_next_start(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    replace(old_and_new(whole))
    expected = content(whole)
    assert (whole / "a/inner/file").read_text() == "new"
    assert not (whole / "gone").exists()
    assert (whole / "config.yaml").read_text() == "new\n"
    assert Run(whole).record("second") is None
    assert Restarts(Run(whole)).begun_with("second") == {}
    for call in range(100):
        folder = tmp_path / str(call)
        found = old_and_new(folder)
        try:
            with dying_at(call):
                replace(found)
        except KilledError:
            if not list((folder / "restart").glob("*.replaces.json")):
                assert Run(folder).require("first").inputs == {"x": "old"}, "nothing was touched yet"
                replace(found)
            Restarts(Run(folder)).recover()
            found_there = {name: value for name, value in content(folder).items() if not name.endswith(".tmp")}
            assert found_there == expected, call
        else:
            assert call > 5
            return
    raise AssertionError("the replacement never came to its end")
