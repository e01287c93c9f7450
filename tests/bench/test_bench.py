"""Benchmarks, run small: counts add up to the log, and the JSON file says all that the table shows."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from csrec_dist.bench.result import Result, read_result
from csrec_dist.bench.table import result_table
from csrec_dist.cli import main
from tests.helpers.bench_results import SMALL, measure_as_rank
from tests.helpers.machines import environment
from tests.helpers.ranks import run_ranks

EXAMPLES = 16 * (4 + 2) * (9 - 3)
"""Of the log of one rank: a window of nine items for each place of its batches."""
ROWS = 16 * (4 + 2)


def check_counts(result: Result, num_ranks: int, num_models: int) -> None:
    """All ranks together worked on the whole log, in every stage; every rank has its place in every figure."""
    log, members = result.log, num_models - 1
    assert (log.examples, log.windows) == (num_ranks * EXAMPLES, num_ranks * ROWS)
    totals = {name: sum(stage.examples) for name, stage in result.stages.items()}
    once_more = 2 * members * (members > 1)  # the members pass test as an ensemble, and to be compared
    assert totals["distill"] == log.examples
    assert totals["evaluate"] == (2 * num_models + once_more) * log.windows
    if members:
        assert totals["label"] == log.examples
        assert totals["teach"] == members * log.examples
    assert result.num_ranks == num_ranks
    for stage in result.stages.values():
        for numbers in (stage.examples, stage.examples_per_second, stage.data_wait, stage.rank_wait):
            assert len(numbers) == len(stage.teraflops) == len(stage.peak_memory_mib) == num_ranks
        assert sum(stage.teraflops) > 0
        assert all(0 <= share <= 1 for share in (*stage.data_wait, *stage.rank_wait))


def test_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "one.json"
    assert main(["bench", *SMALL, "--output", str(output)]) == 0
    said, result = capsys.readouterr().out, read_result(output)
    assert [path.name for path in output.parent.iterdir()] == ["one.json"], "nothing else is left"
    check_counts(result, num_ranks=1, num_models=3)
    assert list(result.stages) == ["teach", "label", "distill", "evaluate"]
    steps = {name: stage.steps.num for name, stage in result.stages.items() if stage.steps}
    assert steps == {"teach": 2 * 4, "distill": 4}
    assert result.limits.all_reduce is None
    assert result.log.label_bytes > EXAMPLES * 2 * 8 * 2, "two members' states of 8 numbers in two bytes each"
    console = Console(width=300, record=True, quiet=False)
    with console.capture() as capture:
        console.print(result_table(result))
    assert capture.get() in said, "the table shows what the file says"


def test_a_config_of_its_own(tmp_path: Path, finished_run: tuple[Path, Path], small_log: Path) -> None:
    command = [
        "bench",
        "--config",
        str(finished_run[0]),
        "--set",
        "training.batch_size=4",
        "--steps",
        "3",
        "--warmup",
        "1",
    ]
    assert main([*command, "--output", str(tmp_path / "own.json")]) == 0
    result = read_result(tmp_path / "own.json")
    assert result.settings["model.name"] == "gru4rec"
    assert result.log.items == 30
    assert result.stages["distill"].steps is not None
    assert result.stages["distill"].steps.num == 3
    assert sum(result.stages["label"].examples) == result.log.examples


def test_members_that_were_trained_before_are_not_timed_and_may_lack_new_items(
    tmp_path: Path, finished_run: tuple[Path, Path]
) -> None:
    config, run = finished_run
    rows = [f"u{user},i{item},5,{100 + item}\n" for user in range(3) for item in (30, 31, 1, 2)]
    (tmp_path / "new.csv").write_text("user,item,rating,timestamp\n" + "".join(rows))
    new = ["--append", str(tmp_path / "new.csv"), "--dataset", str(run / "dataset"), "--to", str(tmp_path / "longer")]
    assert main(["prepare", *new]) == 0
    folders = [str(run / "teachers" / name) for name in ("teacher-0", "teacher-1")]
    values = yaml.safe_load(config.read_text()) | {"dataset": {"path": str(tmp_path / "longer")}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values | {"teachers": {"pretrained": folders}}))
    command = ["bench", "--config", str(tmp_path / "config.yaml"), "--set", "training.batch_size=4"]
    assert main([*command, "--steps", "3", "--warmup", "1", "--output", str(tmp_path / "own.json")]) == 0
    result = read_result(tmp_path / "own.json")
    assert list(result.stages) == ["label", "distill", "evaluate"]
    assert sum(result.stages["label"].examples) == result.log.examples
    assert result.log.items == 32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "x.yaml", "--items", "9", "--batch-size", "9"], "--items, --batch-size"),
        (["--warmup", "0"], "--warmup 0"),
        (["--items", "0"], "--items must be at least 1"),
        (["--model", "sasrek"], "did you mean sasrec"),
        (["--set", "training.betta=1"], "did you mean beta"),
        (["--set", "training.batch_size=null"], "give a number to a benchmark"),
        (["--output", "."], "is a folder"),
    ],
)
def test_mistakes_are_said_before_any_work(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    written = capsys.readouterr()
    assert words in written.err
    assert written.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_log_without_a_step_that_counts_is_refused(
    finished_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["bench", "--config", str(finished_run[0]), "--output", str(tmp_path / "none.json")]
    assert main(command) == 2
    assert "smaller training.batch_size" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_two_ranks(tmp_path: Path) -> None:
    sizes = {"method": "base", "model": "gru4rec", "precision": "bf16"}
    first, second = run_ranks(measure_as_rank, 2, str(tmp_path / "two.json"), sizes, [], timeout=240)
    assert first == second
    check_two_ranks(Result.model_validate(first), num_models=1)
    assert list(tmp_path.iterdir()) == []


def check_two_ranks(result: Result, num_models: int) -> None:
    check_counts(result, num_ranks=2, num_models=num_models)
    assert result.limits.all_reduce is not None
    assert result.one_rank_problem is None
    assert all(stage.speedup for stage in result.stages.values())
    assert [machine.ranks for machine in result.machines] == [[0, 1]]


@pytest.mark.long
@pytest.mark.parametrize(
    ("sizes", "overrides", "members"),
    [
        ({"catalog_parallel": 2, "method": "training_level"}, [], 2),
        ({"engine": "fsdp", "method": "softrec"}, [], 0),
        ({"method": "data_level"}, ["teachers.num=3", "labels.form=topk", "training.kl=forward"], 3),
    ],
)
def test_three_or_four_ranks(sizes: dict[str, Any], overrides: list[str], members: int, tmp_path: Path) -> None:
    num_ranks = 4 if "catalog_parallel" in sizes else 3
    results = run_ranks(measure_as_rank, num_ranks, str(tmp_path / "x.json"), sizes, overrides, timeout=300)
    result = Result.model_validate(results[0])
    assert sum(result.stages["distill"].examples) == result.log.examples
    assert all(number > 0 for stage in result.stages.values() for number in stage.examples_per_second)
    assert len(result.stages) == (4 if members else 2)


@pytest.mark.launch
def test_under_accelerate(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launcher, "-m", "csrec_dist", "bench", *SMALL, "--output", str(tmp_path / "two.json")]
    done = subprocess.run(
        command, env=environment({}), capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    check_two_ranks(read_result(tmp_path / "two.json"), num_models=3)
    assert done.stdout.count("examples/s") == 1, "one rank prints"
