"""What the report begins with: the right sign, the right figures, and no gain where none is shown."""

import html
import io
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from scipy import stats

from csrec_dist.cli import main
from csrec_dist.evaluation.significance import Paired, mean_interval, paired
from csrec_dist.files import read_json, write_record
from csrec_dist.report import print_results, write_report
from csrec_dist.report.answer import ANSWERED, Ranked, run_answer
from csrec_dist.report.document import Answer
from tests.helpers.ranked_runs import ndcg, write_ranks
from tests.helpers.run_folders import make_run

EVEN = {"base": 0, "student": 0, "teacher-0": 0, "teacher-1": 0}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def answer_of(run: Path) -> Answer:
    return run_answer(Ranked.open(run))


def test_a_gain_is_said_with_its_test(run: Path) -> None:
    ranks = write_ranks(run, EVEN | {"student": 3, "teacher-0": 1})
    answer = answer_of(run)
    base, student = ndcg(ranks["base"]), ndcg(ranks["student"])
    difference = student.mean() - base.mean()
    assert answer.tone == "gain"
    assert answer.headline == (
        f"In this run soft labels helped: +{100 * difference / base.mean():.1f}\u00a0% in NDCG@10 over Base."
    )
    p_value = stats.ttest_rel(student, base).pvalue
    assert p_value < 1e-4
    said = answer.details[0]
    assert f"NDCG@10 {student.mean():.4f}, Base {base.mean():.4f}: +{difference:.4f} (95 % interval +" in said
    assert "p\u00a0<\u00a00.0001" in said
    assert "over 400 test rows" in said
    assert "other seeds" in answer.details[-2]


def test_users_with_their_rows_are_the_sample(run: Path) -> None:
    """Four rows of each user."""
    ranks, users = write_ranks(run, EVEN | {"student": 3}), np.arange(400) // 4
    for path in (run / "ranks").iterdir():
        pl.read_parquet(path).with_columns(user=pl.Series(users)).write_parquet(path)
    ranked = Ranked.open(run)
    test, values = ranked.against("base", ANSWERED), ndcg(ranks["student"]).reshape(-1, 4).mean(1)
    assert test is not None
    assert test.num_users == 100
    assert test.p_value == pytest.approx(stats.ttest_rel(values, ndcg(ranks["base"]).reshape(-1, 4).mean(1)).pvalue)
    low, high = ranked.interval("student", ANSWERED) or (0, 0)
    assert (high - low) / 2 == pytest.approx(1.96 * stats.sem(values))


def test_a_loss_is_said(run: Path) -> None:
    write_ranks(run, EVEN | {"base": 3})
    answer = answer_of(run)
    assert answer.tone == "loss"
    assert answer.headline.startswith("In this run soft labels did not help: −")
    assert "other seeds" in answer.details[-2]


def test_where_no_gain_is_shown_the_answer_says_so(run: Path) -> None:
    ranks = write_ranks(run, EVEN)
    p_value = stats.ttest_rel(ndcg(ranks["student"]), ndcg(ranks["base"])).pvalue
    assert p_value > 0.05
    answer = answer_of(run)
    assert answer.tone == "open"
    assert answer.headline.startswith("No gain over Base is shown: ")
    assert answer.headline.endswith(" is within chance.")
    assert f"p\u00a0=\u00a0{p_value:.2g}" in answer.details[0]
    assert any(detail.startswith("Next: ") for detail in answer.details)


def test_the_teacher_it_is_held_against_is_the_best(run: Path) -> None:
    write_ranks(run, EVEN | {"teacher-1": 4, "student": 2})
    (said,) = [detail for detail in answer_of(run).details if "teacher-" in detail]
    assert said.startswith("It is behind the teacher-1: −")
    shutil.copy(run / "ranks/student-test.parquet", run / "ranks/teacher-1-test.parquet")
    (said,) = [detail for detail in answer_of(run).details if "teacher-" in detail]
    assert said.startswith("It is level with the teacher-1, within chance: ")


def test_a_member_that_does_not_label_is_not_its_teacher(tmp_path: Path) -> None:
    """Of CSRec-T the main teacher labels, though the side teacher may rank better."""
    run = make_run(tmp_path, method="training_level")
    path = run / "metrics.json"
    saved = read_json(path)
    for made, name in (("teacher-0", "side"), ("teacher-1", "main")):
        (run / "teachers" / made).rename(run / "teachers" / name)
        saved["models"][name] = saved["models"].pop(made)
    write_record(path, saved)
    write_ranks(run, {"base": 0, "student": 2, "side": 4, "main": 0})
    assert any(detail.startswith("It is ahead of the main") for detail in answer_of(run).details)
    assert not any("the side" in detail for detail in answer_of(run).details)


def test_without_base_the_answer_is_open_and_says_how_to_get_one(tmp_path: Path) -> None:
    run = make_run(tmp_path, baseline=False)
    write_ranks(run, {"student": 3, "teacher-0": 0, "teacher-1": 0})
    answer = answer_of(run)
    assert answer.tone == "open"
    assert answer.headline.startswith("Whether soft labels helped is open: no Base was trained.")
    assert "baseline: true" in answer.details[-1]
    assert "ahead of the teacher-" in answer.details[0]


