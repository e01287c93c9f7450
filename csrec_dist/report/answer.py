"""Whether soft labels helped: a run's student against its Base and its teachers, on the same test rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl

from csrec_dist.evaluation.options import metric_title
from csrec_dist.evaluation.significance import Line, Paired, metric_values, paired, standard_error
from csrec_dist.report.differences import change_text, difference_text, differences_table, signed
from csrec_dist.report.document import Answer, Table, Text
from csrec_dist.runs.run import Evaluated, ResultRow, Run

SELECTED = 10
"""The cut-off that early stopping and the answer look at."""
ANSWERED, ALSO = f"ndcg@{SELECTED}", f"recall@{SELECTED}"
METRICS = (ANSWERED, ALSO)
SEEDS = "train further seeds (--set seed=1 --set name=…_s1, …), Base too, and give all of them to csrec-dist compare"
OTHER_SEEDS = "The test is of these two trained models: other seeds train other models, and may answer otherwise."
NORMAL_95 = 1.96

ROWS_NOTE = (
    "Users are the sample, each with all its test rows: the interval (percentile bootstrap) and p (two-sided paired "
    "t-test, not corrected for the number of comparisons) say how sure the difference is for this pair of trained "
    "models. Another seed trains other models, and moves both."
)


@dataclass(frozen=True)
class Ranked:
    """A run with the ranks of its evaluated models, and the paired tests of these, each done once."""

    run: Run
    _tests: dict[tuple[str, str], Paired | None] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """That of a folder; UserError when it is not the folder of a run."""
        return cls(Run.open(folder))

    @cached_property
    def _ranks(self) -> dict[str, pl.DataFrame]:
        evaluated = [Evaluated(self.run, row.name) for row in self.run.results if row.test]
        return {model.model: model.ranks.select("rank", "user") for model in evaluated if model.path.exists()}

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
        first, second = (self.values(model, metric) for model in (name, "student"))
        if first is None or second is None or len(first) != len(second):
            return None
        users = self._users("student")
        return paired(first, second, users=users) if len(np.unique(users)) > 1 else None


def run_answer(ranked: Ranked) -> Answer:
    """What the report of a run begins with."""
    run = ranked.run
    results = {result.name: result for result in run.results if result.test}
    if "student" not in results:
        missing = f"Missing stages: {', '.join(run.missing)}." if run.missing else ""
        return Answer("open", "No answer yet: this run is not evaluated.", (missing,) if missing else ())
    student, metric = results["student"], metric_title(ANSWERED)
    value = f"{metric} {student.test[ANSWERED]:.4f}"
    if run.config.method == "base":
        return Answer(
            "open",
            f"This run is Base, without soft labels: {value} on test.",
            ("Compare it with a run of another method: csrec-dist compare BASE_RUN OTHER_RUN.",),
        )
    if "base" not in results:
        return Answer(
            "open",
            f"Whether soft labels helped is open: no Base was trained. The {student.title} reaches {value} on test.",
            (
                *_against_teachers(results, ranked),
                "Set baseline: true and give the command again with --restart evaluate: only Base is trained then.",
            ),
        )
    base = results["base"]
    values = f"The {student.title} reaches {value}, Base {base.test[ANSWERED]:.4f}"
    test = ranked.against("base", ANSWERED)
    if test is None:
        difference = signed(student.test[ANSWERED] - base.test[ANSWERED])
        if ranked.values("student", ANSWERED) is not None and ranked.values("base", ANSWERED) is not None:
            why, advice = "the test rows are of one user, who is no sample", "A test needs two users at least."
        else:
            why, advice = "ranks/ has no ranks of both", "Evaluate again with --restart evaluate to have it tested."
        return Answer("open", f"{values}: {difference}, not tested, as {why}.", (advice,))
    details = [f"{values}: {difference_text(test)} over {test.count:,} test rows."]
    if also := ranked.against("base", ALSO):
        details.append(f"{metric_title(ALSO)}: {difference_text(also)}.")
    details += _against_teachers(results, ranked)
    return _verdict(test, details)


def _verdict(test: Paired, details: list[str]) -> Answer:
    """Whether the student is better than Base by this test, with what to do next."""
    change, metric = change_text(test), metric_title(ANSWERED)
    if not test.is_significant:
        advice = (
            f"Next: {SEEDS}, or choose training.temperature, training.beta and teachers.num on validation with "
            "csrec-dist tune, as for Base."
        )
        return Answer("open", f"No gain over Base is shown: {change} in {metric} is within chance.", (*details, advice))
    if test.difference > 0:
        headline = f"In this run soft labels helped: {change} in {metric} over Base."
        return Answer("gain", headline, (*details, OTHER_SEEDS, f"Next: {SEEDS}."))
    advice = (
        "Next: choose training.temperature, training.beta and teachers.num on validation with csrec-dist tune; "
        "where the teachers are weaker than Base, train them longer first."
    )
    headline = f"In this run soft labels did not help: {change} in {metric} against Base."
    return Answer("loss", headline, (*details, OTHER_SEEDS, advice))


def _against_teachers(results: Mapping[str, ResultRow], ranked: Ranked) -> list[str]:
    """The student against its teacher: the ensemble, or the best of the members that label where there is none."""
    labelling = [name for name in ranked.run.config.labelling_names if name in results]
    if not labelling:
        return []
    teacher = "teachers" if "teachers" in results else max(labelling, key=lambda name: results[name].test[ANSWERED])
    test = ranked.against(teacher, ANSWERED)
    if test is None:
        return []
    position = "ahead of" if test.difference > 0 else "behind" if test.difference < 0 else "level with"
    chance = "" if test.is_significant else ", within chance"
    title, metric = results[teacher].title, metric_title(ANSWERED)
    return [f"It is {position} the {title}{chance}: {difference_text(test)} in {metric}."]


def comparison_blocks(ranked: Ranked) -> list[Table | Text]:
    """The student against each other model: differences, intervals and p; nothing without ranks."""
    rows = [
        ((result.title,), Line(metric, test, (test.difference,)))
        for result in ranked.run.results
        if result.name != "student"
        for metric in METRICS
        if (test := ranked.against(result.name, metric))
    ]
    if not rows:
        return []
    names = (f"{ranked.run.title('student')} against",)
    return [differences_table(names, rows, values=("it has", "student", "difference")), Text(ROWS_NOTE)]
