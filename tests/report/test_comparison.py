"""Pages that compare runs and models say what the tables of the terminal say, in the frame of a report."""

import re
from pathlib import Path

import pytest

from csrec_dist.cli import main
from csrec_dist.report import write_comparison, write_runs_page
from csrec_dist.report.paired import compare_models
from tests.helpers.ranked_runs import write_ranks
from tests.helpers.run_folders import make_run

MODELS = {"base": 0, "student": 0, "teacher-0": 0, "teacher-1": 0}


def run_of(folder: Path, name: str, shift: int = 0, **changes: object) -> Path:
    """A run with ranks on one dataset, whose student is better by `shift`."""
    run = make_run(folder, name=name, **changes)
    write_ranks(run, MODELS | {"student": shift}, seed=int(changes.get("seed", 0)))  # type: ignore[call-overload]
    return run


def cells(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd]\b.*?</t[hd]>", row)] for row in rows]


def test_two_models(tmp_path: Path) -> None:
    run = run_of(tmp_path, "one", shift=3)
    comparison = compare_models(f"{run}:base", str(run), top_n=(5, 10))
    page = write_comparison(comparison, tmp_path / "page.html").read_text()
    line = comparison.line("ndcg@10")
    assert line is not None
    assert f"one is better than one:base: +{100 * line.paired.difference / line.paired.first:.1f}\u00a0%" in page
    table = {row[0]: row for row in cells(page) if row}
    for line in comparison.lines:
        title = line.metric.replace("recall", "Recall").replace("ndcg", "NDCG").replace("mrr", "MRR")
        assert table[title][1:4] == ["400", f"{line.paired.first:.4f}", f"{line.paired.second:.4f}"]
    assert page.count("<svg") == 2, "differences, validation"
    assert not list(tmp_path.glob("*.png")), "a page is one file"


def test_a_difference_within_chance_is_no_answer(tmp_path: Path) -> None:
    run = run_of(tmp_path, "one")
    page = write_comparison(compare_models(f"{run}:base", str(run)), tmp_path / "page.html").read_text()
    assert "No difference is shown: " in page


def test_runs_of_seeds_against_their_bases_and_another_setting(tmp_path: Path) -> None:
    seeds = [run_of(tmp_path, f"a{seed}", 3, seed=seed) for seed in (0, 1)]
    others = [run_of(tmp_path, f"b{seed}", 0, seed=seed, training={"beta": 0.25}) for seed in (0, 1)]
    page = write_runs_page([*seeds, *others], tmp_path / "page.html").read_text()
    assert "b0, b1 is worse than a0, a1: −" in page
    rows = [row for row in cells(page) if len(row) == 10 and row[2] == "NDCG@10"]
    pairs = [(row[0], row[1], row[-1]) for row in rows]
    assert [pair[:2] for pair in pairs] == [
        ("a0, a1", "b0, b1"),
        ("Base of a0, a1", "a0, a1"),
        ("Base of b0, b1", "b0, b1"),
    ]
    assert pairs[0][2] == "0 of 2"
    assert pairs[1][2] == "2 of 2"
    assert ["training.beta", "0.5", "0.25"] in cells(page)


def test_runs_that_cannot_be_compared_are_shown_with_the_reason(tmp_path: Path) -> None:
    one, other = run_of(tmp_path, "one"), run_of(tmp_path, "other", evaluation={"exclude_seen": True})
    page = write_runs_page([one, other], tmp_path / "page.html").read_text()
    assert "one and other were not tested" in page
    assert "evaluation.exclude_seen" in page


@pytest.mark.parametrize("command", ["report ONE OTHER", "compare ONE OTHER"])
def test_the_commands_write_a_page_where_they_are_told(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = run_of(tmp_path, "one"), run_of(tmp_path, "other", 2, training={"beta": 0.25})
    arguments = command.replace("ONE", str(one)).replace("OTHER", str(other)).split()
    assert main(arguments) == 0
    assert main([*arguments, "--output", str(tmp_path / "new/page.html")]) == 0
    assert f"wrote {tmp_path / 'new/page.html'}" in capsys.readouterr().out
    assert "<h1>Comparison of" in (tmp_path / "new/page.html").read_text()


def test_the_page_of_one_run_goes_into_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, "one")
    assert main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 2
    assert "report/report.html" in capsys.readouterr().err
