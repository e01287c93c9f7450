"""The last sentence on the terminal: what soft labels gained in a run, how sure that is, and what to do next."""

import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from scipy.stats import ttest_rel

from csrec_dist.evaluation.significance import Paired
from csrec_dist.files import write_json
from csrec_dist.report import print_results
from csrec_dist.report.verdict import sentence, verdict
from csrec_dist.runs.run import Run
from tests.helpers.run_folders import make_run

NUM_ROWS = 200


def write_ranks(run: Path, name: str, ranks: np.ndarray) -> None:
    (run / "ranks").mkdir(exist_ok=True)
    rows = np.arange(len(ranks))
    columns = {"row": rows, "user": rows, "target": rows % 7 + 1, "rank": ranks, "rating": [None] * len(ranks)}
    pl.DataFrame(columns).write_parquet(run / f"ranks/{name}-test.parquet")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with made-up ranks, of which the student's are better."""
    folder = make_run(tmp_path)
    base = np.random.default_rng(0).integers(1, 40, NUM_ROWS)
    write_ranks(folder, "base", base)
    write_ranks(folder, "student", np.maximum(base - 3, 1))
    return folder


def ndcg(ranks: np.ndarray) -> np.ndarray:
    return np.array([1 / np.log2(rank + 1) if rank <= 10 else 0.0 for rank in ranks])


def test_the_figures_are_those_of_the_ranks(run: Path) -> None:
    base, student = (ndcg(pl.read_parquet(run / f"ranks/{name}-test.parquet")["rank"]) for name in ("base", "student"))
    text = verdict(Run.open(run))
    assert f"NDCG@10 {student.mean():.4f} against {base.mean():.4f}" in text
    assert f"difference {(student - base).mean():+.4f}, 95 % interval +0." in text
    assert f"p = {ttest_rel(student, base).pvalue:.2g}, over 200 test rows" in text
    assert text.startswith("CSRec-M gains on Base: ")


def test_the_results_on_the_terminal_end_with_it(run: Path) -> None:
    console = Console(file=io.StringIO(), width=500)
    print_results(run, console)
    assert console.file.getvalue().rstrip().endswith(verdict(Run.open(run)))  # type: ignore[attr-defined]


def test_without_the_ranks_of_a_base_nothing_is_said(run: Path, tmp_path: Path) -> None:
    write_ranks(run, "base", np.array([1]))
    write_ranks(run, "student", np.array([2]))
    assert verdict(Run.open(run)) == "", "one row"
    (run / "ranks/base-test.parquet").unlink()
    assert verdict(Run.open(run)) == ""
    assert verdict(Run.open(make_run(tmp_path / "base", method="base"))) == ""
    (run / "evaluate.done.json").unlink()
    write_json(run / "metrics.json", {})
    assert verdict(Run.open(run)) == ""


@pytest.mark.parametrize(
    ("second", "p_value", "said", "next_step"),
    [
        (
            0.12,
            0.01,
            "CSRec-D gains on Base: NDCG@10 0.1200 against 0.1000 (+20.0%)",
            "whether it does with every seed",
        ),
        (0.12, 0.2, "In this one run CSRec-D is above Base, but within chance, so no gain is shown", "further seeds"),
        (0.09, 0.2, "In this one run CSRec-D shows no gain over Base", "on validation with csrec-dist tune, or train"),
        (0.09, 0.01, "In this one run CSRec-D is below Base", "on validation with csrec-dist tune, or train"),
        (0.10, 1.0, "In this one run CSRec-D shows no gain over Base", "on validation with csrec-dist tune, or train"),
    ],
)
def test_what_is_said_depends_on_difference_and_chance(
    second: float, p_value: float, said: str, next_step: str
) -> None:
    text = sentence("CSRec-D", "mine", Paired(100, 0.1, second, second - 0.11, second - 0.09, p_value))
    assert text.startswith(said)
    assert f"p = {p_value:.2g}, over 100 test rows. Next: " in text
    assert next_step in text.partition("Next: ")[2]
    assert "--set seed=1 --set name=mine_s1" in text


def test_a_base_that_finds_nothing_has_no_share_to_gain_on() -> None:
    assert "0.1000 against 0.0000, difference +0.1000" in sentence("CSRec-M", "r", Paired(10, 0, 0.1, 0, 0.2, 0.01))
