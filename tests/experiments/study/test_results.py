"""The rows, tables and figures of a study, from made-up results and from files."""

import html
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from scipy import stats

from csrec_dist.cli import main
from csrec_dist.config import parse_config
from csrec_dist.errors import UserError
from csrec_dist.experiments.study.collecting import collect, teacher_model, training_cost
from csrec_dist.experiments.study.figures import draw, draw_curve, ticks_of
from csrec_dist.experiments.study.marks import compare_columns
from csrec_dist.experiments.study.results import with_rows
from csrec_dist.experiments.study.tables import against, answer, in_percent, published, table
from csrec_dist.experiments.study.views import CurveOptions, FigureOptions, TableOptions
from csrec_dist.files import read_json, write_json
from csrec_dist.report.document import Block, block_markdown
from csrec_dist.runs.run import Record, Run
from tests.helpers.study_files import entries_of, write_study

NUM_ROWS = 200


@pytest.fixture
def study_file(small_log: Path, tmp_path: Path) -> Path:
    return write_study(tmp_path, small_log)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """The figures that are saved."""
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    return figures


def row(method: str, temperature: str, seed: int, value: float, cost: float | None = 1.0) -> dict:
    name = f"{method}-{temperature}-s{seed}"
    cell = {"method": method, "temperature": temperature, "seed": seed, "run": name, "teacher_model": None}
    groups = {"popularity/popular_20%/ndcg@10": 2 * value, "popularity/rest_80%/ndcg@10": value / 2}
    return {**cell, "ndcg@10": value, "cpu_seconds": cost, "lists/gini@10": 0.61234, **groups}


ROWS = [
    row("Base", "1", 0, 0.10, 10.0),
    row("Base", "1", 1, 0.12, 10.0),
    row("Base", "3", 0, 0.30, 10.0),
    row("CSRec-M", "1", 0, 0.20, 30.0),
    row("CSRec-M", "1", 1, 0.20, None),
    row("CSRec-M", "3", 0, 0.10, 50.0),
]


def markdown_of(blocks: list[Block]) -> str:
    return "\n\n".join(paragraph for block in blocks for paragraph in block_markdown(block))


def test_tables_say_means_spreads_wins_and_costs(study_file: Path) -> None:
    study_file.write_text(study_file.read_text().replace("skip: [{method: Base, temperature: 1}]", ""))
    study, _ = entries_of(study_file)
    text = markdown_of(table(study, study.tables[0], pl.DataFrame(ROWS)))
    assert "| 1 | 11.00 ± 1.41 (2)<br>12.50 | **20.00 ± 0.00 (2)** |" in text
    assert "10.00 (1)" in text
    assert "CSRec-M is higher than Base: ndcg@10 1 of 2" in text
    assert "| mean over the rows | 1.0 (2) | 4.0 (2) |" in text
    assert "↑ higher, ↓ lower than ᵃ Base: " in text
    assert "over the 0 tests of this table" in text
    assert "Not every row could be tested" not in text


def test_a_table_shows_what_it_is_asked_for(study_file: Path) -> None:
    study, _ = entries_of(study_file)
    options = TableOptions(
        rows=["temperature"], columns="method", metrics=["lists/gini@10"], where={"temperature": "3"}
    )
    lines = markdown_of(table(study, options, pl.DataFrame(ROWS))).splitlines()
    assert lines[0] == "| temperature | Base lists/gini@10 | CSRec-M lists/gini@10 |"
    assert lines[2:] == ["| 3 | 0.6123 (1) | 0.6123 (1) |"]
    assert in_percent("teacher/ndcg+@10")
    assert not in_percent("lists/gini@10")


def test_of_an_adverse_metric_the_lowest_is_best(study_file: Path) -> None:
    study, _ = entries_of(study_file)
    options = TableOptions(rows=["temperature"], columns="method", metrics=["ndcg-@10"], where={"temperature": "3"})
    rows = [{"method": m, "temperature": "3", "seed": 0, "ndcg-@10": v} for m, v in (("Base", 0.3), ("CSRec-M", 0.1))]
    assert "| 3 | 30.00 (1) | **10.00 (1)** |" in markdown_of(table(study, options, pl.DataFrame(rows)))


