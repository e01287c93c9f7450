"""The report's sections on evaluation: each number of metrics.json in its cell, and nothing for what is not there."""

import html
import io
import re
import shutil
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from csrec_dist.config import load_config
from csrec_dist.distributed import Runtime
from csrec_dist.files import read_json, write_record
from csrec_dist.report import print_results, results_table, write_report
from csrec_dist.report.document import Page, to_markdown
from csrec_dist.report.findings import (
    calibration_section,
    diversity_section,
    groups_section,
    lists_section,
    metrics_section,
)
from csrec_dist.runs.pipeline import execute
from csrec_dist.runs.run import Run

RUN = """
name: small
dataset: {path: %s}
model: {name: gru4rec, width: 8, dropout: 0}
method: model_level
teachers: {num: 3}
training: {batch_size: 7, max_epochs: 1, learning_rate: 0.01}
evaluation: {top_n: [1, 5]}
"""
TITLES = {
    "base": "Base",
    "student": "CSRec-M student",
    **{f"teacher-{k}": f"teacher-{k}" for k in range(3)},
    "teachers": "teacher ensemble",
}
Tables = dict[str, dict[str, dict[str, str]]]


@pytest.fixture(scope="module")
def evaluated(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with ratings, Base, and three teachers; its metrics.json also has true targets, as simulated logs do."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "config.yaml").write_text(RUN % small_dataset)
    execute(load_config(folder / "config.yaml", [f"output={folder}", "baseline=true"]), Runtime.start())

    def add_true_targets(saved: dict[str, Any]) -> None:
        for number, found in enumerate(saved["models"].values()):
            found["test"] |= {"recall_true@10": 0.3 + number / 1000, "mrr_true": 0.2 + number / 1000}

    return changed(folder / "small", add_true_targets)


@pytest.fixture(scope="module")
def tables(evaluated: Path) -> Tables:
    """The tables of its report."""
    return tables_of(findings_of(evaluated))


@pytest.fixture
def run(evaluated: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    shutil.copytree(evaluated, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def changed(run: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    saved = saved_metrics(run)
    change(saved)
    write_record(run / "metrics.json", saved)
    return run


def set_key(run: Path, override: str) -> None:
    """Write the run's config as if it had been started with another value."""
    (run / "config.yaml").write_text(load_config(run / "config.yaml", [override]).to_yaml())


def saved_metrics(run: Path) -> dict[str, Any]:
    return read_json(run / "metrics.json")


def findings_of(run: Path) -> str:
    """The evaluation's sections in Markdown, without charts, which take longest."""
    opened = Run.open(run)
    rows = opened.results
    sections = [metrics_section(opened), groups_section(rows, {}), calibration_section(rows, {})]
    sections += [lists_section(rows, {}), diversity_section(opened.metrics["diversity"])]
    return to_markdown(Page.of("findings", {}, sections))


def page_of(run: Path) -> str:
    return (write_report(run).parent / "report.md").read_text()


def tables_of(page: str) -> Tables:
    """Tables by the heading or bold line above them, or by their first column among the groups; rows by first cell.

    Tables of one heading are one: of a table for each cut-off, all columns. Marks of the best value are left out.
    """
    tables: Tables = {}
    heading, lines = "", page.splitlines()
    for number, line in enumerate(lines):
        if found := re.fullmatch(r"##+ (.*)|\*\*(Test, .*)\*\*", line):
            heading = (found[1] or found[2]).removesuffix(", other cut-offs").replace("Metrics", "Test")
        if line.startswith("| ") and lines[number - 1] == "":
            header, _, *rows = [_cells(each) for each in takewhile(lambda each: each.startswith("|"), lines[number:])]
            table = tables.setdefault(header[0] if heading == "Groups in figures" else heading, {})
            for row in rows:
                table.setdefault(row[0], {}).update(zip(header[1:], row[1:], strict=True))
    return tables


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("*", "") for cell in line.strip("|").split(" | ")]


def title_of(metric: str) -> str:
    for found, shown in {"recall": "Recall", "ndcg": "NDCG", "mrr": "MRR", "+@": "⁺@", "-@": "⁻@"}.items():
        metric = metric.replace(found, shown)
    return metric


def test_every_test_metric_stands_in_the_table_of_its_kind(evaluated: Path, tables: Tables) -> None:
    kinds = set()
    for name, found in saved_metrics(evaluated)["models"].items():
        for metric, value in found["test"].items():
            kind = ", true targets" if "_true" in metric else ", by rating" if re.search("[+-]", metric) else ""
            kinds.add(kind)
            cell = tables[f"Test{kind}"][TITLES[name]][title_of(metric.replace("_true", ""))]
            assert cell == f"{value:.4f}", (name, metric)
    assert kinds == {"", ", by rating", ", true targets"}
    assert {len(tables[f"Test{kind}"]) for kind in kinds} == {len(TITLES)}


def test_the_teachers_together_are_the_last_model_and_have_no_validation(evaluated: Path, tables: Tables) -> None:
    *others, last = results_table(evaluated)
    assert [row.title for row in (*others, last)] == list(TITLES.values())
    assert last.valid == {}
    assert last.test == saved_metrics(evaluated)["models"]["teachers"]["test"]
    assert list(tables["Validation"]) == list(TITLES.values())[:-1]


@pytest.mark.parametrize(
    ("grouping", "first_column"),
    [
        ("rating", "rating of the target"),
        ("popularity", "popularity of the target"),
        ("popularity_decile", "decile of the target's popularity"),
        ("history_length", "items in the history"),
    ],
)
def test_every_group_has_its_rows_and_each_model_s_ndcg(
    evaluated: Path, tables: Tables, grouping: str, first_column: str
) -> None:
    rows = list(tables[first_column].values())
    for name, found in saved_metrics(evaluated)["models"].items():
        groups = list(found["groups"][grouping].values())
        assert [row["rows"] for row in rows] == [f"{group['count']:,}" for group in groups]
        shown = ["–" if group["ndcg@10"] is None else f"{group['ndcg@10']:.4f}" for group in groups]
        assert [row[TITLES[name]] for row in rows] == shown


def test_of_targets_rated_low_the_lowest_is_best(run: Path) -> None:
    """Recall⁻ and the group below the threshold are marked where least is found, Recall⁺ where most is."""

    def spread_out(saved: dict[str, Any]) -> None:
        for number, found in enumerate(saved["models"].values()):
            found["test"] |= {"recall+@5": 0.61 + number / 100, "recall-@5": 0.71 + number / 100}
            (below,) = [name for name in found["groups"]["rating"] if name.startswith("below_")]
            found["groups"]["rating"][below]["ndcg@10"] = 0.81 + number / 100

    changed(run, spread_out)
    page, highest = page_of(run), len(saved_metrics(run)["models"]) - 1
    assert f"**{0.61 + highest / 100:.4f}**" in page
    for lowest in (0.71, 0.81):
        assert f"**{lowest:.4f}**" in page
        assert f"**{lowest + highest / 100:.4f}**" not in page


def test_lists_and_calibration_have_a_row_for_each_model(evaluated: Path, tables: Tables) -> None:
    for name, found in saved_metrics(evaluated)["models"].items():
        lists, calibration = tables["Recommended lists"][TITLES[name]], tables["Calibration"][TITLES[name]]
        for n in (1, 5, 10):
            assert lists[f"Coverage@{n}"] == f"{found['lists'][f'coverage@{n}']:.4f}"
            assert lists[f"Gini index@{n}"] == f"{found['lists'][f'gini@{n}']:.4f}"
            assert lists[f"Average popularity@{n}"] == f"{found['lists'][f'average_popularity@{n}']:,.1f}"
        expected = [f"{found['calibration'][key]:.4f}" for key in ("ece", "confidence", "accuracy")]
        assert list(calibration.values()) == expected


def test_diversity_has_a_row_for_each_pair_and_their_mean(evaluated: Path, tables: Tables) -> None:
    found = saved_metrics(evaluated)["diversity"]
    rows = tables["Diversity of the teachers"]
    expected = {", ".join(pair["members"]): pair for pair in found["pairs"]} | {"mean of the pairs": found}
    assert len(rows) == 4
    for members, values in expected.items():
        assert rows[members]["Disagreement@5"] == f"{values['disagreement@5']:.4f}"
        assert rows[members]["Jensen–Shannon divergence, nats"] == f"{values['jensen_shannon']:.4f}"


def test_an_empty_group_has_dashes_and_a_gap(run: Path) -> None:
    def empty(saved: dict[str, Any]) -> None:
        for found in saved["models"].values():
            group = found["groups"]["popularity_decile"]["4"]
            group |= {name: 0 if name == "count" else None for name in group}

    page = findings_of(changed(run, empty))
    row = tables_of(page)["decile of the target's popularity"]["4"]
    assert list(row.values()) == ["0", *["–"] * len(TITLES)]
    assert not re.search(r"\b(None|nan)\b", page)


def test_targets_that_were_hidden_as_seen_are_said(run: Path) -> None:
    def repeat(saved: dict[str, Any]) -> None:
        for found in (saved, *saved["models"].values()):
            groups = found["groups"]
            groups["repeat"] = {
                "new": groups["popularity"]["rest_80%"],
                "repeated": groups["popularity"]["popular_20%"],
            }

    groups = saved_metrics(changed(run, repeat))["groups"]
    repeated, new = (groups["repeat"][name]["count"] for name in ("repeated", "new"))
    sentence = f"{repeated} of {repeated + new} test targets are in their own history"
    assert sentence not in findings_of(run)
    set_key(run, "evaluation.exclude_seen=true")
    page = findings_of(run)
    assert sentence in page
    assert tables_of(page)["whether the history contains the target"]["yes"]["rows"] == str(repeated)
    console = Console(file=io.StringIO(), width=120)
    print_results(run, console)
    assert sentence in console.file.getvalue()


def test_the_threshold_is_that_of_the_evaluation_whatever_the_config_says_now(run: Path) -> None:
    assert "rated at least δ = 4;" in findings_of(run)
    set_key(run, "evaluation.min_rating=2")
    assert "rated at least δ = 4;" in findings_of(run)


def test_ranks_by_less_exact_products_are_said(run: Path) -> None:
    sentence = "GPUs ranked the items by products in TF32 (evaluation.matmul_precision: high)"
    assert sentence not in findings_of(run)
    record = read_json(run / "evaluate.done.json")
    record["inputs"]["evaluation.matmul_precision"] = "high"
    write_record(run / "evaluate.done.json", record)
    assert sentence in findings_of(run)


def test_missing_parts_are_left_out(run: Path) -> None:
    def strip(saved: dict[str, Any]) -> None:
        del saved["diversity"]
        saved["models"] = {name: {"test": {"ndcg@10": 0.5}} for name in saved["models"] if name != "teachers"}

    page = page_of(changed(run, strip))
    headings = re.findall(r"^##+ (.*)", page, re.MULTILINE)
    assert headings[:4] == ["Answer", "Metrics", "Validation", "Training"]
    pictures = re.findall(r"!\[.*\]\((.*)\)", page)
    assert pictures == [f"{name}.png" for name in ("ndcg", "validation", "loss", "time", "memory")]


def test_figures_are_in_both_pages_and_follow_the_metrics(run: Path) -> None:
    fill_a_bin(run, 10)
    page = page_of(run)
    named = re.findall(r"!\[.*\]\((.*)\)", page)
    assert named[2:8] == [f"{name}.png" for name in ("validation", "loss", *MOVED[:3], "reliability")]
    assert (run / "report" / "report.html").read_text().count("<svg") == len(named) == 13
    before = {name: (run / "report" / f"{name}.png").read_bytes() for name in MOVED}
    svgs = svgs_of(run)

    def move(saved: dict[str, Any]) -> None:
        base = saved["models"]["base"]
        for grouping in ("popularity_decile", "history_length", "popularity"):
            next(iter(base["groups"][grouping].values()))["ndcg@10"] = 0.9
        base["calibration"]["bins"][0]["accuracy"] = 0.9
        base["lists"]["coverage@10"] = 0.01

    write_report(changed(run, move))
    for name, content in before.items():
        assert (run / "report" / f"{name}.png").read_bytes() != content, name
    after = svgs_of(run)
    assert {title for title in svgs if after[title] != svgs[title]} == {
        "NDCG@10 by decile of the target's popularity",
        "NDCG@10 by items in the history",
        "NDCG@10 by kind of target",
        "Reliability: accuracy by confidence",
        "Coverage@10",
    }


MOVED = ["popularity_decile", "history_length", "groups", "reliability", "coverage"]


def svgs_of(run: Path) -> dict[str, str]:
    page = (run / "report/report.html").read_text()
    found = re.findall(r"<figcaption>(.*?)</figcaption>.*?(<svg.*?</svg>)", page, re.DOTALL)
    return {html.unescape(title): svg for title, svg in found}


def fill_a_bin(run: Path, count: int) -> None:
    def fill(saved: dict[str, Any]) -> None:
        for found in saved["models"].values():
            found["calibration"]["bins"] = [{"bin": 1, "count": count, "confidence": 0.05, "accuracy": 0.1}]

    changed(run, fill)


def test_bins_of_few_rows_are_not_drawn(run: Path) -> None:
    fill_a_bin(run, 9)
    page = page_of(run)
    assert "reliability.png" not in page
    assert "| model | ECE |" in page
