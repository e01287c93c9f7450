"""Tables of a study, with marks of significance."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean, stdev

import numpy as np
import polars as pl

from csrec_dist.errors import UserError
from csrec_dist.evaluation.options import metric_title
from csrec_dist.evaluation.significance import compare_ranks
from csrec_dist.experiments.study.collecting import PROTOCOL, RANKS, RATING_GROUPS, TEACHER
from csrec_dist.experiments.study.spec import Cell, Published, Study, matches
from csrec_dist.experiments.study.views import TableOptions, When
from csrec_dist.report.document import NONE, Answer, Block, Table, Text, best_of
from csrec_dist.report.document import Cell as TableCell

LETTERS = "ᵃᵇᶜᵈᵉ"
TESTED = re.compile(r"(?:recall|ndcg|mrr)[+-]?@(\d+)")
FEWEST_RESAMPLES = 2
"""The bootstrap interval is not shown."""

Marks = dict[tuple[str, str], str]


def find_marks(options: TableOptions, columns: list[str], group: pl.DataFrame) -> tuple[Marks, str]:
    """Superscripts by (column, metric) of one row of a table, and the reason if a pair of columns could not be tested.

    Two columns are compared over the seeds that both have. The columns of `better_than` are each tested against the
    ones before.
    """
    marks: defaultdict[tuple[str, str], str] = defaultdict(str)
    problem = ""
    for (letter, other), column in product(zip(LETTERS, options.better_than, strict=False), columns):
        if column in options.better_than[: options.better_than.index(other) + 1]:
            continue
        pair = [group.filter(pl.col(options.columns) == name) for name in (other, column)]
        try:
            for metric in _differing(pair, options.metrics):
                marks[column, metric] += letter
        except UserError as error:
            problem = problem or str(error)
    return dict(marks), problem


def _differing(pair: list[pl.DataFrame], metrics: Iterable[str]) -> list[str]:
    """The metrics, of students and teachers, in which two columns differ."""
    return [
        f"{prefix}{name}"
        for prefix in ("", TEACHER)
        for name in _test(
            pair, [metric.removeprefix(prefix) for metric in metrics if metric.startswith(prefix)], prefix
        )
    ]


def _test(pair: list[pl.DataFrame], metrics: list[str], prefix: str) -> set[str]:
    """The metrics in which the students (or, with the prefix, their teachers) differ, p < 0.05.

    Seeds without ranks on both sides are left out.
    """
    top_n = sorted({int(match[1]) for metric in metrics if (match := TESTED.fullmatch(metric))})
    name = f"{prefix}{RANKS}"
    sides = [{row["seed"]: row for row in side.to_dicts() if row.get(name) is not None} for side in pair]
    seeds = sorted(sides[0].keys() & sides[1].keys())
    if not top_n or not seeds:
        return set()
    rows = [[side[seed] for seed in seeds] for side in sides]
    if len({row[PROTOCOL] for side in rows for row in side}) > 1:
        raise UserError("runs of one row were evaluated on different data or with different options.")
    first, second = (np.array([row[name] for row in side]) for side in rows)
    groups = rows[0][0].get(RATING_GROUPS)
    groups = np.full(first.shape[1], -1) if groups is None else np.array(groups)
    lines = compare_ranks(first, second, groups, top_n=top_n, num_resamples=FEWEST_RESAMPLES)
    return {line.metric for line in lines if line.paired.is_significant} & set(metrics)


PERCENTAGES = ("recall", "ndcg", "mrr")
Group = tuple[Cell, pl.DataFrame]


def in_percent(metric: str) -> bool:
    """Whether a metric is shown in percent: recall, NDCG and MRR of all kinds are."""
    return metric.rpartition("/")[2].startswith(PERCENTAGES)


def select(results: pl.DataFrame, where: When) -> pl.DataFrame:
    """The rows whose cells have these values."""
    for axis, value in where.items():
        results = results.filter(pl.col(axis).is_in([value] if isinstance(value, str) else value))
    return results


def table(study: Study, options: TableOptions, results: pl.DataFrame) -> list[Block]:
    """A table, with the tests, the number of rows won and the costs against `better_than` below it."""
    values = study.values(options.where)
    columns = values[options.columns]
    groups = _groups(options, values, select(results, options.where))
    head = [*options.rows, *(f"{column} {metric}" for column in columns for metric in options.metrics)]
    tests = [find_marks(options, columns, group) for _, group in groups]
    rows: list[list[str | TableCell]] = [
        [*fixed.values(), *_cells(study, options, fixed, columns, group, marks)]
        for (fixed, group), (marks, _) in zip(groups, tests, strict=True)
    ]
    blocks: list[Block] = [Table.of(head, rows, num_names=len(options.rows))]
    if options.better_than:
        problems = [problem for _, problem in tests]
        blocks += [Text(_legend(options, problems)), *map(Text, _wins(options, columns, groups))]
    if options.costs:
        blocks += _costs(options, columns, groups)
    return blocks


@dataclass(frozen=True)
class Against:
    """A column against another over the rows of a table that have both, by one metric.

    `change` is the mean over the rows of how much its mean is higher, as a share; in `num_better` and `num_worse` rows
    the two differ, p < 0.05.
    """

    column: str
    num_rows: int
    change: float
    num_higher: int
    num_better: int
    num_worse: int


def against(study: Study, options: TableOptions, results: pl.DataFrame) -> tuple[str, list[Against]]:
    """The last metric of a table that can be tested, and its columns against the first of `better_than`, best first."""
    metric = next((name for name in reversed(options.metrics) if TESTED.fullmatch(name)), "")
    values = study.values(options.where)
    groups = _groups(options, values, select(results, options.where))
    others = [column for column in values[options.columns] if column not in options.better_than]
    found = [_against(options, column, groups, metric) for column in others if metric and options.better_than]
    return metric, sorted((each for each in found if each.num_rows), key=lambda each: -each.change)


def _against(options: TableOptions, column: str, groups: list[Group], metric: str) -> Against:
    changes, differs = [], []
    for _, group in groups:
        pair = (column, options.better_than[0])
        ours, theirs = (_values(group, {options.columns: each}, metric) for each in pair)
        if ours and theirs and mean(theirs):
            marks, _ = find_marks(options, [column], group)
            changes.append(mean(ours) / mean(theirs) - 1)
            differs.append(LETTERS[0] in marks.get((column, metric), ""))
    sure = [change for change, is_different in zip(changes, differs, strict=True) if is_different]
    counts = (sum(change > 0 for change in each) for each in (changes, sure))
    num_higher, num_better = counts
    change = mean(changes) if changes else 0.0
    return Against(column, len(changes), change, num_higher, num_better, len(sure) - num_better)


def answer(lines: Sequence[Against], other: str, metric: str) -> Answer:
    """What a table says, in sentences: the column that gains most first."""
    best, title = lines[0], metric_title(metric)
    text = f"{best.column} is above {other} in {best.num_higher} of {best.num_rows} rows, {_percent(best)} in {title}."
    details = [
        f"{each.column} against {other}: higher in {each.num_higher} of {each.num_rows} rows, {_percent(each)} in the "
        f"mean over them; p < 0.05 in {each.num_better} rows for it and in {each.num_worse} against it."
        for each in lines
    ]
    if best.change > 0 and best.num_better > best.num_worse:
        return Answer("gain", text, tuple(details))
    return Answer("open", f"No gain over {other} is shown: {text}", tuple(details))


def _percent(line: Against) -> str:
    return f"{100 * line.change:+.1f} %".replace("-", "−")


def _groups(options: TableOptions, values: dict[str, list[str]], results: pl.DataFrame) -> list[Group]:
    """The values of the axes `rows` and the runs of each row of the table, in the order of the axes."""
    parts = results.partition_by(options.rows, as_dict=True)
    order = product(*(values[axis] for axis in options.rows))
    return [(dict(zip(options.rows, line, strict=True)), parts[line]) for line in order if line in parts]


def _cells(
    study: Study, options: TableOptions, fixed: Cell, columns: list[str], group: pl.DataFrame, marks: Marks
) -> list[TableCell]:
    """The cells of one row; of each metric the best column is marked."""
    fixed = study.constants(options.where) | fixed
    cells = []
    for column, metric in product(columns, options.metrics):
        means = [mean(each) if (each := _values(group, {options.columns: c}, metric)) else None for c in columns]
        is_best = in_percent(metric) and best_of(means)[columns.index(column)]
        cell = fixed | {options.columns: column}
        cells.append(_figure(study, cell, group, metric, marks.get((column, metric), ""), is_best))
    return cells


def _values(group: pl.DataFrame, cell: Cell, metric: str) -> list[float]:
    return select(group, {**cell})[metric].drop_nulls().to_list() if metric in group.columns else []


def _figure(study: Study, cell: Cell, group: pl.DataFrame, metric: str, mark: str, is_best: bool) -> TableCell:
    scale, digits = (100, 2) if in_percent(metric) else (1, 4)
    values = [scale * value for value in _values(group, cell, metric)]
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    ours = f"{mean(values):.{digits}f}{mark}{spread} ({len(values)})" if values else NONE
    paper = published(study.published, cell, metric)
    return TableCell(ours, is_best, "" if paper is None else f"{paper:.2f}")


def published(figures: Sequence[Published], cell: Cell, metric: str) -> float | None:
    """The paper's value for a cell, in percent, or None."""
    for each in figures:
        if metric in each.values and matches(each.when, cell):
            return each.values[metric]
    return None


