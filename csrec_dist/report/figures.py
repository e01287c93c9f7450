"""Charts of one run: metrics of its models, curves, groups of test rows, calibration, lists, time, memory."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from csrec_dist.evaluation.options import GROUPINGS, metric_title
from csrec_dist.report.answer import ANSWERED, METRICS, Ranked
from csrec_dist.report.charts import (
    BASE,
    ENSEMBLE,
    INK,
    MUTED,
    STUDENT,
    Legend,
    colours,
    draw_picture,
    label,
)
from csrec_dist.report.costs import TIMES
from csrec_dist.report.document import Picture
from csrec_dist.report.names import group_title, list_title
from csrec_dist.runs.run import ResultRow, Run

LOSS_PARTS = {"loss": "-", "cross_entropy": "--", "divergence": ":"}
SPLITS = ("popularity", "rating", "repeat", "leak")
"""Groupings into two, which share a chart."""
ORDERED = ("popularity_decile", "history_length")
LISTS = {"coverage@10": "{:.3f}", "gini@10": "{:.3f}", "average_popularity@10": "{:,.0f}"}
"""Figures of the recommended lists, and how they are written."""
BAR_SPACE = 0.8
LARGEST_MARK, SMALLEST_MARK = 150.0, 6.0  # square points
FEWEST_ROWS = 10
"""Bins with fewer rows are not drawn: their accuracy means nothing."""


def draw_figures(ranked: Ranked, folder: Path) -> dict[str, Picture]:
    """Write a run's charts into `folder`, those that there is data for; pictures by name."""
    return dict(_pictures(ranked, partial(draw_picture, folder=folder)))


def _pictures(ranked: Ranked, picture: Callable[..., Picture]) -> Iterator[tuple[str, Picture]]:
    run = ranked.run
    colour = colours([row.name for row in run.results])
    for metric in METRICS:
        if evaluated := [row for row in run.results if metric in row.test]:
            name, title = metric.partition("@")[0], f"{metric_title(metric)} on test, with 95 % intervals"
            draw = partial(_draw_bars, evaluated, ranked, metric, colour)
            yield metric, picture(title, name, draw, height=bars_height(len(evaluated)))
    if epochs := {name: training["epochs"] for name, training in run.trainings.items() if training.get("epochs")}:
        draw = partial(_draw_validation, run, epochs, colour)
        yield "validation", picture("Validation NDCG@10 by epoch", "validation", draw)
        yield "loss", picture("Training loss by epoch", "loss", partial(_draw_loss, run, epochs, colour))
    grouped = [row for row in run.results if row.groups]
    if grouped:
        for name in ORDERED:
            title = f"NDCG@10 by {GROUPINGS[name]}"
            yield name, picture(title, name, partial(_draw_ordered, name, grouped, colour))
        yield "groups", picture("NDCG@10 by kind of target", "groups", partial(_draw_splits, grouped, colour))
    if bins := _filled(run.results):
        draw = partial(_draw_reliability, bins, run, colour)
        yield "reliability", picture("Reliability: accuracy by confidence", "reliability", draw)
    listed = [row for row in run.results if row.lists]
    if listed:
        for metric, write in LISTS.items():
            draw, height = partial(_draw_lists, listed, metric, write, colour), bars_height(len(listed))
            name = metric.partition("@")[0]
            yield metric, picture(list_title(metric), name, draw, height=height)
    if run.stages:
        height = bars_height(len(run.stages))
        yield "time", picture("Seconds by stage", "time", partial(_draw_time, run), height=height)
        draw = partial(_draw_memory, run)
        yield "memory", picture("Peak memory by stage", "memory", draw, height=height)


def bars_height(num_bars: int) -> float:
    """Inches that horizontal bars need."""
    return 0.8 + 0.34 * num_bars


