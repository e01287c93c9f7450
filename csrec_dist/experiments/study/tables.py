"""Tables of a study, with marks of significance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import mean, stdev

import polars as pl

from csrec_dist.evaluation.options import is_adverse, metric_title
from csrec_dist.experiments.study.marks import TESTED, TableTests, compare_columns
from csrec_dist.experiments.study.spec import Cell, Published, Study, matches
from csrec_dist.experiments.study.views import TableOptions, When
from csrec_dist.report.document import NONE, Answer, Block, Table, Text, best_of
from csrec_dist.report.document import Cell as TableCell

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
    tests = compare_columns(options, columns, [group for _, group in groups])
    rows: list[list[str | TableCell]] = [
        [*fixed.values(), *_cells(study, options, fixed, columns, group, partial(tests.marks, line))]
        for line, (fixed, group) in enumerate(groups)
    ]
    blocks: list[Block] = [Table.of(head, rows, num_names=len(options.rows))]
    if options.better_than:
        blocks += [Text(tests.legend(options)), *map(Text, _wins(options, columns, groups))]
    if options.costs:
        blocks += _costs(options, columns, groups)
    return blocks


@dataclass(frozen=True)
class Against:
    """A column against another over the rows of a table that have both, by one metric.

    `change` is the mean over the rows of how much its mean is higher, as a share, over the seeds that both have; in
    `num_better` and `num_worse` rows the two differ, p < 0.05 by Holm's correction over the table's tests.
    """

    column: str
    num_rows: int
    change: float
    num_higher: int
    num_better: int
    num_worse: int


def against(study: Study, options: TableOptions, results: pl.DataFrame) -> tuple[str, list[Against]]:
    """The last metric of a table that can be tested, and its columns against the first of `better_than`, best first.

    The adverse metrics, of which less is better, are passed over.
    """
    tested = [name for name in options.metrics if TESTED.fullmatch(name) and not is_adverse(name)]
    metric = tested[-1] if tested else ""
    values = study.values(options.where)
    groups = _groups(options, values, select(results, options.where))
    if not metric or not options.better_than:
        return metric, []
    tests = compare_columns(options, values[options.columns], [group for _, group in groups])
    others = [column for column in values[options.columns] if column not in options.better_than]
    found = [_against(options, column, groups, metric, tests) for column in others]
    return metric, sorted((each for each in found if each.num_rows), key=lambda each: -each.change)


def _against(options: TableOptions, column: str, groups: list[Group], metric: str, tests: TableTests) -> Against:
    changes, sure = [], []
    for line, (_, group) in enumerate(groups):
        ours, theirs = _paired_values(group, options.columns, (column, options.better_than[0]), metric)
        if ours and mean(theirs):
            changes.append(mean(ours) / mean(theirs) - 1)
            test = tests.tests.get((line, column, metric, 0))
            sure += [test.difference] if test is not None and test.is_significant else []
    num_higher, num_better = (sum(change > 0 for change in each) for each in (changes, sure))
    change = mean(changes) if changes else 0.0
    return Against(column, len(changes), change, num_higher, num_better, len(sure) - num_better)


def answer(lines: Sequence[Against], other: str, metric: str) -> Answer:
    """What a table says, in sentences: the column that gains most first."""
    best, title = lines[0], metric_title(metric)
    text = f"{best.column} is above {other} in {best.num_higher} of {best.num_rows} rows, {_percent(best)} in {title}."
    details = [
        f"{each.column} against {other}: higher in {each.num_higher} of {each.num_rows} rows, {_percent(each)} in the "
        f"mean over them; p < 0.05 (corrected) in {each.num_better} rows for it and in {each.num_worse} against it."
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
    study: Study,
    options: TableOptions,
    fixed: Cell,
    columns: list[str],
    group: pl.DataFrame,
    marks: Callable[[str, str], str],
) -> list[TableCell]:
    """The cells of one row; of each metric the best column is marked."""
    fixed = study.constants(options.where) | fixed
    best = {metric: _best(options, columns, group, metric) for metric in options.metrics}
    cells = []
    for column, metric in product(columns, options.metrics):
        cell = fixed | {options.columns: column}
        cells.append(_figure(study, cell, group, metric, marks(column, metric), column in best[metric]))
    return cells


def _best(options: TableOptions, columns: list[str], group: pl.DataFrame, metric: str) -> list[str]:
    """The columns with the best mean, over the seeds that all columns with values have."""
    present = [column for column in columns if _values(group, {options.columns: column}, metric)]
    means = [mean(each) if each else None for each in _paired_values(group, options.columns, present, metric)]
    marked = best_of(means, lowest=is_adverse(metric)) if in_percent(metric) else []
    return [column for column, is_best in zip(present, marked, strict=False) if is_best]


def _values(group: pl.DataFrame, cell: Cell, metric: str) -> list[float]:
    return select(group, {**cell})[metric].drop_nulls().to_list() if metric in group.columns else []


def _paired_values(group: pl.DataFrame, axis: str, columns: Sequence[str], metric: str) -> list[list[float]]:
    """A metric's values in each of the columns, of the seeds that all of them have, in one order."""
    if metric not in group.columns:
        return [[] for _ in columns]
    known = group.select(axis, "seed", metric).drop_nulls(metric)
    sides = [dict(select(known, {axis: each}).select("seed", metric).iter_rows()) for each in columns]
    seeds = sorted(set.intersection(*map(set, sides))) if sides else []
    return [[side[seed] for seed in seeds] for side in sides]


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


def _wins(options: TableOptions, columns: list[str], groups: list[Group]) -> list[str]:
    """In how many rows a column's mean is higher than another's, over the seeds that both have."""
    sentences = []
    for column, other in product(columns, options.better_than):
        if column not in options.better_than:
            counts = [_count_wins(options, column, other, groups, metric) for metric in options.metrics]
            pairs = zip(options.metrics, counts, strict=True)
            listed = ", ".join(f"{metric} {won} of {of}" for metric, (won, of) in pairs)
            sentences.append(f"{column} is higher than {other}: {listed}")
    return sentences


def _count_wins(options: TableOptions, column: str, other: str, groups: list[Group], metric: str) -> tuple[int, int]:
    pairs = [_paired_values(group, options.columns, (column, other), metric) for _, group in groups]
    both = [(mean(ours), mean(theirs)) for ours, theirs in pairs if ours]
    return sum(ours > theirs for ours, theirs in both), len(both)


def _costs(options: TableOptions, columns: list[str], groups: list[Group]) -> list[Block]:
    """The CPU seconds of training of each column, as multiples of the first column of `better_than`."""
    base = options.better_than[0]
    head = [f"CPU seconds of training, as multiples of {base}", *columns]
    cells = []
    for column in columns:
        pairs = [_paired_values(group, options.columns, (column, base), "cpu_seconds") for _, group in groups]
        ratios = [mean(ours) / mean(theirs) for ours, theirs in pairs if ours and mean(theirs)]
        cells.append(f"{mean(ratios):.1f} ({len(ratios)})" if ratios else NONE)
    note = "Covers teachers (shared ones in full), labels and student; brackets count the rows of uninterrupted runs."
    return [Table.of(head, [["mean over the rows", *cells]]), Text(note)]
