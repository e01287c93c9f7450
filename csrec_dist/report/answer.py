"""Whether soft labels helped: a run's student against its Base and its teachers, on the same test rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl

from csrec_dist.evaluation.options import metric_title
from csrec_dist.evaluation.significance import Paired, metric_values, paired, standard_error
from csrec_dist.report.document import NONE, Answer, Cell, Table, Text
from csrec_dist.runs.run import Evaluated, ResultRow, Run

SELECTED = 10
"""The cut-off that early stopping and the answer look at."""
ANSWERED, ALSO = f"ndcg@{SELECTED}", f"recall@{SELECTED}"
METRICS = (ANSWERED, ALSO)
SEEDS = "train further seeds (--set seed=1 --set name=…_s1, …), Base too, and give all of them to csrec-dist compare"
NBSP = "\u00a0"
NORMAL_95 = 1.96

ROWS_NOTE = (
    "Users are the sample, each with all its test rows: the interval (percentile bootstrap) and p (two-sided paired "
    "t-test, not corrected for the number of comparisons) say how sure the difference is for this pair of trained "
    "models. Another seed trains other models, and moves both."
)


@dataclass(frozen=True)
class Ranked:
    """A run's evaluated models, those without files of ranks left out."""

    run: Run
    _tests: dict[tuple[str, str], Paired | None] = field(default_factory=dict)

    @cached_property
    def _ranks(self) -> dict[str, pl.DataFrame]:
        evaluated = {row.name: Evaluated(self.run, row.name) for row in self.run.results if row.test}
        return {name: each.ranks.select("rank", "user") for name, each in evaluated.items() if each.path.exists()}

    def values(self, name: str, metric: str) -> np.ndarray | None:
        """A model's metric of each test row [N], if its ranks are there."""
        kind, _, n = metric.partition("@")
        return metric_values(kind, self._ranks[name]["rank"].to_numpy(), int(n)) if name in self._ranks else None

    def _users(self, name: str) -> np.ndarray:
        """The user of each test row [N] of a model whose ranks are there."""
        return self._ranks[name]["user"].to_numpy()

    def interval(self, name: str, metric: str) -> tuple[float, float] | None:
        """The 95 % interval of a model's metric, mean ± 1.96 standard errors, if its ranks are there."""
        values = self.values(name, metric)
        if values is None or len(np.unique(self._users(name))) < 2:
            return None
        half = NORMAL_95 * standard_error(values, self._users(name))
        return float(values.mean()) - half, float(values.mean()) + half

    def against(self, name: str, metric: str) -> Paired | None:
        """The student's metric minus another model's, if both have ranks of the same rows."""
        if (name, metric) not in self._tests:
            self._tests[name, metric] = self._tested(name, metric)
        return self._tests[name, metric]

    def _tested(self, name: str, metric: str) -> Paired | None:
        first, second = (self.values(each, metric) for each in (name, "student"))
        if first is None or second is None or len(first) != len(second):
            return None
        users = self._users("student")
        return paired(first, second, users=users) if len(np.unique(users)) > 1 else None


def p_text(p_value: float) -> str:
    """p = 0.012, or p < 0.0001; no line ends within it."""
    return f"p{NBSP}<{NBSP}0.0001" if p_value < 1e-4 else f"p{NBSP}={NBSP}{p_value:.2g}"


def signed(value: float, digits: str = "+.4f") -> str:
    """A number with its sign; a minus is as wide as a plus."""
    return format(value, digits).replace("-", "−")


def difference_text(test: Paired) -> str:
    """+0.0051 (95 % interval +0.0004 to +0.0098, p = 0.03)."""
    return f"{signed(test.difference)} (95 % interval {interval_text(test)}, {p_text(test.p_value)})"


def interval_text(test: Paired) -> str:
    """+0.0004 to +0.0098."""
    return f"{signed(test.low)} to {signed(test.high)}"


def change_text(test: Paired) -> str:
    """+8.2 %, or a dash where there is nothing to divide by."""
    return f"{signed(100 * test.difference / test.first, '+.1f')}{NBSP}%" if test.first else NONE


