"""Two models compared on the same test rows: values, seeds, refusals and the table."""

import io
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console
from scipy import stats

from csrec_dist.config import parse_config
from csrec_dist.errors import UserError
from csrec_dist.evaluation.metrics import ndcg, recall, reciprocal_rank
from csrec_dist.evaluation.significance import metric_values
from csrec_dist.files import write_text
from csrec_dist.report.paired import Comparison, compare_models, comparison_table
from csrec_dist.runs.run import Record, Run

NUM_ROWS = 120


def make_run(
    folder: Path, name: str, seed: int = 0, shift: int = 0, dataset: str = "d1", exclude_seen: bool = False
) -> Path:
    """An evaluated run of made-up ranks, better by `shift`, in its student and its base."""
    config = parse_config(
        {
            "name": name,
            "seed": seed,
            "output": str(folder),
            "dataset": {"source": "log.csv"},
            "model": {"name": "sasrec"},
            "evaluation": {"exclude_seen": exclude_seen},
        }
    )
    write_text(Run.of(config).folder / "config.yaml", config.to_yaml())
    Run(Run.of(config).folder).finish("evaluate", Record({"dataset": dataset}, {}, []))
    for place, model in enumerate(("student", "base")):
        write_ranks(Run.of(config).folder, model, drawn_ranks(seed, place, shift))
    return Run.of(config).folder


def drawn_ranks(seed: int, place: int, shift: int) -> np.ndarray:
    difficulty = np.random.default_rng(99).integers(1, 40, NUM_ROWS)
    noise = np.random.default_rng([seed, place, shift]).integers(-2, 3, NUM_ROWS)
    return np.maximum(difficulty + noise + 3 * place - shift, 1)


def write_ranks(run: Path, model: str, ranks: np.ndarray, targets: int = 0) -> None:
    rows = np.arange(NUM_ROWS)
    ratings = [None if row % 4 == 0 else float(1 + row % 5) for row in rows]
    frame = pl.DataFrame({"row": rows, "user": rows, "target": rows + targets, "rank": ranks, "rating": ratings})
    (run / "ranks").mkdir(exist_ok=True)
    frame.with_columns(pl.col("rating").cast(pl.Float32)).write_parquet(run / "ranks" / f"{model}-test.parquet")


def values(ranks: np.ndarray) -> dict[str, np.ndarray]:
    hit = ranks <= 10
    return {
        "recall@10": hit.astype(float),
        "ndcg@10": hit * math.log(2) / np.log(ranks + 1.0),
        "mrr@10": hit / ranks,
    }


def by_name(comparison: Comparison) -> dict[str, tuple[float, float, float]]:
    return {line.metric: (line.paired.first, line.paired.second, line.paired.p_value) for line in comparison.lines}


def test_two_runs_row_by_row(tmp_path: Path) -> None:
    one, other = make_run(tmp_path, "one"), make_run(tmp_path, "other", shift=4)
    comparison = compare_models(str(one), str(other))
    found = by_name(comparison)
    first, second = values(drawn_ranks(0, 0, 0)), values(drawn_ranks(0, 0, 4))
    for name in first:
        p_value = stats.ttest_rel(second[name], first[name]).pvalue
        assert found[name] == pytest.approx((first[name].mean(), second[name].mean(), p_value))
    rated = np.array([row % 4 != 0 and 1 + row % 5 >= 4 for row in range(NUM_ROWS)])
    low = np.array([row % 4 != 0 and 1 + row % 5 < 4 for row in range(NUM_ROWS)])
    for sign, rows in (("+", rated), ("-", low)):
        assert found[f"ndcg{sign}@10"][0] == pytest.approx(first["ndcg@10"][rows].mean())
        line = next(line for line in comparison.lines if line.metric == f"recall{sign}@10")
        assert line.paired.count == rows.sum()
    assert comparison.first == ("one",)


def test_two_models_of_one_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one")
    comparison = compare_models(f"{run}:base", f"{run}", top_n=(5, 20))
    assert (comparison.first, comparison.second) == (("one:base",), ("one",))
    assert [line.metric for line in comparison.lines][:6] == [
        f"{name}@{n}" for name in ("recall", "ndcg", "mrr") for n in (5, 20)
    ]
    assert comparison.lines[0].paired.first == pytest.approx((drawn_ranks(0, 1, 0) <= 5).mean())


def test_seeds_are_paired_and_rows_are_the_sample(tmp_path: Path) -> None:
    sides = [
        [make_run(tmp_path, f"{name}{seed}", seed, shift) for seed in (0, 1, 2)] for name, shift in (("a", 0), ("b", 2))
    ]
    comparison = compare_models(",".join(map(str, sides[0])), ",".join(map(str, reversed(sides[1]))))
    means = [np.mean([values(drawn_ranks(seed, 0, shift))["ndcg@10"] for seed in range(3)], axis=0) for shift in (0, 2)]
    line = next(line for line in comparison.lines if line.metric == "ndcg@10")
    assert line.paired.count == NUM_ROWS
    assert line.paired.p_value == pytest.approx(stats.ttest_rel(means[1], means[0]).pvalue)
    for seed, difference in enumerate(line.differences):
        pair = [values(drawn_ranks(seed, 0, shift))["ndcg@10"].mean() for shift in (0, 2)]
        assert difference == pytest.approx(pair[1] - pair[0])
    assert comparison.second == ("b0", "b1", "b2")


