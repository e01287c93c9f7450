"""The report says what the run's files say, finished or not, and shows text as text."""

import io
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from csrec_dist.errors import UserError
from csrec_dist.report import print_results, results_table, runs_table, write_report
from csrec_dist.report.costs import trained_by
from csrec_dist.report.several import group_runs, spread
from tests.helpers.run_folders import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report"))


@pytest.fixture
def unfinished(run: Path, tmp_path: Path) -> Path:
    """The run as it was before it was evaluated."""
    copy = tmp_path / "unfinished"
    shutil.copytree(run, copy)
    for name in ("metrics.json", "evaluate.done.json", "baseline.done.json"):
        (copy / name).unlink()
    shutil.rmtree(copy / "base")
    return copy


def printed(write: Callable[[Console], None]) -> str:
    console = Console(width=100, file=io.StringIO())
    write(console)
    return console.file.getvalue()


def test_the_table_holds_every_model_with_its_metrics_base_first(run: Path) -> None:
    saved = json.loads((run / "metrics.json").read_text())["models"]
    rows = results_table(run)
    assert [row.title for row in rows] == ["Base", "CSRec-M student", "teacher-0", "teacher-1"]
    assert {row.name: {"valid": row.valid, "test": row.test} for row in rows} == saved


def test_the_student_of_method_base_is_called_base(tmp_path: Path) -> None:
    rows = results_table(make_run(tmp_path, method="base"))
    assert [row.title for row in rows] == ["Base student"]


def test_the_terminal_shows_metrics_stages_and_paths(run: Path) -> None:
    write_report(run)
    text = printed(lambda console: print_results(run, console))
    saved = json.loads((run / "metrics.json").read_text())["models"]
    for name, title in (("base", "Base"), ("student", "CSRec-M student"), ("teacher-1", "teacher-1")):
        test = saved[name]["test"]
        assert re.search(rf"{title} +│ +{test['recall@10']:.4f} │ +{test['ndcg@10']:.4f} │", text)
    assert re.search(r"prepare +│ +1\.5 │ +2 │ +100, 101 │", text)
    assert re.search(r"evaluate +│ +6\.5 │ +2 │ +600, 601 │", text)
    assert str(run) in text
    assert str(run / "report" / "report.html") in text


def test_an_unfinished_run_is_reported_with_what_is_missing(unfinished: Path) -> None:
    rows = {row.name: row for row in results_table(unfinished)}
    assert set(rows) == {"student", "teacher-0", "teacher-1"}
    assert rows["student"].test == {}
    assert rows["student"].valid["ndcg@10"] == 0.1234, "the best epoch's, not the last one's"
    assert "Missing stages: baseline, evaluate." in printed(lambda console: print_results(unfinished, console))
    write_report(unfinished)
    page = (unfinished / "report" / "report.md").read_text()
    assert "Missing stages: baseline, evaluate." in page
    assert "| evaluate | not done |" in page


def test_a_run_with_nothing_but_a_config_is_reported(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "config.yaml", tmp_path)
    page = (write_report(tmp_path).parent / "report.md").read_text()
    assert "No model has been trained yet." in page
    assert "The dataset has not been prepared yet." in page


def test_the_page_holds_metrics_statistics_labels_and_config(run: Path) -> None:
    write_report(run)
    page = (run / "report" / "report.md").read_text()
    for metrics in json.loads((run / "metrics.json").read_text())["models"].values():
        for value in (*metrics["test"].values(), *metrics["valid"].values()):
            assert f"{value:.4f}" in page
    dataset = json.loads((run / "dataset" / "dataset.json").read_text())
    num_examples, num_items = dataset["splits"]["train"]["num_examples"], dataset["num_items"]
    assert f"| dense equivalent, bytes | {4 * num_examples * num_items:,} |" in page
    leaked = dataset["statistics"]["leaked_test_targets"]
    assert f"Of {dataset['splits']['test']['num_rows']} test targets, {leaked} " in page
    assert (run / "config.yaml").read_text().strip() in page
    assert re.search(r"\| CSRec-M student \| 1 \| 3 \| 2 \| 0\.1234 \| 9\.5 \| 1,000 \| 25\.0% \|", page)