def test_the_answer_of_a_study_counts_rows_and_tests(study_file: Path) -> None:
    study, _ = entries_of(study_file)
    random = np.random.default_rng(1)
    base = random.integers(1, 30, NUM_ROWS)
    rows = [
        {"method": method, "temperature": temperature, "seed": 0, "protocol": "one", "ranks": ranks.tolist()}
        | {"users": list(range(NUM_ROWS))}
        | {"ndcg@10": float(ndcg(ranks).mean())}
        for temperature, better in (("1", np.maximum(base - 3, 1)), ("3", np.where(np.arange(NUM_ROWS) == 0, 1, base)))
        for method, ranks in (("Base", base), ("CSRec-M", better))
    ]
    metric, (line,) = against(study, study.tables[0], pl.DataFrame(rows))
    values = [row["ndcg@10"] for row in rows]
    assert (metric, line.num_rows, line.num_higher, line.num_better, line.num_worse) == ("ndcg@10", 2, 2, 1, 0)
    assert line.change == pytest.approx((values[1] / values[0] + values[3] / values[2]) / 2 - 1)
    said = answer([line], "Base", metric)
    assert said.tone == "gain"
    assert said.headline == f"CSRec-M is above Base in 2 of 2 rows, +{100 * line.change:.1f} % in NDCG@10."
    worse = answer([replace(line, num_better=0)], "Base", metric)
    assert (worse.tone, worse.headline[:30]) == ("open", "No gain over Base is shown: CS")
    assert against(study, study.tables[1], pl.DataFrame(rows))[1] == [], "a table that compares with nothing"


def test_columns_are_compared_over_the_seeds_that_both_have(study_file: Path) -> None:
    """The mean over both of Base's seeds is below CSRec-M's one, which is below Base's of that seed."""
    study, _ = entries_of(study_file)
    ranks = {0: np.full(NUM_ROWS, 4), 1: np.full(NUM_ROWS, 90)}
    worse = np.where(np.arange(NUM_ROWS) % 3 > 0, 5, 4)
    runs = [("Base", 0, ranks[0]), ("Base", 1, ranks[1]), ("CSRec-M", 0, worse)]
    rows = pl.DataFrame(
        [
            {"method": method, "temperature": "3", "seed": seed, "protocol": "one", "ranks": found.tolist()}
            | {"users": list(range(NUM_ROWS)), "ndcg@10": float(ndcg(found).mean()), "cpu_seconds": 1.0 + seed}
            for method, seed, found in runs
        ]
    )
    text = markdown_of(table(study, study.tables[0], rows))
    base, lower = (100 * float(ndcg(found).mean()) for found in (ranks[0], worse))
    assert base / 2 < lower < base
    assert f"**{base / 2:.2f} ± " in text, "the best of the seed that both have"
    assert f"| {lower:.2f}↓ᵃ (1) |" in text
    assert "CSRec-M is higher than Base: ndcg@10 0 of 1" in text
    assert "| mean over the rows | 1.0 (1) | 1.0 (1) |" in text
    metric, (line,) = against(study, study.tables[0], rows)
    assert (line.num_rows, line.num_higher, line.num_better, line.num_worse) == (1, 0, 0, 1)
    assert line.change == pytest.approx(lower / base - 1)
    assert answer([line], "Base", metric).tone == "open"


def test_a_study_is_not_judged_by_a_metric_of_which_less_is_better(study_file: Path) -> None:
    study, _ = entries_of(study_file)
    options = TableOptions(
        rows=["temperature"],
        columns="method",
        metrics=["ndcg@10", "recall-@10"],
        better_than=["Base"],
        where={"temperature": "3"},
    )
    rows = [row("Base", "3", 0, 0.1) | {"recall-@10": 0.1}, row("CSRec-M", "3", 0, 0.2) | {"recall-@10": 0.3}]
    metric, (line,) = against(study, options, pl.DataFrame(rows))
    assert (metric, line.change) == ("ndcg@10", pytest.approx(1.0))


