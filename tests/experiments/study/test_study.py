"""Studies: which runs, what they share, and what is said of them."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from csrec_dist.cli import main
from csrec_dist.errors import UserError
from csrec_dist.experiments.study import running
from csrec_dist.experiments.study.collecting import settings_key
from csrec_dist.experiments.study.planning import Task
from csrec_dist.experiments.study.results import key_of, with_rows
from csrec_dist.experiments.study.spec import COLUMNS
from csrec_dist.experiments.study.tables import select, table
from csrec_dist.files import read_json
from csrec_dist.processes import Children
from csrec_dist.runs.run import Record, Run
from tests.helpers.study_files import STUDY, entries_of, write_study

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def study_file(small_log: Path, tmp_path: Path) -> Path:
    return write_study(tmp_path, small_log)


def test_the_runs_are_the_product_of_the_axes_first_seed_first(study_file: Path) -> None:
    _, entries = entries_of(study_file)
    names = [entry.config.name for entry in entries]
    assert names == ["Base-3-s0", "CSRec-M-1-s0", "CSRec-M-3-s0", "Base-3-s1", "CSRec-M-1-s1", "CSRec-M-3-s1"]
    settings = {entry.config.name: (entry.config.training.temperature, entry.config.training.beta) for entry in entries}
    assert settings["CSRec-M-1-s1"] == (1, 0.5)
    assert settings["CSRec-M-3-s0"] == (3, 0.25)


def test_a_study_from_its_file_to_its_page(study_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = study_file.parent / "studies"
    arguments = ["study", str(study_file), "--output", str(output)]
    assert main([*arguments, "--only", "seed=0"]) == 0
    runs = output / "small/runs"
    assert (runs / "CSRec-M-3-s0/teachers").is_symlink()
    assert not (runs / "CSRec-M-1-s0/teachers").is_symlink()
    page = (output / "small/results.md").read_text()
    assert "3 of 6 runs are done" in page
    assert "## At one" in page
    assert "<br>12.50" in page
    assert (output / "small/curve.png").stat().st_size > 1000
    html = (output / "small/results.html").read_text()
    assert "CSRec-M is above Base in " in html
    assert html.count("<svg") == 2, "the answer and a figure"
    assert '<span class="below">12.50</span>' in html
    rows = pl.read_parquet(output / "small/results.parquet")
    assert rows["method"].to_list() == ["Base", "CSRec-M", "CSRec-M"]
    done = [read_json(runs / f"CSRec-M-3-s0/{stage}.done.json") for stage in ("teach", "label", "distill")]
    assert rows["cpu_seconds"][2] == pytest.approx(sum(each["usage"][0]["cpu_seconds"] for each in done))
    before = (runs / "Base-3-s0/student/model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert main([*arguments, "--only", "method=Base"]) == 0
    assert "2 runs, 1 to do" in capsys.readouterr().out
    assert (runs / "Base-3-s0/student/model.safetensors").stat().st_mtime_ns == before


def test_a_finished_run_does_not_pass_for_one_of_other_settings(
    study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = study_file.parent / "studies"
    study = ["study", str(study_file), "--output", str(output), "--only", "method=Base", "--only", "seed=0"]
    assert main(study) == 0
    page = output / "small/results.md"
    before = page.stat().st_mtime_ns
    study_file.write_text(STUDY.replace("Base: {method: base}", "Base: {method: base, training.learning_rate: 0.5}"))
    for more in ([], ["--results"]):
        capsys.readouterr()
        assert main([*study, *more]) == 2
        assert "have other settings than the study has now: Base-3-s0" in " ".join(capsys.readouterr().err.split())
    assert page.stat().st_mtime_ns == before
    assert main(["study", str(study_file), "--output", str(output.with_name("new")), *study[4:]]) == 0


def test_a_part_takes_the_runs_of_the_whole(study_file: Path) -> None:
    output = study_file.parent / "studies"
    part = str(study_file.with_name("part.yaml"))
    assert main(["study", part, "--output", str(output), "--only", "seed=0"]) == 0
    assert sorted(path.name for path in (output / "small/runs").iterdir()) == ["Base-3-s0", "CSRec-M-3-s0"]
    page = (output / "part/results.md").read_text()
    assert "2 of 4 runs are done" in page
    assert "## Popularity\n\n![number of interactions by item](items.png)" in page
    assert all((output / "part" / name).stat().st_size > 1000 for name in ("items.png", "groups.png"))
    assert main(["study", str(study_file), "--output", str(output), "--results"]) == 0
    page = (output / "small/results.md").read_text()
    assert "2 of 6 runs are done" in page
    assert "## At one" not in page, "there is nothing in that table"


def test_a_borrower_that_restarts_leaves_its_donor_alone(study_file: Path) -> None:
    output = study_file.parent / "studies"
    assert (
        main(["study", str(study_file), "--output", str(output), "--only", "seed=0", "--only", "method=CSRec-M"]) == 0
    )
    runs = output / "small/runs"
    donor = runs / "CSRec-M-1-s0/teachers/teacher-0/model.safetensors"
    before = donor.stat().st_mtime_ns
    run = runs / "CSRec-M-3-s0"
    assert main(["run", "--config", str(run / "config.yaml"), "--restart", "teach"]) == 0
    assert donor.stat().st_mtime_ns == before
    assert not (run / "teachers").is_symlink()


def test_side_by_side_runs_give_the_same_results(study_file: Path) -> None:
    one, two = (study_file.parent / name for name in ("one", "two"))
    only = ["--only", "seed=0", "--only", "method=CSRec-M"]
    assert main(["study", str(study_file), "--output", str(one), *only]) == 0
    assert main(["study", str(study_file), "--output", str(two), "--jobs", "2", *only]) == 0
    frames = [pl.read_parquet(folder / "small/results.parquet") for folder in (one, two)]
    assert frames[0]["ndcg@10"].to_list() == pytest.approx(frames[1]["ndcg@10"].to_list(), abs=1e-6)


def test_a_failed_run_is_named_and_the_others_are_done(
    study_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, run_alone = [], running.run_alone

    def run(task: Task, _: Children) -> None:
        if task.config.name == "CSRec-M-1-s0":
            raise UserError("The run CSRec-M-1-s0 failed.")
        done.append((task.config.name, task.donor and task.donor.config.name))
        Run(task.run.folder).finish("prepare", Record({}, {}, []))

    monkeypatch.setattr(running, "run_alone", run)
    monkeypatch.setattr(running, "POLL_SECONDS", 0.01)
    arguments = ["study", str(study_file), "--output", str(study_file.parent / "studies"), "--jobs", "2"]
    assert main([*arguments, "--only", "seed=0"]) == 2
    assert "CSRec-M-1-s0 failed" in capsys.readouterr().err
    assert done == [("Base-3-s0", None), ("CSRec-M-3-s0", None)]
    broken = study_file.parent / "studies/small/runs/CSRec-M-1-s0"
    Run(broken).finish("evaluate", Record({}, {}, []))
    _, entries = entries_of(study_file)
    (broken / "config.yaml").write_text(entries[1].config.to_yaml())
    with pytest.raises(UserError, match="says why"):
        run_alone(
            Task(replace(entries[1], config=entries[1].config.model_copy(update={"output": str(broken.parent)}))),
            Children(),
        )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("columns: method", "columns: student", "unknown axis student"),
        ("metrics: [ndcg@10], b", "metrics: [ndgc@10], b", r"there is no metric ndgc@10 \(did you mean 'ndcg@10'"),
        ("metrics: [ndcg@10], b", "metrics: [teacher/mrr@0], b", "there is no metric teacher/mrr@0"),
        ("lines: method", "lines: method, metric: recall", "there is no metric recall"),
        ("seeds: [0, 1]", "seeds: []", "seeds"),
        ("training.temperature: 3", "training.heat: 3", "training.heat"),
        ("config: base.yaml", "config: other.yaml", "other.yaml does not exist"),
        ("title: A small study", "tilte: A small study", "tilte"),
        ("Base, temperature: 1", "Base, temperature: 2", "temperature has no value 2; its values are 1, 3"),
        ("better_than: [Base]", "better_than: [base]", "method has no value base"),
        ("better_than: [Base], ", "", "costs are multiples"),
        ("x: temperature, lines: method", "x: temperature", "figure curve would average over method"),
        ("rows: [temperature]", "rows: []", "rows: List should have at least 1 item"),
        ("seeds: [0, 1]", "seeds: [0, 1, 0]", "0 would name several runs"),
        ("  temperature:", "  1-3: {a: {}, 1: {}}\n  temperature:", "cannot be named 1-3"),
        ("  temperature:", "  users: {a: {}, b: {}}\n  temperature:", "cannot be named users"),
        (
            "teachers.seed: 5}\n  temperature:\n",
            "teachers.seed: 5}\n    CSRec: {method: base}\n  temperature:\n    M-1: {training.temperature: 2}\n",
            "CSRec-M-1 would name several runs",
        ),
        ("x: temperature, lines: method", "x: popularity, where: {temperature: [1, 3]}, lines: method", "temperature"),
        ("x: temperature, lines: method", "x: temperature, level: {temperature: 3}", "would average over method"),
        (
            "    1: {training.temperature: 1}\n    3: {training.temperature: 3}\n",
            "    1: {dataset.window: 6}\n    3: {}\ncurves: [{name: items}]\n",
            "curve items has cells with different datasets",
        ),
        ("x: temperature,", "x: rating, level: {method: Base},", "a figure over rating has no level"),
        ("title: A small study", "title: A part\npart_of: nowhere", "nowhere.yaml does not exist"),
    ],
)
def test_mistakes_are_said(study_file: Path, old: str, new: str, words: str) -> None:
    study_file.write_text(STUDY.replace(old, new))
    with pytest.raises(UserError, match=words):
        entries_of(study_file)


def test_cells_of_a_view_are_told_apart_by_what_it_shows_of_them(study_file: Path) -> None:
    """`where` with one value, and what `level` takes out, leave one: those need not be shown."""
    level = STUDY.replace("x: temperature, lines: method", "x: temperature, level: {method: Base}")
    fixed = STUDY.replace("x: temperature, lines: method", "x: popularity, where: {temperature: 3}, lines: method")
    for text in (level, fixed):
        study_file.write_text(text)
        entries_of(study_file)


def test_a_log_does_not_stand_for_several(
    study_file: Path, small_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An override of the log is refused where cells have logs of their own, unless those of one log are chosen."""
    text = STUDY.replace("1: {training.temperature: 1}", "1: {dataset.source: elsewhere.csv}")
    study_file.write_text(text)
    study = ["study", str(study_file), "--output", str(study_file.parent / "studies")]
    override = ["--set", f"dataset.source={small_log}"]
    assert main([*study, *override]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "would be the data of cells that have their own" in said
    assert "elsewhere.csv" in said
    assert main([*study, *override, "--only", "temperature=1", "--only", "seed=0", "--results"]) == 0


def test_an_override_does_not_make_one_run_of_several(study_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = ["study", str(study_file), "--output", str(study_file.parent / "studies"), "--results"]
    for given, words in (
        ("training.temperature=2", "the runs CSRec-M-1-s0 and CSRec-M-3-s0 would be the same"),
        ("seed=3", "a study gives each run its seed, by its file and --only"),
        ("output=elsewhere", "its output, by --output"),
        ("name=mine", "its name"),
    ):
        extra = ["--set", "training.beta=0.5"] if given.startswith("training") else []
        assert main([*study, "--set", given, *extra]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert (
        main([*study, "--set", "training.temperature=2", "--set", "training.beta=0.5", "--only", "temperature=3"]) == 0
    )
    assert main([*study, "--set", "training.temperature=2"]) == 0, "they still differ in beta"


def test_finished_runs_of_a_log_that_lay_elsewhere_are_said(
    study_file: Path, small_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = ["study", str(study_file), "--output", str(study_file.parent / "studies")]
    assert main([*study, "--only", "method=Base", "--only", "seed=0"]) == 0
    capsys.readouterr()
    assert main([*study, "--results"]) == 0
    assert "were made from" not in capsys.readouterr().out
    assert main([*study, "--results", "--set", "dataset.source=moved.csv"]) == 0
    assert f"1 finished runs were made from {small_log}, which is moved.csv now" in capsys.readouterr().out


def test_an_unknown_study_or_value_is_refused(study_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "nowhere"]) == 2
    assert main(["study", str(study_file), "--only", "student=sasrec"]) == 2
    assert main(["study", str(study_file), "--only", "method=Base", "--only", "method=Basse"]) == 2
    assert main(["study", str(study_file), "--only", "seed=2"]) == 2
    assert main(["study", str(study_file), "--only", "method=Base", "--only", "temperature=1"]) == 2
    text = capsys.readouterr().err
    assert "There is no study nowhere" in text
    assert "not 'student=sasrec'" in text
    assert "--only method=Basse: method of study small has no such value (did you mean 'Base'?)" in text
    assert "--only seed=2: seed of study small has no such value; it has 0, 1" in text
    assert "has no such run" in text


@pytest.mark.parametrize("path", sorted((ROOT / "configs/studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_of_the_project_has_valid_runs(path: Path) -> None:
    study, entries = entries_of(path)
    assert len(entries) == len(study.cells) * len(study.seeds)
    assert len({entry.config.name for entry in entries}) == len(entries)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/results").glob("*.parquet")), ids=lambda path: path.stem)
def test_no_axis_can_have_the_name_of_a_column_of_the_results(path: Path) -> None:
    study, _ = entries_of(ROOT / f"configs/studies/{path.stem}.yaml")
    assert {name for name in pl.read_parquet_schema(path) if name.isidentifier()} <= {*study.axes, *COLUMNS}


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/results").glob("*.parquet")), ids=lambda path: path.stem)
def test_the_committed_rows_are_of_runs_that_their_study_still_has(path: Path) -> None:
    """Or `study --with`, which the pages offer, leaves them out: a new key must not count where it has its default."""
    study, entries = entries_of(ROOT / f"configs/studies/{path.stem}.yaml")
    settings = {key_of(study, entry): settings_key(entry.config) for entry in entries}
    results = pl.read_parquet(path)
    rows = results.select(*study.axes, "seed", "settings", "users").to_dicts()
    assert rows
    for row in rows:
        assert row["settings"] == settings[*(row[axis] for axis in study.axes), row["seed"]]
        assert row["users"]
    with_rows(study, results, results.clear())  # or raises: seeds of one cell are of one dataset
    for options in study.tables:
        if options.better_than and len(select(results, options.where)):
            assert "Not every row could be tested" not in str(table(study, options, results)), options.title
