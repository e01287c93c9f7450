"""A bit that flips in any file of a run is said before a wrong number is used, or it changes no number."""

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from csrec_dist.runs.verify import verify
from csrec_dist.training import checkpoints
from tests.helpers import flips


def flip_some(run: Path, scratch: Path, number: int) -> Counter[str]:
    draw, files = random.Random(1), flips.files_of(run)
    counts: Counter[str] = Counter()
    for _ in range(number):
        path, bit = flips.random_bit(files, draw)
        read = flips.reader_of(run, path, scratch)
        before = read() if read else ""
        shutil.rmtree(scratch, ignore_errors=True)
        found = flips.outcome(path, bit, read, before, scratch)
        assert found != "wrong", f"bit {bit} of {path.relative_to(run)}"
        counts[found] += 1
    return counts


def test_flipped_bits_are_said(run_copy: tuple[list[str], Path], tmp_path: Path) -> None:
    counts = flip_some(run_copy[1], tmp_path / "scratch", 40)
    assert counts["reported"] > 20


@pytest.mark.long
def test_many_flipped_bits_are_said(run_copy: tuple[list[str], Path], tmp_path: Path) -> None:
    counts = flip_some(run_copy[1], tmp_path / "scratch", 1000)
    assert counts["reported"] > 500


READ = [
    "dataset/dataset.json",
    "dataset/train-00001-of-00004.parquet",
    "dataset/items.parquet",
    "labels/labels-00002-of-00004.safetensors",
    "teachers/teacher-1/model.safetensors",
    "teachers/teacher-0/metrics.json",
    "student/model.safetensors",
    "ranks/student-test.parquet",
    "teach.done.json",
    "metrics.json",
]


def test_verify_names_each_damaged_file(run_copy: tuple[list[str], Path]) -> None:
    run = run_copy[1]
    assert verify(run) == []
    newest = max((run / "checkpoints/distill").glob("step-*"))
    for path in [*(run / name for name in READ), newest / "optimizer.safetensors", newest / "state.json"]:
        middle = 8 * (path.stat().st_size // 2)
        with flips.flipped(path, middle):
            found = verify(run)
        assert any(path.name in problem or path.parent.name in problem for problem in found), path
    assert verify(run) == []


def test_verify_names_what_is_missing(run_copy: tuple[list[str], Path]) -> None:
    run = run_copy[1]
    for name in (
        *("dataset/users.parquet", "ranks/student-test.parquet", "labels/labels-00000-of-00004.safetensors"),
        *("metrics.json", "teachers/teacher-1", "labels/label_cache.index.json", "dataset/dataset.json", "student"),
        *("student/metrics.json", "teachers/teacher-1/metrics.json"),
    ):
        (run / name).rename(run / "aside")
        assert [Path(name).name in problem for problem in verify(run)] == [True], name
        (run / "aside").rename(run / name)
    (run / "teachers").rename(run.parent / "elsewhere")  # as those of a study are: links are followed
    (run / "teachers").symlink_to(run.parent / "elsewhere")
    with flips.flipped(run / "teachers/teacher-0/metrics.json", 80):
        assert "teachers/teacher-0/metrics.json" in verify(run)[0]


def test_verify_names_a_stage_whose_record_is_gone(run_copy: tuple[list[str], Path]) -> None:
    run = run_copy[1]
    (run / "teach.done.json").unlink()
    assert verify(run) == [
        "Stage label is done, but the record of teach before it is missing.",
        "Stage evaluate is done, but the record of teach before it is missing.",
    ]


def test_verify_beside_a_training_that_removes_its_oldest_checkpoint(
    run_copy: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the list of checkpoints and the look at this one."""
    real = checkpoints.read_state

    def read_state(folder: Path) -> object:
        shutil.rmtree(folder)
        return real(folder)

    monkeypatch.setattr(checkpoints, "read_state", read_state)
    assert verify(run_copy[1]) == []


def test_verify_of_a_run_that_is_cut_off(run_copy: tuple[list[str], Path]) -> None:
    run = run_copy[1]
    for name in ("evaluate.done.json", "distill.done.json", "metrics.json"):
        (run / name).unlink()
    shutil.rmtree(run / "student")
    assert verify(run) == []


def test_verify_names_each_damaged_file_of_what_is_made_beside_its_old_version(
    run_copy: tuple[list[str], Path],
) -> None:
    run = run_copy[1]
    beside = run / "restart"
    for name in ("dataset", "teachers", "labels", "student", "checkpoints"):
        shutil.copytree(run / name, beside / name)
    assert verify(run) == []
    newest = max((beside / "checkpoints/distill").glob("step-*"))
    made = [beside / name for name in READ if (beside / name).exists()]
    for path in [*made, newest / "optimizer.safetensors"]:
        with flips.flipped(path, 8 * (path.stat().st_size // 2)):
            problems = verify(run)
        where = path.parent if path.parent == newest else path
        assert any("restart" in each and where.name in each for each in problems), path