def horizontal_bars(
    axes: Axes,
    names: Sequence[str],
    values: Sequence[float],
    fills: str | Sequence[str],
    write: str = "{:.4f}",
    *,
    intervals: Sequence[tuple[float, float] | None] | None = None,
) -> None:
    """Bars from the top down, each with its value behind it and, if it has one, a whisker from `low` to `high`."""
    axes.barh(range(len(names)), values, 0.7, color=fills)
    for row, (value, interval) in enumerate(zip(values, intervals or [None] * len(values), strict=True)):
        if interval:
            axes.plot(interval, [row, row], color=INK, linewidth=1.2, solid_capstyle="butt")
        end_label(axes, row, max(0.0, value, *(interval or ())), write.format(value).replace("-", "−"))
    finish_bars(axes, names)


def end_label(axes: Axes, row: int, end: float, text: str) -> None:
    """A value behind its bar."""
    axes.annotate(text, (end, row), xytext=(5, 0), textcoords="offset points", va="center", fontsize="small")


def finish_bars(axes: Axes, names: Sequence[str]) -> None:
    """Names of horizontal bars, and room for the values behind them."""
    axes.set_yticks(range(len(names)), [label(name) for name in names])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    low, high = min(0.0, axes.dataLim.xmin), max(0.0, axes.dataLim.xmax)
    axes.set_xlim(low, high + (0.25 * (high - low) or 1))


def _draw_bars(rows: Sequence[ResultRow], ranked: Ranked, metric: str, colour: Mapping[str, str], axes: Axes) -> Legend:
    intervals = [ranked.interval(row.name, metric) for row in rows]
    fills = [colour[row.name] for row in rows]
    horizontal_bars(axes, [row.title for row in rows], [row.test[metric] for row in rows], fills, intervals=intervals)
    return {}


def line_width(name: str) -> float:
    """Lines of the student and of Base stand out from those of the members."""
    return {"student": 2.4, "base": 1.8}.get(name, 1.2)


Epochs = Mapping[str, list[dict[str, Any]]]


def _draw_validation(run: Run, epochs: Epochs, colour: Mapping[str, str], axes: Axes) -> Legend:
    """A line for each training; a mark at the epoch whose weights were kept."""
    legend = {}
    for name, points in epochs.items():
        values = [point["valid"]["ndcg@10"] for point in points]
        (legend[run.title(name)],) = axes.plot(_numbers(points), values, color=colour[name], linewidth=line_width(name))
        best = run.trainings[name]["best_epoch"]
        axes.plot([best + 1], [values[best]], "o", color=colour[name])
    _epochs(axes, "NDCG@10")
    return legend


def _draw_loss(run: Run, epochs: Epochs, colour: Mapping[str, str], axes: Axes) -> Legend:
    """The parts of each model's loss, without parts that equal the loss or are always zero."""
    legend = {}
    for name, points in epochs.items():
        for part, line in LOSS_PARTS.items():
            values = [point[part] for point in points]
            if part == "loss" or (any(values) and values != [point["loss"] for point in points]):
                title = f"{run.title(name)}: {part.replace('_', '-')}"
                mark = "." if len(values) == 1 else None
                numbers = _numbers(points)
                (legend[title],) = axes.plot(
                    numbers, values, line, color=colour[name], marker=mark, linewidth=line_width(name)
                )
    _epochs(axes, "per example")
    return legend


def _numbers(points: list[dict[str, Any]]) -> list[int]:
    return [point["epoch"] + 1 for point in points]


def _epochs(axes: Axes, ylabel: str) -> None:
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_ordered(name: str, rows: Sequence[ResultRow], colour: Mapping[str, str], axes: Axes) -> Legend:
    """A line for each model, with a gap at groups without targets."""
    legend = {}
    for row in rows:
        groups = row.groups[name]
        values = [math.nan if group[ANSWERED] is None else group[ANSWERED] for group in groups.values()]
        (legend[row.title],) = axes.plot(
            list(groups), values, marker="o", color=colour[row.name], linewidth=line_width(row.name)
        )
    hint = ", 1 the most popular" if name == "popularity_decile" else ""
    axes.set(xlabel=f"{GROUPINGS[name]}{hint}", ylabel="NDCG@10")
    axes.set_ylim(bottom=0)
    return legend