def _legend(options: TableOptions, problems: list[str]) -> str:
    pairs = zip(LETTERS, options.better_than, strict=False)
    marks = "; ".join(f"{letter} differs from {other}" for letter, other in pairs)
    text = f"{marks}: p < 0.05, paired t-test over test rows; a test row's value is its mean over the seeds."
    problem = next(filter(None, problems), None)
    return f"{text} Not every row could be tested: {problem}" if problem else text


def _wins(options: TableOptions, columns: list[str], groups: list[Group]) -> list[str]:
    """In how many rows a column's mean is higher than another's, among the rows with both."""
    sentences = []
    for column, other in product(columns, options.better_than):
        if column not in options.better_than:
            counts = [_count_wins(options, column, other, groups, metric) for metric in options.metrics]
            pairs = zip(options.metrics, counts, strict=True)
            listed = ", ".join(f"{metric} {won} of {of}" for metric, (won, of) in pairs)
            sentences.append(f"{column} is higher than {other}: {listed}")
    return sentences


def _count_wins(options: TableOptions, column: str, other: str, groups: list[Group], metric: str) -> tuple[int, int]:
    pairs = [[_values(group, {options.columns: each}, metric) for each in (column, other)] for _, group in groups]
    both = [(mean(ours), mean(theirs)) for ours, theirs in pairs if ours and theirs]
    return sum(ours > theirs for ours, theirs in both), len(both)


def _costs(options: TableOptions, columns: list[str], groups: list[Group]) -> list[Block]:
    """The CPU seconds of training of each column, as multiples of the first column of `better_than`."""
    base = options.better_than[0]
    head = [f"CPU seconds of training, as multiples of {base}", *columns]
    cells = []
    for column in columns:
        pairs = [[_values(g, {options.columns: each}, "cpu_seconds") for each in (column, base)] for _, g in groups]
        ratios = [mean(ours) / mean(theirs) for ours, theirs in pairs if ours and theirs and mean(theirs)]
        cells.append(f"{mean(ratios):.1f} ({len(ratios)})" if ratios else NONE)
    note = "Covers teachers (shared ones in full), labels and student; brackets count the rows of uninterrupted runs."
    return [Table.of(head, [["mean over the rows", *cells]]), Text(note)]
