"""Runs that were done on another machine: their rows stand for them, if they are runs of the study as it is."""

import re
from pathlib import Path

import polars as pl
import pytest
import torch

from csrec_dist.cli import main
from csrec_dist.config import parse_config
from csrec_dist.environment import environment
from csrec_dist.experiments.study.collecting import settings_key
from csrec_dist.experiments.study.results import keys_of, read_elsewhere, with_rows
from tests.helpers.study_files import entries_of, write_study

HERE = {"commit": "c", "threads": 1}


@pytest.fixture
def study_file(small_log: Path, tmp_path: Path) -> Path:
    return write_study(tmp_path, small_log)


def test_runs_done_elsewhere_are_not_done_again_and_their_results_are_the_same(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, here = tmp_path / "there/small", tmp_path / "here/small"
    study = ["study", str(study_file), "--only", "temperature=3"]
    assert main([*study, "--output", str(there.parent), "--only", "seed=0"]) == 0
    kept = tmp_path / "kept.parquet"
    kept.write_bytes((there / "results.parquet").read_bytes())
    capsys.readouterr()
    assert main([*study, "--output", str(here.parent), "--only", "seed=0", "--with", str(kept)]) == 0
    assert "0 runs, 0 to do" in capsys.readouterr().out
    assert not (here / "runs").exists()
    assert (here / "results.md").read_text() == (there / "results.md").read_text()
    assert main([*study, "--output", str(here.parent), "--only", "method=Base", "--with", str(kept)]) == 0
    assert [path.name for path in (here / "runs").iterdir()] == ["Base-3-s1"]
    rows = pl.read_parquet(here / "results.parquet")
    assert sorted(zip(rows["method"], rows["seed"], strict=True)) == [("Base", 0), ("Base", 1), ("CSRec-M", 0)]
    ranks = pl.read_parquet(here / "runs/Base-3-s1/ranks/student-test.parquet")["rank"].to_list()
    assert rows.filter((pl.col("method") == "Base") & (pl.col("seed") == 1))["ranks"].item().to_list() == ranks


def line(study_file: Path, place: int, **changes: object) -> pl.DataFrame:
    """A row for a run of the study."""
    entry = entries_of(study_file)[1][place]
    values = {**entry.cell, "seed": entry.seed, "settings": settings_key(entry.config), "ndcg@10": 0.5, **changes}
    return pl.DataFrame({key: [value] for key, value in values.items()})


def test_rows_of_other_settings_are_counted_and_left_out(study_file: Path, tmp_path: Path) -> None:
    study, entries = entries_of(study_file)
    path, said = tmp_path / "rows.parquet", []
    rows = [line(study_file, 0), line(study_file, 1, settings="others"), line(study_file, 2, seed=77)]
    pl.concat(rows).write_parquet(path)
    found = read_elsewhere(study, entries, [path, path], said.append, HERE)
    assert keys_of(study, found) == {("Base", "3", 0)}
    assert "1 of 2 runs have other settings" in said[0]
    assert len(said) == 4
    assert "1 of 1 runs are taken although their environment is not recorded" in said[1]


def test_it_is_said_where_runs_were_trained_otherwise(study_file: Path, tmp_path: Path) -> None:
    study, entries = entries_of(study_file)
    path = tmp_path / "rows.parquet"
    same = {f"environment/{name}": str(value) for name, value in HERE.items()}
    others = [{}, {"environment/threads": "2"}, {"environment/commit": "a, then b", "environment/threads": "2"}]
    pl.concat([line(study_file, place, **same | each) for place, each in enumerate(others)]).write_parquet(path)
    said: list[str] = []
    assert len(read_elsewhere(study, entries, [path], said.append, HERE)) == 3
    taken = f"{path}: 1 of 3 runs are taken although they were trained with"
    assert said == [
        f"{taken} threads 2 (here 1); a run done here may differ",
        f"{taken} commit a, then b (here c), threads 2 (here 1); a run done here may differ",
    ]


def test_results_tell_what_the_runs_were_trained_in(study_file: Path, tmp_path: Path) -> None:
    arguments = ["--output", str(tmp_path / "o"), "--only", "seed=0", "--only", "method=Base"]
    assert main(["study", str(study_file), *arguments]) == 0
    row = pl.read_parquet(tmp_path / "o/small/results.parquet")
    now = environment(1)
    assert {name: row[f"environment/{name}"].item() for name in now} == {name: str(now[name]) for name in now}
    assert now["torch"] == torch.__version__
    assert re.fullmatch(r"[0-9a-f]{12}( with changes)?|version .+", now["commit"])


def test_own_rows_come_before_those_of_others(study_file: Path) -> None:
    study, _ = entries_of(study_file)
    others = pl.concat([line(study_file, 0), line(study_file, 1)])
    joined = with_rows(study, line(study_file, 0, **{"ndcg@10": 0.75}), others)
    assert sorted(joined["ndcg@10"]) == [0.5, 0.75]
    assert with_rows(study, pl.DataFrame(), pl.DataFrame()).is_empty()


def test_a_file_that_is_no_result_of_the_study_is_refused(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.parquet"
    line(study_file, 0).drop("temperature").write_parquet(path)
    (tmp_path / "text").write_text("text")
    for file, words in (
        (path, "lacks the columns temperature"),
        (tmp_path / "text", "is not readable as Parquet"),
        (tmp_path / "no", "no"),
    ):
        assert main(["study", str(study_file), "--output", str(tmp_path / "o"), "--with", str(file)]) == 2
        assert words in capsys.readouterr().err


CONFIG = {"name": "x", "dataset": {"source": "here"}, "model": {"name": "sasrec"}}


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"name": "y", "output": "o"}, True),
        ({"dataset": {"source": "there"}}, True),
        ({"training": {"keep_checkpoints": 5, "log_steps": 7}}, True),
        ({"distributed": {"engine": "fsdp"}}, True),
        ({"seed": 1}, False),
        ({"training": {"learning_rate": 0.5}}, False),
        ({"dataset": {"source": "here", "window": 7}}, False),
        ({"model": {"name": "sasrec", "width": 8}}, False),
    ],
)
def test_settings_are_what_decides_a_run(changes: dict[str, object], is_same: bool) -> None:
    assert (settings_key(parse_config(CONFIG | changes)) == settings_key(parse_config(CONFIG))) is is_same