def test_runs_of_one_cell_on_different_data_have_no_mean(study_file: Path) -> None:
    study, _ = entries_of(study_file)
    rows = pl.DataFrame([row("Base", "3", seed, 0.1) | {"protocol": f"log {seed}"} for seed in (0, 1)])
    with pytest.raises(UserError, match=r"runs of Base-3 were evaluated on different data.*Base-3-s0, Base-3-s1"):
        with_rows(study, rows, rows.clear())
    others = rows.with_columns(temperature=pl.Series(["1", "3"]))
    assert len(with_rows(study, others, others.clear())) == 2


def test_names_of_a_study_are_text_in_its_charts(tmp_path: Path) -> None:
    names = ["<img src=x onerror=alert(1)>", "_hidden", "$\\frac{$", "a & b"]
    rows = [row(name, "1", seed, 0.1 + seed / 10) for name in names for seed in (0, 1)]
    options = FigureOptions(name="f", x="temperature", lines="method")
    picture = draw(options, AXES | {"method": names}, pl.DataFrame(rows), tmp_path)
    assert picture is not None
    assert "<img" not in picture.svg
    for name in names:
        assert f">{html.escape(name, quote=False)}</text>" in picture.svg, name


def test_the_papers_figure_is_found_by_its_cell(study_file: Path) -> None:
    study, _ = entries_of(study_file)
    assert published(study.published, {"method": "Base", "temperature": "3"}, "ndcg@10") == 12.5
    assert published(study.published, {"method": "Base"}, "recall@10") is None
    assert published(study.published, {"method": "CSRec-M"}, "ndcg@10") is None


def ndcg(ranks: np.ndarray) -> np.ndarray:
    return (ranks <= 10) / np.log2(ranks + 1.0)


def clustered_p(differences: np.ndarray, users: np.ndarray) -> float:
    """Of the t-test whose variance is that of the users' totals, in the words of the formula."""
    mean = differences.mean()
    totals = [sum(value - mean for value in differences[users == user]) for user in set(users.tolist())]
    num = len(totals)
    error = math.sqrt(num / (num - 1) * math.fsum(total**2 for total in totals)) / len(differences)
    return float(2 * stats.t.sf(abs(mean / error), num - 1))


def adjusted_by_holm(p_values: dict) -> dict:
    """Step down: the smallest p times the number of tests, the next times one fewer, and never below the one before."""
    found, largest = {}, 0.0
    for place, (key, p_value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_value))
        found[key] = largest
    return found


