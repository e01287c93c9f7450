"""What is not recognisably the project's own is never written over, wherever the project writes."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from csrec_dist import Recommender, models
from csrec_dist.cli import main
from csrec_dist.data.download import fetch
from csrec_dist.errors import UserError
from csrec_dist.files import write_json
from csrec_dist.models import config_class
from csrec_dist.writers import writer_name
from tests.helpers.finished_runs import content, refused
from tests.helpers.study_files import write_study


def small_model() -> models.SequentialModel:
    return models.build(config_class("gru4rec").model_validate({"width": 8}), 7, 7, 0)


def small_model_of(recommender: Recommender) -> models.SequentialModel:
    return models.build(config_class("sasrec").model_validate({"width": 8}), recommender.model.num_items, 7, 0)


def test_a_study_does_not_write_among_other_files(
    small_log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, small_log)
    output = tmp_path / "studies"
    (output / "small").mkdir(parents=True)
    for name in ("results.md", "curve.png", "results.parquet"):
        (output / "small" / name).write_text("years of work")
    before = content(tmp_path)
    for more in ([], ["--results"]):
        assert "contains neither runs nor results of a study" in refused(
            capsys, "study", str(study), "--output", str(output), *more
        )
    assert content(tmp_path) == before
    for name in ("results.md", "curve.png", "results.parquet"):
        (output / "small" / name).unlink()
    for _ in range(2):
        assert main(["study", str(study), "--output", str(output), "--results"]) == 0, "its own page is known again"


def test_a_run_of_a_study_does_not_write_among_other_files(
    small_log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, small_log)
    arguments = ["study", str(study), "--output", str(tmp_path / "o"), "--only", "seed=0", "--only", "method=Base"]
    assert main(arguments) == 0
    run = tmp_path / "o/small/runs/CSRec-M-1-s0"
    run.mkdir()
    (run / "study.yaml").write_text("years of work")
    before = content(run)
    for jobs in ("1", "2"):
        said = refused(capsys, *arguments[:4], "--only", "seed=0", "--only", "method=CSRec-M", "--jobs", jobs)
        assert "not the folder of a run" in said
        assert content(run) == before


def test_a_model_is_not_saved_over_another_librarys(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "bert", "vocab_size": 30522})
    (tmp_path / "model.safetensors").write_bytes(b"years of work")
    before = content(tmp_path)
    with pytest.raises(UserError, match=r"No model is saved over .*config\.json does not describe a model"):
        small_model().save_pretrained(tmp_path)
    assert content(tmp_path) == before
    small_model().save_pretrained(tmp_path / "own")
    small_model().save_pretrained(tmp_path / "own")


def test_a_model_saved_over_one_in_several_files_is_the_new_one(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path)
    write_json(tmp_path / "model.safetensors.index.json", {"metadata": {}, "weight_map": {"x": "gone.safetensors"}})
    small_model().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_recommender_is_not_saved_among_other_files(finished_run: tuple[Path, Path], tmp_path: Path) -> None:
    """Nor into a run, whose metrics.json has another meaning, nor into a dataset, which has items, too."""
    recommender = Recommender.from_pretrained(finished_run[1])
    (tmp_path / "project").mkdir()
    (tmp_path / "project/README.md").write_text("years of work")
    shutil.copytree(finished_run[1], tmp_path / "r")
    before = content(tmp_path)
    for folder in ("project", "r", "r/dataset", "r/student"):
        with pytest.raises(UserError, match="something else in it than a saved recommender"):
            recommender.save_pretrained(tmp_path / folder)
    assert content(tmp_path) == before
    for _ in range(2):
        recommender.save_pretrained(tmp_path / "own")
        Recommender.from_pretrained(tmp_path / "own").save_pretrained(tmp_path / "own")
    assert {path.name for path in (tmp_path / "own").iterdir()} >= {"README.md", "metrics.json"}
    bare = Recommender(small_model_of(recommender), recommender.items)
    bare.save_pretrained(tmp_path / "own")
    assert not {"README.md", "metrics.json"} & {path.name for path in (tmp_path / "own").iterdir()}, (
        "they are of another"
    )
    assert Recommender.from_pretrained(tmp_path / "own").model.num_items == 30


def test_lists_are_not_written_over_another_file(
    run_copy: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = run_copy
    table, text, lists = (tmp_path / name for name in ("table.parquet", "log.csv", "lists.parquet"))
    pl.DataFrame({"user": [1], "item": [2]}).write_parquet(table)
    text.write_text("years of work")
    before = content(tmp_path)
    for file in (table, text):
        assert "does not hold recommendations" in refused(capsys, "recommend", str(folder), "--output", str(file))
    assert content(tmp_path) == before
    for n in ("2", "3"):
        assert main(["recommend", str(folder), "-n", n, "--output", str(lists)]) == 0
    assert pl.read_parquet(lists)["items"].list.len().max() == 3


def test_a_log_is_not_fetched_over_one_of_the_same_name(tmp_path: Path) -> None:
    mine, other = tmp_path / "data/ml-100k/u.data", tmp_path / "u.data"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    other.write_text("1\t2\t3\t4\n")
    with pytest.raises(UserError, match=r"contains files that were not fetched: u\.data"):
        fetch("ml-100k", tmp_path / "data", source=other)
    assert mine.read_text() == "years of work"
    mine.unlink()
    for _ in range(2):
        assert fetch("ml-100k", tmp_path / "data", source=other).read_text() == other.read_text()


def test_a_start_that_was_killed_at_its_first_file_is_no_obstacle(
    finished_run: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "r").mkdir()
    left = tmp_path / "r" / f".config.yaml.{writer_name().rpartition('-')[0]}-{2**22}-{'0' * 16}.tmp"
    left.write_text("# hash: 01")
    assert main(["prepare", "--config", str(finished_run[0]), "--set", f"output={tmp_path}"]) == 0
    assert not left.exists()


@pytest.mark.parametrize("command", [["report"], ["recommend"]])
def test_a_folder_with_a_config_of_ones_own_is_no_run(
    finished_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    (tmp_path / "config.yaml").write_text(finished_run[0].read_text())
    (tmp_path / "report").mkdir()
    (tmp_path / "report/report.md").write_text("years of work")
    before = content(tmp_path)
    assert "not the folder of a run" in refused(capsys, *command, str(tmp_path))
    assert content(tmp_path) == before
