"""Stage evaluate of a small run: the same metrics and the same files on 1, 2 and 3 ranks."""

import errno
import math
import os
import shutil
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import torch.distributed as dist
from polars.testing import assert_frame_equal

from csrec_dist import models
from csrec_dist.config import Config, load_config
from csrec_dist.distributed import Group, Runtime
from csrec_dist.errors import StorageError
from csrec_dist.evaluation.per_row import part_path
from csrec_dist.files import flatten, read_json
from csrec_dist.models.gru4rec import GRU4Rec, GRU4RecConfig
from csrec_dist.runs.pipeline import execute
from csrec_dist.runs.stages.active import ActiveRun
from csrec_dist.runs.stages.evaluate import evaluate_model
from tests.helpers.disks import before_calls
from tests.helpers.ranks import run_ranks

TIMEOUT = 2.0  # seconds

RUN = """
name: small
dataset: {path: %s}
model: {name: gru4rec, width: 8, dropout: 0}
method: model_level
training: {batch_size: 7, max_epochs: 2, learning_rate: 0.01}
evaluation: {top_n: [1, 5], exclude_seen: true}
"""
FILES = ["diversity-test", "student-test", "teacher-0-test", "teacher-1-test", "teachers-test"]


def config_of(folder: Path, output: Path, *overrides: str) -> Config:
    return load_config(folder / "config.yaml", [f"output={output}", *overrides])