def _draw_splits(rows: Sequence[ResultRow], colour: Mapping[str, str], axes: Axes) -> Legend:
    """Bars of each model beside each other, for each group of the groupings into two that the run has."""
    groups = [(name, group) for name in SPLITS if name in rows[0].groups for group in rows[0].groups[name]]
    width, legend = BAR_SPACE / len(rows), {}
    for number, row in enumerate(rows):
        shift = (number - (len(rows) - 1) / 2) * width
        values = [row.groups[name][group][ANSWERED] or 0.0 for name, group in groups]
        centres = [position + shift for position in range(len(groups))]
        legend[row.title] = axes.bar(centres, values, width, color=colour[row.name])
    axes.set_xticks(range(len(groups)), [group_title(name, group, is_short=True) for name, group in groups])
    axes.set_ylabel("NDCG@10")
    axes.grid(visible=False, axis="x")
    return legend


Bins = Sequence[Mapping[str, Any]]


def _filled(rows: Sequence[ResultRow]) -> dict[str, Bins]:
    """Each model's bins of enough rows, by its name; models without any are left out."""
    bins = {
        row.name: [b for b in row.calibration["bins"] if b["count"] >= FEWEST_ROWS] for row in rows if row.calibration
    }
    return {name: model_bins for name, model_bins in bins.items() if model_bins}


def _draw_reliability(models: Mapping[str, Bins], run: Run, colour: Mapping[str, str], axes: Axes) -> Legend:
    """Accuracy over mean confidence of each bin; the size of a mark shows the bin's share of the rows."""
    legend = {}
    for name, bins in models.items():
        points = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
        total = sum(b["count"] for b in bins)
        sizes = [SMALLEST_MARK + (LARGEST_MARK - SMALLEST_MARK) * b["count"] / total for b in bins]
        (legend[run.title(name)],) = axes.plot(*points, color=colour[name], linewidth=1, alpha=0.7)
        axes.scatter(*points, sizes, color=colour[name])
    limit = 1.05 * max(b[name] for bins in models.values() for b in bins for name in ("confidence", "accuracy"))
    (legend["calibrated"],) = axes.plot([0, limit], [0, limit], "--", color=MUTED, linewidth=1)
    axes.set(xlabel=f"mean confidence of a bin of at least {FEWEST_ROWS} rows", ylabel="accuracy")
    return legend


def _draw_lists(rows: Sequence[ResultRow], metric: str, write: str, colour: Mapping[str, str], axes: Axes) -> Legend:
    fills = [colour[row.name] for row in rows]
    horizontal_bars(axes, [row.title for row in rows], [row.lists[metric] for row in rows], fills, write)
    return {}


def _draw_time(run: Run, axes: Axes) -> Legend:
    """Seconds of each stage, the mean over its ranks: busy, waiting for data, waiting for others."""
    stages = [row.stage for row in run.stages]
    usages = [record.usage for stage in stages if (record := run.record(stage))]
    waits = {title: [_mean(usage, key) for usage in usages] for title, key in TIMES.items()}
    whole = [_mean(usage, "seconds") for usage in usages]
    busy = [seconds - sum(waited) for seconds, *waited in zip(whole, *waits.values(), strict=True)]
    left, legend = [0.0] * len(stages), {}
    for (title, values), fill in zip({"busy": busy, **waits}.items(), (STUDENT, ENSEMBLE, BASE), strict=True):
        legend[title] = axes.barh(range(len(stages)), values, 0.7, left=left, color=fill)
        left = [start + width for start, width in zip(left, values, strict=True)]
    for row, seconds in enumerate(whole):
        end_label(axes, row, seconds, f"{seconds:,.1f}")
    finish_bars(axes, stages)
    axes.set_xlabel(f"seconds; {sum(whole):,.0f} in all")
    return legend


def _mean(usage: Sequence[Mapping[str, float]], key: str) -> float:
    return sum(rank.get(key, 0.0) for rank in usage) / max(len(usage), 1)


def _draw_memory(run: Run, axes: Axes) -> Legend:
    """The peak of the rank that needed most."""
    peaks = [max(row.peak_memory_mib, default=0.0) for row in run.stages]
    horizontal_bars(axes, [row.stage for row in run.stages], peaks, STUDENT, "{:,.0f}")
    axes.set_xlabel("MiB, of the rank that needed most")
    return {}
