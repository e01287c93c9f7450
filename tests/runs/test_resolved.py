"""What a config leaves to the size of the log: it stands in the run's config and records, the same on all ranks."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from csrec_dist.cli import main
from csrec_dist.config import load_config
from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed import Runtime
from csrec_dist.experiments.study.spec import load_study
from csrec_dist.files import read_json
from csrec_dist.runs.pipeline import execute
from csrec_dist.runs.run import Run
from csrec_dist.training.defaults import resolve
from csrec_dist.training.options import TrainingOptions
from tests.helpers.ranks import run_ranks
from tests.helpers.training_streams import at_each_batch

CONFIG = """
name: open
output: {folder}
dataset: {{source: {log}, window: 8, min_interactions: 3, num_shards: 4}}
model: {{name: gru4rec, width: 8, hidden: 8, dropout: 0}}
method: base
training: {{max_epochs: 1}}
"""
BY_SIZE = ("batch_size", "learning_rate", "warmup_steps", "patience")


@pytest.fixture
def config(small_log: Path, tmp_path: Path) -> Path:
    path = tmp_path / "open.yaml"
    path.write_text(CONFIG.format(folder=tmp_path, log=small_log))
    return path


def written(config: Path) -> dict[str, Any]:
    """`training` in the config of the run's folder."""
    return yaml.safe_load((config.parent / "open/config.yaml").read_text())["training"]


def expected(config: Path) -> dict[str, Any]:
    train = Dataset(config.parent / "open/dataset").splits["train"]
    return resolve(TrainingOptions(max_epochs=1), train).model_dump(mode="json")


def test_the_runs_config_says_what_was_chosen_as_soon_as_the_dataset_is_there(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "--config", str(config)]) == 0
    assert written(config) == expected(config)
    chosen = expected(config)
    said = ", ".join(f"{key} {chosen[key]:g}" for key in BY_SIZE)
    assert f"training, by the size of the log: {said}" in capsys.readouterr().out
    assert main(["plan", "--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert f"{chosen['batch_size']} windows" in said
    assert "changed since the run began" not in said


def test_a_run_goes_on_by_the_same_config_and_by_the_values_that_were_chosen(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["run", "--config", str(config)]
    assert main(run) == 0
    record = read_json(config.parent / "open/distill.done.json")["inputs"]
    chosen = expected(config)
    names = {"training.batch_size", "training.learning_rate", "training.warmup_steps"}
    assert {key: record[key] for key in names} == {f"training.{key}": chosen[key] for key in BY_SIZE[:3]}
    capsys.readouterr()
    assert main(run) == 0
    assert "distill done already" in capsys.readouterr().out
    explicit = [f"--set=training.{key}={chosen[key]}" for key in BY_SIZE]
    assert main([*run, *explicit]) == 0
    assert "distill done already" in capsys.readouterr().out
    assert main([*run, "--set", "training.batch_size=3"]) == 2
    assert f"training.batch_size was {chosen['batch_size']}, is 3" in capsys.readouterr().err


def test_another_log_is_looked_at_again(config: Path, small_log: Path) -> None:
    assert main(["prepare", "--config", str(config)]) == 0
    before = written(config)
    log = pl.read_csv(small_log)
    many = pl.concat([log.with_columns(user=pl.col("user") + f"-{copy}") for copy in range(40)])
    many.write_csv(config.parent / "many.csv")
    other = ["--set", f"dataset.source={config.parent / 'many.csv'}"]
    assert main(["prepare", "--config", str(config), *other, "--restart", "prepare"]) == 0
    assert written(config) == expected(config)
    assert written(config)["batch_size"] > before["batch_size"]


def test_a_damaged_dataset_is_replaced(config: Path) -> None:
    assert main(["prepare", "--config", str(config)]) == 0
    (config.parent / "open/dataset/dataset.json").write_text("{")
    assert main(["run", "--config", str(config), "--restart", "prepare"]) == 0
    assert written(config) == expected(config)


def prepare_as_rank(rank: int, world_size: int, path: str) -> dict[str, Any]:
    """What this rank trains with."""
    return execute(load_config(path), Runtime.start(), ["prepare"]).training.model_dump(mode="json")


def test_all_ranks_train_with_the_same(config: Path) -> None:
    assert run_ranks(prepare_as_rank, 2, str(config)) == [expected(config)] * 2


def test_a_study_that_leaves_values_open_goes_on(config: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        "title: Open\nconfig: open.yaml\nseeds: [0]\naxes: {beta: {a: {training.beta: 0.5}}}\n"
        "tables: [{rows: [beta], columns: beta, metrics: [ndcg@10]}]\n"
    )
    study = ["study", str(tmp_path / "study.yaml"), "--output", str(tmp_path / "studies")]
    assert main(study) == 0
    assert main(study) == 0, "its finished run has the study's settings"
    [entry] = load_study(tmp_path / "study.yaml").entries(tmp_path / "studies/study/runs", {})
    assert Run.open(entry.run.folder).training == entry.run.training
    assert not entry.config.training.is_resolved


def test_a_restart_of_prepare_that_was_cut_off_later_goes_on(config: Path) -> None:
    run = ["run", "--config", str(config)]
    assert main(run) == 0

    def cut_off() -> None:
        raise KeyboardInterrupt

    with at_each_batch(cut_off):
        assert main([*run, "--restart", "prepare"]) == 130
    dataset = config.parent / "open/dataset/dataset.json"
    replaced = dataset.stat().st_mtime_ns
    assert main([*run, "--restart", "prepare"]) == 0
    assert dataset.stat().st_mtime_ns == replaced, "it is not prepared a third time"
    assert written(config) == expected(config)
    assert read_json(config.parent / "open/distill.done.json")["inputs"]["training.batch_size"] is not None