@pytest.fixture(scope="module")
def finished(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a config; its run, evaluated by one process, is in 1/small beside it."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "config.yaml").write_text(RUN % small_dataset)
    execute(config_of(folder, folder / "1"), Runtime.start())
    return folder


def evaluate_again(rank: int, world_size: int, folder: str, output: str, *overrides: str) -> None:
    os.environ["RANK"] = str(rank)
    execute(config_of(Path(folder), Path(output), *overrides), Runtime.start(), ["evaluate"], "evaluate")


def metrics(output: Path) -> dict[str, Any]:
    return read_json(output / "small" / "metrics.json")


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every number of nested sections and lists, by its path."""
    if isinstance(value, list):
        value = {str(place): each for place, each in enumerate(value)}
    if not isinstance(value, dict):
        return {prefix: value}
    return {name: number for key, each in value.items() for name, number in flat(each, f"{prefix}/{key}").items()}


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_gives_the_same_files_and_metrics(finished: Path, tmp_path: Path, world_size: int) -> None:
    shutil.copytree(finished / "1", tmp_path / "runs")
    run_ranks(evaluate_again, world_size, str(finished), str(tmp_path / "runs"))
    found, expected = flat(metrics(tmp_path / "runs")), flat(metrics(finished / "1"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == (value if value is None or isinstance(value, str) else pytest.approx(value, rel=1e-9)), (
            name
        )
    ranks = tmp_path / "runs" / "small" / "ranks"
    assert sorted(path.stem for path in ranks.iterdir()) == FILES
    for path in ranks.iterdir():
        assert path.read_bytes() == (finished / "1" / "small" / "ranks" / path.name).read_bytes()


@pytest.mark.parametrize("world_size", [2, 3])
def test_an_engine_that_shards_tables_evaluates_from_slices(finished: Path, tmp_path: Path, world_size: int) -> None:
    shutil.copytree(finished / "1", tmp_path / "runs")
    overrides = ["distributed.engine=fsdp", f"distributed.log_dir={tmp_path}/logs"]
    run_ranks(evaluate_again, world_size, str(finished), str(tmp_path / "runs"), *overrides)
    found, expected = flat(metrics(tmp_path / "runs")), flat(metrics(finished / "1"))
    assert found.keys() == expected.keys()
    numbers = {name: value for name, value in expected.items() if isinstance(value, float | int)}
    assert {name: found[name] for name in numbers} == pytest.approx(numbers, rel=1e-5)
    for file in FILES:
        paths = [folder / f"small/ranks/{file}.parquet" for folder in (tmp_path / "runs", finished / "1")]
        assert_frame_equal(*map(pl.read_parquet, paths), rel_tol=1e-5)
    for rank in range(world_size):
        lines = (tmp_path / f"logs/rank-{rank:05d}.log").read_text().splitlines()
        assert [line.split(" ", 1)[1] for line in (lines[0], lines[-1])] == ["run begins", "run ends"]
        assert any("evaluate student: test recall@10" in line for line in lines), lines


def test_metrics_json_keeps_its_keys(finished: Path) -> None:
    found = metrics(finished / "1")
    student = found["models"]["student"]
    assert {name: found[name] for name in student} == student
    assert student.keys() == {"valid", "test", "groups", "lists", "calibration"}
    assert found["models"].keys() == {"student", "teacher-0", "teacher-1", "teachers"}
    assert all(isinstance(value, float) for split in ("valid", "test") for value in student[split].values())
    assert student["test"].keys() >= {"recall@10", "ndcg@1", "mrr", "recall+@5", "ndcg-@10"}
    assert found["diversity"]["count"] == student["calibration"]["count"]
    assert flatten(student["groups"])["popularity.popular_20%.count"] > 0


def test_rows_of_the_files_give_the_metrics(finished: Path) -> None:
    for name, found in metrics(finished / "1")["models"].items():
        frame = pl.read_parquet(finished / "1" / "small" / "ranks" / f"{name}-test.parquet")
        assert frame["row"].to_list() == list(range(len(frame)))
        assert (frame["rank"] <= 5).mean() == pytest.approx(found["test"]["recall@5"], rel=1e-12)
        rated = frame.filter(pl.col("rating") >= 4)
        assert (rated["rank"] <= 5).mean() == pytest.approx(found["test"]["recall+@5"], rel=1e-12)
        popular = frame.filter(pl.col("popularity_decile") <= 2)
        group = found["groups"]["popularity"]["popular_20%"]
        assert len(popular) == group["count"]
        assert (1 / popular["rank"]).mean() == pytest.approx(group["mrr"], rel=1e-12)
    members = pl.read_parquet(finished / "1" / "small" / "ranks" / "diversity-test.parquet")
    diversity = metrics(finished / "1")["diversity"]
    for name in ("disagreement@5", "jensen_shannon"):
        assert members[name].mean() == pytest.approx(diversity[name], rel=1e-12)


def test_ranks_are_those_of_the_saved_model(finished: Path, small_dataset: Path) -> None:
    run = finished / "1" / "small"
    student = models.load(run / "student").eval()
    rows = pl.read_parquet(small_dataset / "test-*.parquet").sort("row")
    frame = pl.read_parquet(run / "ranks" / "student-test.parquet")
    assert frame["user"].to_list() == rows["user"].to_list()
    for items, target, rank, rating in zip(
        rows["items"], frame["target"], frame["rank"], zip(frame["rating"], rows["rating"], strict=True), strict=True
    ):
        *history, last = items.to_list()
        scores = student.score([history])[0]
        scores[list(set(history))] = -float("inf")
        assert (target, rank) == (last, 1 + int((scores[1:] >= scores[last]).sum()) - 1)
        assert rating[0] == rating[1]


def test_validation_hides_what_the_test_hides(finished: Path, small_dataset: Path) -> None:
    """Or the epoch that is kept, and a search's best trial, would be best at another task."""
    run = finished / "1" / "small"
    student, gains = models.load(run / "student").eval(), []
    for items in pl.read_parquet(small_dataset / "valid-*.parquet")["items"]:
        *history, last = items.to_list()
        scores = student.score([history])[0].detach()
        scores[list(set(history))] = -float("inf")
        rank = int((scores[1:] >= scores[last]).sum())
        gains.append(1 / math.log2(rank + 1) if rank <= 5 and math.isfinite(float(scores[last])) else 0.0)
    found = metrics(finished / "1")["models"]["student"]["valid"]
    assert sum(gains) / len(gains) == pytest.approx(found["ndcg@5"], rel=1e-6)


def test_extras_can_be_switched_off_and_old_files_go(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "1", tmp_path / "runs")
    off = [f"evaluation.{name}=false" for name in ("lists", "calibration", "diversity")]
    execute(config_of(finished, tmp_path / "runs", *off), Runtime.start(), ["evaluate"], "evaluate")
    found = metrics(tmp_path / "runs")
    assert "diversity" not in found
    assert found["models"]["student"].keys() == {"valid", "test", "groups"}
    assert found["test"] == metrics(finished / "1")["test"]
    assert not (tmp_path / "runs" / "small" / "ranks" / "diversity-test.parquet").exists()


def test_what_a_killed_evaluation_has_left_counts_for_nothing(finished: Path, tmp_path: Path) -> None:
    """A part that was whole, but had no name yet; that its folder cannot be removed at first is said."""
    shutil.copytree(finished / "1", tmp_path / "runs")
    run = tmp_path / "runs/small"
    (run / "evaluate.done.json").unlink()
    ranks = run / "ranks/student-test.parquet"
    part = part_path(ranks, 0)
    part.parent.mkdir()
    shutil.copy(ranks, part.with_name(f".{part.name}.elsewhere_0123abcd-99-0123456789abcdef.tmp"))

    def fail(call: str, path: str) -> None:
        if call == "open" and path == str(run / "ranks"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    with before_calls(run, fail), pytest.raises(StorageError, match="Input/output error"):
        execute(config_of(finished, tmp_path / "runs"), Runtime.start(), ["evaluate"])
    execute(config_of(finished, tmp_path / "runs"), Runtime.start(), ["evaluate"])
    assert ranks.read_bytes() == (finished / "1/small/ranks" / ranks.name).read_bytes()


class SlowOnOneRank(GRU4Rec):
    """A model whose first histories take rank 1 longer to read than the ranks' timeout."""

    begin = time.monotonic()

    def encode_last(self, histories: torch.Tensor) -> torch.Tensor:
        end = self.begin + 2.5 * TIMEOUT * (os.environ["RANK"] == "1")
        while time.monotonic() < end:
            sum(range(1000))
        return super().encode_last(histories)


def evaluate_slowly(rank: int, world_size: int, folder: str, dataset: str) -> dict[str, float]:
    """Validation metrics of a model, one rank taking longer than the others may stay away."""
    run = ActiveRun(config_of(Path(folder), Path(folder) / "1", f"dataset.path={dataset}"), Runtime.start(TIMEOUT / 60))
    dist.barrier()  # as gloo's first collective connects the ranks
    handle = dist.new_group(timeout=timedelta(seconds=TIMEOUT))
    group = Group(run.runtime.world.ranks, rank, handle, run.runtime.watch)
    torch.manual_seed(0)
    model = SlowOnOneRank(GRU4RecConfig(width=8), run.dataset.num_items, run.dataset.window - 1)
    model.begin = time.monotonic()
    return evaluate_model(run, model, "valid", replace(run.layout, group=group))


def test_an_evaluation_waits_for_a_rank_that_takes_longer(finished: Path, small_dataset: Path) -> None:
    first, second = run_ranks(evaluate_slowly, 2, str(finished), str(small_dataset))
    assert first == second