def test_marks_are_those_of_the_tests_over_users_corrected_for_their_number() -> None:
    random = np.random.default_rng(13)
    base = random.integers(1, 30, NUM_ROWS)
    users = np.sort(random.integers(0, 80, NUM_ROWS))
    ranks = {
        "Base": [base, np.maximum(base + random.integers(-3, 4, NUM_ROWS), 1)],
        "SoftRec": [np.maximum(base + random.integers(-3, 4, NUM_ROWS), 1), base],
        "CSRec-M": [np.maximum(base - 2, 1), np.maximum(base - 1, 1), base + 50],
        "CSRec-D": [base + 2, base + 1],
    }
    bad = np.arange(NUM_ROWS) % 5 + 1 < 4
    known = np.arange(NUM_ROWS) % 7 > 0
    rows = [
        {
            "method": method,
            "seed": seed,
            "protocol": "one",
            "ranks": found.tolist(),
            "users": users.tolist(),
            "rating_groups": bad.astype(int).tolist(),
            "teacher/ranks": np.maximum(found // 2, 1).tolist() if method != "SoftRec" else None,
            "true_ranks": np.where(known, found[::-1] + 1, 0).tolist(),
        }
        for method, runs in ranks.items()
        for seed, found in enumerate(runs)
    ]
    metrics = ["ndcg@10", "ndcg-@10", "teacher/ndcg@10", "lists/gini@10", "ndcg_true@10"]
    options = TableOptions(rows=["x"], columns="method", metrics=metrics, better_than=["Base", "SoftRec"])
    tests = compare_columns(options, list(ranks), [pl.DataFrame(rows)])
    assert not tests.problem
    p_values, differences = {}, {}
    pairs = [("ᵃ", "Base", name) for name in ("SoftRec", "CSRec-M", "CSRec-D")]
    for letter, other, column in [*pairs, ("ᵇ", "SoftRec", "CSRec-M"), ("ᵇ", "SoftRec", "CSRec-D")]:
        first, second = (np.mean([ndcg(found) for found in ranks[name][:2]], axis=0) for name in (other, column))
        halved = [np.mean([ndcg(np.maximum(r // 2, 1)) for r in ranks[n][:2]], axis=0) for n in (other, column)]
        sides = {"ndcg@10": (second - first, users), "ndcg-@10": ((second - first)[bad], users[bad])}
        of_true = [np.mean([ndcg(r[::-1] + 1) for r in ranks[n][:2]], axis=0) for n in (other, column)]
        sides["ndcg_true@10"] = ((of_true[1] - of_true[0])[known], users[known])
        if "SoftRec" not in (other, column):
            sides["teacher/ndcg@10"] = (halved[1] - halved[0], users)
        for metric, side in sides.items():
            p_values[column, metric, letter] = clustered_p(*side)
            differences[column, metric, letter] = side[0].mean()
    assert len(tests.tests) == len(p_values) == 17
    adjusted = adjusted_by_holm(p_values)
    assert sorted(test.p_value for test in tests.tests.values()) == pytest.approx(sorted(adjusted.values()))
    for column, metric in product(ranks, metrics):
        sure = [key for key in sorted(adjusted) if key[:2] == (column, metric) and adjusted[key] < 0.05]
        signs = {True: "".join(key[2] for key in sure if differences[key] > 0)}
        signs[False] = "".join(key[2] for key in sure if differences[key] < 0)
        expected = f"↑{signs[True]}" * bool(signs[True]) + f"↓{signs[False]}" * bool(signs[False])
        assert tests.marks(0, column, metric) == expected, (column, metric)
    assert tests.marks(0, "CSRec-M", "ndcg@10") == "↑ᵃᵇ"
    assert tests.marks(0, "CSRec-D", "ndcg@10") == "↓ᵃᵇ"
    assert any(adjusted[key] > 0.05 > p_values[key] for key in adjusted), "the correction shows in nothing"


@pytest.mark.parametrize(
    ("column", "value", "problem"), [("protocol", "another", "different data"), ("users", None, "which users")]
)
def test_what_cannot_be_tested_is_said_below_the_table(column: str, value: str | None, problem: str) -> None:
    rows = [
        {"method": method, "seed": 0, "protocol": "one", "ranks": [1, rank, 3], "users": [0, 0, 1]}
        for method, rank in (("Base", 12), ("CSRec-M", 2))
    ]
    rows[-1][column] = value
    options = TableOptions(rows=["x"], columns="method", metrics=["ndcg@10"], better_than=["Base"])
    tests = compare_columns(options, ["Base", "CSRec-M"], [pl.DataFrame(rows)])
    assert not tests.tests
    assert problem in tests.legend(options)


def test_a_row_holds_groups_lists_diversity_and_the_teacher_module(study_file: Path) -> None:
    output = study_file.parent / "studies"
    assert main(["study", str(study_file), "--output", str(output), "--only", "seed=0", "--only", "temperature=3"]) == 0
    rows = {found["method"]: found for found in pl.read_parquet(output / "small/results.parquet").to_dicts()}
    found = read_json(output / "small/runs/CSRec-M-3-s0/metrics.json")
    ours, teachers = rows["CSRec-M"], found["models"]["teachers"]
    assert ours["ndcg@10"] == found["test"]["ndcg@10"]
    ranks = pl.read_parquet(output / "small/runs/CSRec-M-3-s0/ranks/student-test.parquet")
    assert ours["users"] == ranks["user"].to_list() != ranks["row"].to_list()
    assert ours["valid/recall@10"] == found["valid"]["recall@10"]
    assert ours["popularity/rest_80%/recall@10"] == found["groups"]["popularity"]["rest_80%"]["recall@10"]
    assert ours["history_length/1-5/count"] == found["groups"]["history_length"]["1-5"]["count"]
    assert ours["lists/coverage@10"] == found["lists"]["coverage@10"]
    assert ours["diversity/jensen_shannon"] == found["diversity"]["jensen_shannon"]
    assert ours["teacher/ndcg@10"] == teachers["test"]["ndcg@10"] != ours["ndcg@10"]
    assert ours["teacher/rating/below_4/ndcg@10"] == teachers["groups"]["rating"]["below_4"]["ndcg@10"]
    assert rows["Base"]["teacher/ndcg@10"] == rows["Base"]["ndcg@10"]
    assert rows["Base"]["diversity/jensen_shannon"] is None


@pytest.mark.parametrize(
    ("settings", "models", "name"),
    [
        ({"method": "base"}, ["student"], "student"),
        ({"method": "softrec"}, ["student"], None),
        ({"method": "model_level"}, ["student", "teacher-0", "teacher-1", "teachers"], "teachers"),
        ({"method": "model_level", "teachers": {"num": 1}}, ["student", "teacher-0"], "teacher-0"),
        ({"method": "training_level"}, ["student", "side", "main"], "main"),
    ],
)
def test_the_model_that_teaches(settings: dict, models: list[str], name: str | None) -> None:
    config = parse_config({"name": "x", "dataset": {"source": "x"}, "model": {"name": "sasrec"}} | settings)
    assert teacher_model(config, dict.fromkeys(models)) == name


def finish(folder: Path, stage: str, *usage: tuple[float, float]) -> None:
    Run(folder).finish(stage, Record({}, {}, [{"seconds": s, "cpu_seconds": c} for s, c in usage]))


def test_the_cost_is_that_of_teachers_labels_and_student(tmp_path: Path) -> None:
    for stage in ("prepare", "evaluate", "baseline"):
        finish(tmp_path, stage, (1000.0, 1000.0))
    finish(tmp_path, "distill", (8.0, 7.0))
    write_json(tmp_path / "student/metrics.json", {"seconds": 7.9})
    assert training_cost(tmp_path) == {"seconds": 8.0, "cpu_seconds": 7.0}
    finish(tmp_path, "teach", (20.0, 11.0), (21.0, 12.0))
    finish(tmp_path, "label", (2.0, 1.0), (3.0, 1.5))
    for name in ("teacher-0", "teacher-1"):
        write_json(tmp_path / f"teachers/{name}/metrics.json", {"seconds": 19.0})
    assert training_cost(tmp_path) == {"seconds": 32.0, "cpu_seconds": 32.5}


@pytest.mark.parametrize("name", ["student", "teachers/main"])
def test_a_training_that_was_cut_off_has_no_known_cost(tmp_path: Path, name: str) -> None:
    finish(tmp_path, "teach", (20.0, 10.0))
    finish(tmp_path, "distill", (8.0, 7.0))
    write_json(tmp_path / name / "metrics.json", {"seconds": 35.0})
    assert training_cost(tmp_path) == {"seconds": None, "cpu_seconds": None}


AXES = {"method": ["Base", "CSRec-M"], "temperature": ["1", "3", "9"]}


def test_a_figure_over_an_axis_has_means_ranges_and_a_level(tmp_path: Path, drawn: list[Figure]) -> None:
    options = FigureOptions(name="f", x="temperature", lines="method", level={"method": "Base", "temperature": "3"})
    assert draw(options, AXES, pl.DataFrame(ROWS), tmp_path)
    (plot,) = drawn[0].axes
    lines = {line.get_label(): line for line in plot.get_lines() if not str(line.get_label()).startswith("_")}
    assert list(lines["Base"].get_ydata()) == [30.0, 30.0]
    means = {box.get_label(): list(box[0].get_ydata()) for box in plot.containers}
    assert means["CSRec-M"] == pytest.approx([20.0, 10.0])
    assert means["Base"] == pytest.approx([11.0])
    assert [label.get_text() for label in plot.get_xticklabels()] == ["1", "3", "9"]
    assert list(plot.get_xticks()) == [1, 3, 9]
    assert {box.get_label(): list(box[0].get_xdata()) for box in plot.containers} == {"Base": [1], "CSRec-M": [1, 3]}


def test_a_figure_over_groups_has_bars_by_group(tmp_path: Path, drawn: list[Figure]) -> None:
    options = FigureOptions(name="f", x="popularity", lines="method", panels="temperature", style="bars")
    assert draw(options, AXES, pl.DataFrame(ROWS), tmp_path)
    assert [plot.get_title() for plot in drawn[0].axes] == ["1", "3"]
    bars = [box for box in drawn[0].axes[1].containers if isinstance(box, BarContainer)]
    heights = {box.get_label(): [bar.get_height() for bar in box.patches] for box in bars}
    assert heights == {"Base": pytest.approx([60.0, 15.0]), "CSRec-M": pytest.approx([20.0, 5.0])}
    assert [label.get_text() for label in drawn[0].axes[0].get_xticklabels()] == ["popular_20%", "rest_80%"]


@pytest.mark.parametrize(
    ("names", "style", "ticks"),
    [
        (["0", "0.1", "0.4"], "lines", [0, 0.1, 0.4]),
        (["0", "0.1", "0.4"], "bars", [0, 1, 2]),
        (["3", "1", "2"], "lines", [0, 1, 2]),
        (["1", "inf"], "lines", [0, 1]),
        (["1", "two"], "lines", [0, 1]),
    ],
)
def test_numbers_that_rise_along_a_line_stand_at_their_values(names: list[str], style: str, ticks: list[float]) -> None:
    assert ticks_of(FigureOptions(name="f", x="temperature", style=style), names) == ticks


@pytest.mark.parametrize("rows", [[], [{key: value for key, value in ROWS[0].items() if key != "ndcg@10"}]])
def test_there_is_no_figure_of_nothing(tmp_path: Path, rows: list[dict]) -> None:
    options = FigureOptions(name="f", x="temperature", lines="method")
    assert not draw(options, AXES, pl.DataFrame(rows), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_popularity_curve_falls_over_the_items(study_file: Path, small_dataset: Path, drawn: list[Figure]) -> None:
    _, entries = entries_of(study_file)
    assert not draw_curve(CurveOptions(name="c"), entries, study_file.parent)
    folder = entries[1].run.folder
    folder.mkdir(parents=True)
    (folder / "dataset").symlink_to(small_dataset)
    assert draw_curve(CurveOptions(name="c", panels="method"), entries, study_file.parent)
    (plot,) = drawn[0].axes
    assert plot.get_title() == "CSRec-M"
    heights = plot.collections[0].get_paths()[0].vertices[:, 1]
    trained = pl.concat([pl.read_parquet(file, columns=["items"]) for file in small_dataset.glob("train-*.parquet")])
    most = trained["items"].explode().value_counts()["count"].max()
    assert heights.max() == most
    assert json.loads((small_dataset / "dataset.json").read_text())["num_items"] == (len(heights) - 3) // 2


def test_results_of_no_runs_are_a_page(study_file: Path) -> None:
    assert collect(entries_of(study_file)[1]).is_empty()
    output = study_file.parent / "studies"
    assert main(["study", str(study_file), "--output", str(output), "--results"]) == 0
    assert "0 of 6 runs are done" in (output / "small/results.md").read_text()


def test_a_row_has_the_ranks_of_the_items_that_were_truly_preferred(small_log: Path, tmp_path: Path) -> None:
    """Of a log whose true items are the observed ones but for one in five."""
    log = pl.read_csv(small_log).with_row_index()
    other = pl.when(pl.col("index") % 5 == 0).then(pl.col("item").shift(3, fill_value="i0")).otherwise(pl.col("item"))
    log.with_columns(true_item=other).drop("index").write_csv(tmp_path / "log.csv")
    output = tmp_path / "studies"
    study = str(write_study(tmp_path, tmp_path / "log.csv"))
    assert main(["study", study, "--output", str(output), "--only", "method=Base", "--only", "seed=0"]) == 0
    [row] = pl.read_parquet(output / "small/results.parquet").to_dicts()
    ranks = np.array(row["true_ranks"])
    assert (ranks <= 10).mean() == pytest.approx(row["recall_true@10"])
    assert ndcg(ranks).mean() == pytest.approx(row["ndcg_true@10"])
    assert row["true_ranks"] != row["ranks"]
