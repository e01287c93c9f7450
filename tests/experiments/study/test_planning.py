"""What the runs of a study take from each other: datasets, teachers with labels, single members."""

from pathlib import Path

import polars as pl
import pytest

from csrec_dist.cli import main
from csrec_dist.experiments.study.planning import Task, plan_tasks
from csrec_dist.files import sha256_file
from csrec_dist.runs.run import Record, Run
from tests.helpers.study_files import STUDY, entries_of, write_study

MEMBERS = """
title: Members
config: base.yaml
axes:
  method:
    CSRec-M: {method: model_level}
    CSRec-D: {method: data_level}
  members:
    1: {teachers.num: 1}
    3: {teachers.num: 3}
    2: {teachers.num: 2}
"""
ROBUST = """
title: Alphas
config: base.yaml
seeds: [4]
axes:
  alpha:
    low: {teachers.alpha: 0.25}
    high: {teachers.alpha: 0.75}
    other: {teachers.alpha: 0.75, teachers.sample: 0.5}
adjust: [{when: {alpha: [low, high, other]}, set: {method: training_level, teachers.noise_rank: 2}}]
"""


@pytest.fixture
def study_file(small_log: Path, tmp_path: Path) -> Path:
    return write_study(tmp_path, small_log)


def tasks_of(path: Path) -> dict[str, Task]:
    return {task.config.name: task for task in plan_tasks(entries_of(path)[1])}


def lent(task: Task) -> dict[str, str]:
    return {name: f"{lender.config.name}/{its_name}" for name, (lender, its_name) in task.lenders.items()}


def test_teachers_serve_every_temperature_and_seed(study_file: Path) -> None:
    _, entries = entries_of(study_file)
    tasks = {task.config.name: task for task in plan_tasks(entries)}
    first = tasks["CSRec-M-1-s0"]
    assert (first.donor, first.shared) == (tasks["Base-3-s0"], ("prepare",))
    for name in ("CSRec-M-3-s0", "CSRec-M-1-s1", "CSRec-M-3-s1"):
        assert (tasks[name].donor, tasks[name].shared) == (first, ("prepare", "teach", "label"))


def test_teachers_of_another_seed_or_loop_are_not_shared(study_file: Path) -> None:
    text = STUDY.replace(", teachers.seed: 5", "").replace("training.beta: 0.25", "training.learning_rate: 0.5")
    study_file.write_text(text)
    study, entries = entries_of(study_file)
    donors = {task.config.name: task.shared for task in plan_tasks(entries)}
    assert set(donors.values()) == {(), ("prepare",)}
    assert len(study.cells) == 3


def test_runs_that_are_done_serve_though_they_are_not_chosen(study_file: Path) -> None:
    _, entries = entries_of(study_file)
    for stage in ("prepare", "teach", "label"):
        Run(study_file.parent / "runs/CSRec-M-3-s0").finish(stage, Record({}, {}, []))
    chosen = plan_tasks(entries, lambda entry: entry.seed == 1)
    assert [task.config.name for task in chosen] == ["Base-3-s1", "CSRec-M-1-s1", "CSRec-M-3-s1"]
    assert {task.donor.config.name for task in chosen if task.donor} == {"CSRec-M-3-s0"}
    assert [task.shared for task in chosen] == [("prepare",), *[("prepare", "teach", "label")] * 2]
    assert all(task.is_ready for task in chosen)


def test_a_run_that_is_not_chosen_and_not_done_serves_nobody(study_file: Path) -> None:
    chosen = plan_tasks(entries_of(study_file)[1], lambda entry: entry.seed == 1)
    assert [task.donor and task.donor.config.name for task in chosen] == [None, "Base-3-s1", "CSRec-M-1-s1"]


def test_the_first_members_of_many_are_those_of_few(study_file: Path) -> None:
    study_file.write_text(MEMBERS)
    tasks = tasks_of(study_file)
    assert lent(tasks["CSRec-M-1-s0"]) == {}
    assert lent(tasks["CSRec-M-3-s0"]) == {"teacher-0": "CSRec-M-1-s0/teacher-0"}
    assert lent(tasks["CSRec-M-2-s0"]) == {
        "teacher-0": "CSRec-M-1-s0/teacher-0",
        "teacher-1": "CSRec-M-3-s0/teacher-1",
    }
    assert lent(tasks["CSRec-D-1-s0"]) == {}
    assert not tasks["CSRec-M-2-s0"].is_ready
    tasks["CSRec-M-2-s0"].forget(tasks["CSRec-M-3-s0"])
    assert lent(tasks["CSRec-M-2-s0"]) == {"teacher-0": "CSRec-M-1-s0/teacher-0"}


def test_the_side_teacher_serves_every_alpha_and_the_main_one_does_not(study_file: Path) -> None:
    study_file.write_text(ROBUST)
    tasks = tasks_of(study_file)
    assert lent(tasks["high-s4"]) == {"side": "low-s4/side"}
    assert lent(tasks["other-s4"]) == {}


def test_members_that_were_lent_are_those_that_would_have_been_trained(study_file: Path) -> None:
    study_file.write_text(MEMBERS)
    shared, alone = (study_file.parent / name for name in ("shared", "alone"))
    few = ["--only", "method=CSRec-D", "--only", "members=2"]
    assert main(["study", str(study_file), "--output", str(alone), *few]) == 0
    assert main(["study", str(study_file), "--output", str(shared), *few, "--only", "members=1"]) == 0
    runs = [output / "small/runs/CSRec-D-2-s0" for output in (shared, alone)]
    assert [(run / "teachers/teacher-0").is_symlink() for run in runs] == [True, False]
    for file in ("teachers/teacher-0/model.safetensors", "teachers/teacher-1/model.safetensors", "metrics.json"):
        assert sha256_file(runs[0] / file) == sha256_file(runs[1] / file), file
    rows = pl.read_parquet(shared / "small/results.parquet")
    assert dict(rows.select("members", pl.col("cpu_seconds").is_null()).iter_rows()) == {"1": False, "2": True}


def test_a_robust_teacher_leans_on_the_side_teacher_of_another_run(study_file: Path) -> None:
    study_file.write_text(ROBUST)
    output = study_file.parent / "studies"
    assert main(["study", str(study_file), "--output", str(output), "--only", "alpha=low", "--only", "alpha=high"]) == 0
    low, high = (output / f"small/runs/{name}-s4/teachers" for name in ("low", "high"))
    assert (high / "side").resolve() == (low / "side").resolve()
    assert sha256_file(high / "main/model.safetensors") != sha256_file(low / "main/model.safetensors")