def test_a_model_does_not_differ_from_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one")
    for line in compare_models(str(run), str(run)).lines:
        assert (line.paired.difference, line.paired.low, line.paired.high, line.paired.p_value) == (0, 0, 0, 1)


def test_the_table_marks_what_is_significant(tmp_path: Path) -> None:
    one, other = make_run(tmp_path, "one"), make_run(tmp_path, "other", shift=4)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(comparison_table(compare_models(str(one), str(other))))
    text = console.export_text()
    assert "NDCG@10" in text
    marked = [line for line in text.splitlines() if "Recall@10" in line]
    assert "*" in marked[0]
    console.print(comparison_table(compare_models(str(one), str(one))))
    assert "*" not in next(line for line in console.export_text().splitlines() if "Recall@10" in line)


def refused(first: object, second: object) -> str:
    with pytest.raises(UserError) as caught:
        compare_models(str(first), str(second))
    return str(caught.value)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    one = make_run(tmp_path, "one")
    assert "evaluation.exclude_seen" in refused(one, make_run(tmp_path, "seen", exclude_seen=True))
    assert "different dataset" in refused(one, make_run(tmp_path, "elsewhere", dataset="d2"))
    assert "not the folder of a run" in refused(one, tmp_path / "nowhere")
    assert "no model teacher-7" in refused(one, f"{one}:teacher-7")
    write_ranks(make_run(tmp_path, "shifted"), "student", drawn_ranks(0, 0, 0), targets=1)
    assert "test rows or targets differ" in refused(one, tmp_path / "shifted")
    (one / "evaluate.done.json").unlink()
    assert "Stage evaluate" in refused(one, one)


def test_users_with_their_rows_are_the_sample(tmp_path: Path) -> None:
    """Four rows of each user."""
    one, other = make_run(tmp_path, "one"), make_run(tmp_path, "other", shift=4)
    users = np.arange(NUM_ROWS) // 4
    for path in [*one.glob("ranks/*"), *other.glob("ranks/*")]:
        pl.read_parquet(path).with_columns(user=pl.Series(users)).write_parquet(path)
    (line,) = [each for each in compare_models(str(one), str(other)).lines if each.metric == "ndcg@10"]
    first, second = (values(drawn_ranks(0, 0, shift))["ndcg@10"].reshape(-1, 4).mean(1) for shift in (0, 4))
    assert (line.paired.count, line.paired.num_users) == (NUM_ROWS, NUM_ROWS // 4)
    assert line.paired.p_value == pytest.approx(stats.ttest_rel(second, first).pvalue)


def test_the_seed_decides_the_interval(tmp_path: Path) -> None:
    one, other = (str(make_run(tmp_path, name, shift=shift)) for name, shift in (("one", 0), ("other", 4)))
    ends = [compare_models(one, other, seed=seed).lines[1].paired.low for seed in (3, 3, 4)]
    assert ends[0] == ends[1] != ends[2]


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    run = str(make_run(tmp_path, "a"))
    with pytest.raises(UserError, match="at least 0, not -1"):
        compare_models(run, run, seed=-1)


@pytest.mark.parametrize("top_n", [(0,), (-1,), (10, 0)])
def test_cut_offs_below_1_are_refused(tmp_path: Path, top_n: tuple[int, ...]) -> None:
    run = str(make_run(tmp_path, "a"))
    with pytest.raises(UserError, match=f"A cut-off must be at least 1, not {min(top_n)}"):
        compare_models(run, f"{run}:base", top_n=top_n)


def test_seeds_that_do_not_pair_are_refused(tmp_path: Path) -> None:
    a0, a1, b2 = (make_run(tmp_path, name, seed) for name, seed in (("a0", 0), ("a1", 1), ("b2", 2)))
    assert "seeds [0, 1], the other [0, 2]" in refused(f"{a0},{a1}", f"{a0},{b2}")
    assert "seeds [0, 1], the other [0]" in refused(f"{a0},{a1}", a0)
    assert "give each seed once" in refused(f"{a0},{a0}", f"{a0},{a0}")


def test_a_run_evaluated_by_an_earlier_version_is_told_to_evaluate_again(tmp_path: Path) -> None:
    one = make_run(tmp_path, "one")
    shutil.rmtree(one / "ranks")
    assert "--restart evaluate" in refused(one, one)


@pytest.mark.parametrize(("name", "metric"), [("recall", recall), ("ndcg", ndcg), ("mrr", reciprocal_rank)])
def test_metrics_are_those_of_evaluation(name: str, metric: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    ranks = np.arange(1, 40).reshape(3, 13)
    for n in (1, 5, 10, 100):
        np.testing.assert_allclose(metric_values(name, ranks, n), metric(torch.from_numpy(ranks), n), rtol=1e-14)
