"""Charts of comparisons: differences with their intervals, bars of groups of runs, and curves of their students."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from csrec_dist.evaluation.significance import Paired
from csrec_dist.report.charts import BASE, MUTED, STUDENT, Legend, label, series_colours
from csrec_dist.report.figures import horizontal_bars


def draw_differences(tests: Sequence[tuple[str, Paired]], axes: Axes) -> Legend:
    """A mark for each difference and a line over its interval; those with p < 0.05 stand out."""
    for row, (_, test) in enumerate(tests):
        colour = STUDENT if test.is_significant else BASE
        axes.plot([test.low, test.high], [row, row], color=colour, linewidth=2)
        axes.plot([test.difference], [row], "o", color=colour, markersize=6)
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.set_yticks(range(len(tests)), [label(name) for name, _ in tests])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.margins(y=0.8 / max(len(tests), 1))
    return {}


def draw_group_bars(bars: Sequence[tuple[str, str, Sequence[float]]], axes: Axes) -> Legend:
    """A bar for each (name, model, values of the seeds): their mean, and a whisker from the least to the largest."""
    means = [mean(values) for *_, values in bars]
    ranges = [(min(values), max(values)) if len(values) > 1 else None for *_, values in bars]
    fills = [BASE if model == "base" else STUDENT for _, model, _ in bars]
    horizontal_bars(axes, [name for name, *_ in bars], means, fills, intervals=ranges)
    return {}


def draw_validation(curves: Sequence[tuple[str, Sequence[float]]], axes: Axes) -> Legend:
    """A line for each run, in the colour of its group."""
    colours = series_colours(list(dict.fromkeys(name for name, _ in curves)))
    legend: dict[str, Any] = {}
    for name, values in curves:
        mark = "." if len(values) == 1 else None
        (line,) = axes.plot(range(1, len(values) + 1), values, color=colours[name], marker=mark)
        legend.setdefault(name, line)
    axes.set(xlabel="epoch", ylabel="NDCG@10")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return legend