def run_answer(run: Run, ranked: Ranked) -> Answer:
    """What the report of a run begins with."""
    rows = {row.name: row for row in run.results}
    student = rows.get("student")
    if student is None or not student.test:
        missing = f"Missing stages: {', '.join(run.missing)}." if run.missing else ""
        return Answer("open", "No answer yet: this run is not evaluated.", (missing,) if missing else ())
    reached = f"{metric_title(ANSWERED)} {student.test[ANSWERED]:.4f}"
    if run.config.method == "base":
        return Answer(
            "open",
            f"This run is Base, without soft labels: {reached} on test.",
            ("Compare it with a run of another method: csrec-dist compare BASE_RUN OTHER_RUN.",),
        )
    if "base" not in rows or not rows["base"].test:
        return Answer(
            "open",
            f"Whether soft labels helped is open: no Base was trained. The {student.title} reaches {reached} on test.",
            (
                *_against_teachers(rows, ranked),
                "Set baseline: true and give the command again with --restart evaluate: only Base is trained then.",
            ),
        )
    return _answer(rows, ranked)


def _answer(rows: Mapping[str, ResultRow], ranked: Ranked) -> Answer:
    student, base = rows["student"], rows["base"]
    test, title = ranked.against("base", ANSWERED), metric_title(ANSWERED)
    reached = f"{title} {student.test[ANSWERED]:.4f}, Base {base.test[ANSWERED]:.4f}"
    if test is None:
        difference = student.test[ANSWERED] - base.test[ANSWERED]
        said = (
            f"The {student.title} reaches {reached}: {signed(difference)}, not tested, as ranks/ has no ranks of both."
        )
        return Answer("open", said, ("Evaluate again with --restart evaluate to have the difference tested.",))
    also = ranked.against("base", ALSO)
    figures = [f"The {student.title} reaches {reached}: {difference_text(test)} over {test.count:,} test rows."]
    figures += [f"{metric_title(ALSO)}: {difference_text(also)}."] if also else []
    figures += _against_teachers(rows, ranked)
    if not test.is_significant:
        return Answer(
            "open",
            f"No gain over Base is shown: {change_text(test)} in {title} is within chance.",
            (
                *figures,
                f"Next: {SEEDS}, or choose training.temperature, training.beta and teachers.num on validation with "
                "csrec-dist tune, as for Base.",
            ),
        )
    if test.difference > 0:
        return Answer(
            "gain",
            f"Soft labels helped: {change_text(test)} in {title} over Base.",
            (*figures, f"Next: {SEEDS}."),
        )
    return Answer(
        "loss",
        f"Soft labels did not help: {change_text(test)} in {title} against Base.",
        (
            *figures,
            "Next: choose training.temperature, training.beta and teachers.num on validation with csrec-dist tune; "
            "where the teachers are weaker than Base, train them longer first.",
        ),
    )


def _against_teachers(rows: Mapping[str, ResultRow], ranked: Ranked) -> list[str]:
    """The student against the model that taught it: the ensemble, or the best member."""
    teachers = [name for name in rows if name not in ("base", "student") and rows[name].test]
    taught = "teachers" if "teachers" in rows else max(teachers, key=lambda name: rows[name].test[ANSWERED], default="")
    test = ranked.against(taught, ANSWERED) if taught else None
    if test is None:
        return []
    word = "ahead of" if test.difference > 0 else "behind"
    sure = "" if test.is_significant else ", within chance"
    return [f"It is {word} the {rows[taught].title}{sure}: {difference_text(test)} in {metric_title(ANSWERED)}."]


def comparison_blocks(run: Run, ranked: Ranked) -> list[Table | Text]:
    """The student against each other model: differences, intervals and p; nothing without ranks."""
    titles = {row.name: row.title for row in run.results if row.test and row.name != "student"}
    student = run.title("student")
    tests = [
        (title, metric, test)
        for name, title in titles.items()
        for metric in METRICS
        if (test := ranked.against(name, metric))
    ]
    if not tests:
        return []
    header = (f"{student} against", "metric", "it has", "student", "difference", "%", "95 % interval", "p")
    return [Table.of(header, [(title, *paired_cells(m, test)) for title, m, test in tests], 2), Text(ROWS_NOTE)]


def paired_cells(metric: str, test: Paired) -> Sequence[str | Cell]:
    """A comparison's cells from the metric on; a difference with p < 0.05 is marked."""
    return (
        metric_title(metric),
        f"{test.first:.4f}",
        f"{test.second:.4f}",
        Cell(signed(test.difference), test.is_significant),
        change_text(test),
        interval_text(test),
        Cell(f"{test.p_value:.2g}", test.is_significant),
    )