def test_base_alone_is_no_answer(tmp_path: Path) -> None:
    answer = answer_of(make_run(tmp_path, method="base"))
    assert answer.tone == "open"
    assert answer.headline.startswith("This run is Base, without soft labels")


def test_a_run_without_ranks_is_not_tested(run: Path) -> None:
    answer = answer_of(run)
    assert answer.tone == "open"
    assert "not tested" in answer.headline


def test_an_unfinished_run_has_no_answer(run: Path) -> None:
    (run / "evaluate.done.json").unlink()
    answer = answer_of(run)
    assert answer.headline == "No answer yet: this run is not evaluated."
    assert answer.details == ("Missing stages: evaluate.",)


def test_the_page_begins_with_it_and_holds_every_comparison(run: Path) -> None:
    ranks = write_ranks(run, EVEN | {"student": 3})
    write_report(run)
    page = (run / "report/report.md").read_text()
    headline = answer_of(run).headline.replace("\u00a0", " ")
    assert page.index(headline) < page.index("ndcg.png") < page.index("## Metrics")
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if " | NDCG@10 | 0." in line]
    assert [line[0] for line in lines] == ["Base", "teacher-0", "teacher-1"]
    for line, name in zip(lines, ("base", "teacher-0", "teacher-1"), strict=True):
        other, student = ndcg(ranks[name]).mean(), ndcg(ranks["student"]).mean()
        difference = f"{student - other:+.4f}"
        assert line[2:5] == [f"{other:.4f}", f"{student:.4f}", f"**{difference}**"]


@pytest.mark.parametrize("shift", [3, -3, 0])
def test_the_terminal_ends_with_the_answer_of_the_page(run: Path, shift: int) -> None:
    write_ranks(run, EVEN | {"student": shift})
    page = write_report(run).read_text()
    said = [html.unescape(re.sub("<[^>]*>", "", each)) for each in re.findall(r"<p.*?</p>", answer_part(page))]
    piped = Console(width=60, file=io.StringIO())
    print_results(run, piped)
    assert len(said) > 3
    assert piped.file.getvalue().endswith(f"\n\n{' '.join(said)}\n"), "one line in a file or a pipe"
    narrow = Console(width=60, file=io.StringIO(), force_terminal=True)
    print_results(run, narrow)
    last = narrow.file.getvalue().rpartition("\n\n")[2]
    assert last.split() == " ".join(said).split(), "no word is broken"
    assert max(map(len, last.splitlines())) <= 60


def test_page_and_terminal_share_their_tests(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ranks(run, EVEN | {"student": 3})
    tested = []

    def counted(first: np.ndarray, second: np.ndarray, **options: object) -> Paired:
        tested.append(first)
        return paired(first, second)

    monkeypatch.setattr("csrec_dist.report.answer.paired", counted)
    assert main(["report", str(run)]) == 0
    assert len(tested) == 2 * 3, "two metrics, against Base and both teachers"


def answer_part(page: str) -> str:
    """What the page has in the frame of its answer."""
    return page.partition('<div class="answer')[2].partition("</div>")[0]


def test_intervals_of_bars_are_those_of_the_mean(run: Path) -> None:
    ranks = write_ranks(run, EVEN)
    _, *bootstrapped = mean_interval(ndcg(ranks["base"]))
    np.testing.assert_allclose(Ranked.open(run).interval("base", ANSWERED), bootstrapped, rtol=0.02)


def test_ranks_of_other_rows_are_not_compared(run: Path) -> None:
    write_ranks(run, EVEN)
    write_ranks(run, {"base": 0}, num_rows=300)
    assert Ranked.open(run).against("base", ANSWERED) is None


def test_nothing_of_a_run_s_files_is_markup(run: Path) -> None:
    write_ranks(run, EVEN)
    name = "<img src=x onerror=alert(1)>.csv"
    for path, change in (
        (run / "dataset/dataset.json", lambda saved: saved["source"].update(name=name)),
        (run / "teachers/teacher-1/metrics.json", lambda saved: (saved.clear(), saved.update(taken_from=name))),
        (run / "student/metrics.json", lambda saved: saved.update(trained_by={"engine": name, "ranks": [0]})),
    ):
        saved = read_json(path)
        change(saved)
        write_record(path, saved)
    page = write_report(run).read_text()
    assert "<img" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;.csv") >= 4, "source twice, taken from, trained by"


def test_the_rows_of_one_user_are_no_sample(run: Path) -> None:
    write_ranks(run, EVEN | {"student": 3})
    for path in (run / "ranks").iterdir():
        pl.read_parquet(path).with_columns(user=pl.lit(1)).write_parquet(path)
    answer = answer_of(run)
    assert answer.tone == "open"
    assert answer.headline.endswith("not tested, as the test rows are of one user, who is no sample.")
    assert not any("--restart" in detail for detail in answer.details)