def test_costs_are_those_of_the_stages_beside_base(run: Path) -> None:
    write_report(run)
    page = (run / "report" / "report.md").read_text()
    teach, label, distill, baseline = (number + 0.5 for number in (2, 3, 4, 5))  # the slower rank's
    whole = teach + label + distill
    assert f"| teachers | {teach} | – | {teach / baseline:.1f} |" in page
    assert f"| in all | {whole} | – | {whole / baseline:.1f} |" in page
    assert f"| Base | {baseline} | – | 1.0 |" in page


def test_the_html_page_is_whole_by_itself(run: Path) -> None:
    page = write_report(run).read_text()
    assert not re.findall(r"<(?:script|img|iframe|object|embed)\b|@import|\burl\((?!#)", page)
    targets = set(re.findall(r'(?:src|href|xlink:href)="([^"]*)"', page)) - {"data:,"}
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert {target.removeprefix("#") for target in targets} <= set(ids), "links stay within the page"
    assert len(ids) == len(set(ids)), "no id twice, though every chart has its own"
    assert page.count("<svg") == 6, "two metrics, two curves, time, memory"
    files = {path.name for path in (run / "report").glob("*.png")}
    assert set(re.findall(r"!\[.*\]\((.*)\)", (run / "report/report.md").read_text())) == files
    assert len(files) == 6


def test_curves_are_drawn_again_after_more_epochs(run: Path) -> None:
    write_report(run)
    before = (run / "report" / "loss.png").read_bytes()
    metrics = run / "student" / "metrics.json"
    saved = metrics.read_text()
    longer = json.loads(saved)
    longer["epochs"].append({**longer["epochs"][-1], "epoch": 3, "loss": 9.0})
    metrics.write_text(json.dumps(longer))
    write_report(run)
    metrics.write_text(saved)
    assert (run / "report" / "loss.png").read_bytes() != before


def test_a_member_taken_from_a_folder_has_no_curve(unfinished: Path) -> None:
    (unfinished / "teachers" / "teacher-1" / "metrics.json").write_text('{"taken_from": "else/where"}')
    write_report(unfinished)
    page = (unfinished / "report" / "report.md").read_text()
    assert "| teacher-1 | pretrained in else/where |" in page


def test_runs_of_several_seeds_are_averaged_and_differences_named(tmp_path: Path) -> None:
    shifts = [0.0, 1.0, 4.0]
    runs = [make_run(tmp_path, shift, name=f"seed-{k}", seed=k) for k, shift in enumerate(shifts)]
    other = make_run(tmp_path, 7.0, name="other", training={"beta": 0.25})
    text = printed(lambda console: console.print(runs_table([*runs, other, runs[0]])))
    values = [json.loads((run / "metrics.json").read_text())["models"]["student"]["test"]["ndcg@10"] for run in runs]
    mean = math.fsum(values) / 3
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / 2)
    row = next(line for line in text.splitlines() if "CSRec-M student" in line)
    assert f" {mean:.4f} ± {deviation:.4f} " in row
    assert "seed-0, seed-1, seed-2" in text
    assert "training.beta=0.5" in text
    assert "training.beta=0.25" in text
    assert "seed=" not in text


def test_a_repeated_run_is_no_further_seed(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name=name, seed=seed) for name, seed in (("a", 0), ("b", 1), ("again", 1))]
    groups = group_runs(runs)
    assert [[run.config.name for run in group.runs] for group in groups] == [["a", "b"], ["again"]]
    text = printed(lambda console: console.print(runs_table(runs)))
    assert [line.count(" 2 ") for line in text.splitlines() if "student" in line] == [1, 0]


@given(st.floats(0, 1))
def test_one_value_is_shown_without_a_spread(value: float) -> None:
    assert spread([value]) == f"{value:.4f}"


@pytest.mark.parametrize("function", [results_table, write_report, lambda folder: runs_table([folder])])
def test_a_folder_that_is_no_run_is_refused(function: Callable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not the folder of a run.*config\.yaml"):
        function(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_engine_that_trained_is_named() -> None:
    assert trained_by({"engine": "deepspeed", "ranks": [0, 1], "zero_stage": 2}) == "deepspeed, ZeRO 2, ranks 0, 1"
    assert trained_by({"engine": "plain", "ranks": [3], "catalog_parallel": 1}) == "plain, rank 3"
    assert trained_by(None) == "–"
