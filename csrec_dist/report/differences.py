"""The difference between two models as sentences and tables show it."""

from collections.abc import Sequence

from csrec_dist.evaluation.options import metric_title
from csrec_dist.evaluation.significance import Line, Paired
from csrec_dist.report.document import NBSP, NONE, Cell, Table


def signed(value: float, digits: str = "+.4f") -> str:
    """A number with its sign; a minus is as wide as a plus."""
    return format(value, digits).replace("-", "−")


def change_text(test: Paired) -> str:
    """The relative difference, +8.2 %; a dash where the first model's value is 0."""
    return f"{signed(100 * test.difference / test.first, '+.1f')}{NBSP}%" if test.first else NONE


def interval_text(test: Paired) -> str:
    """+0.0004 to +0.0098."""
    return f"{signed(test.low)} to {signed(test.high)}"


def difference_text(test: Paired) -> str:
    """+0.0051 (95 % interval +0.0004 to +0.0098, p = 0.03); no line breaks within the p-value."""
    p_value = f"<{NBSP}0.0001" if test.p_value < 1e-4 else f"={NBSP}{test.p_value:.2g}"
    return f"{signed(test.difference)} (95 % interval {interval_text(test)}, p{NBSP}{p_value})"


def differences_table(
    names: Sequence[str],
    rows: Sequence[tuple[Sequence[str], Line]],
    *,
    values: tuple[str, str, str] = ("A", "B", "B − A"),
    with_counts: bool = False,
    with_seeds: bool = False,
) -> Table:
    """A table of paired comparisons; differences with p < 0.05 are marked.

    Args:
        names: headers of the columns that say what is compared, but for the metric.
        rows: the cells of these columns, and the comparison.
        values: headers of both models' values and of the second's minus the first's.
        with_counts: whether a column has the number of test rows.
        with_seeds: whether a column says in how many of the seeds the second model is better.
    """
    cells: list[list[str | Cell]] = []
    for name_cells, line in rows:
        test = line.paired
        cells.append(
            [
                *name_cells,
                metric_title(line.metric),
                *[f"{test.count:,}"] * with_counts,
                f"{test.first:.4f}",
                f"{test.second:.4f}",
                Cell(signed(test.difference), test.is_significant),
                change_text(test),
                interval_text(test),
                Cell(f"{test.p_value:.2g}", test.is_significant),
                *[f"{line.num_higher} of {len(line.differences)}"] * with_seeds,
            ]
        )
    counts, seeds = ["rows"] * with_counts, ["seeds B > A"] * with_seeds
    header = (*names, "metric", *counts, *values, "%", "95 % interval", "p", *seeds)
    return Table.of(header, cells, len(names) + 1)


def metrics_table(lines: Sequence[Line]) -> Table:
    """Two models A and B, a row for each metric."""
    return differences_table(
        (), [((), line) for line in lines], with_counts=True, with_seeds=len(lines[0].differences) > 1
    )
