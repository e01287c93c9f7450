"""Figures of a study: a metric over an axis or over the groups of the test rows, and the items' popularity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import Any

import polars as pl
from matplotlib.axes import Axes

from csrec_dist.data.dataset import Dataset
from csrec_dist.evaluation.groups import ItemPopularity
from csrec_dist.evaluation.options import GROUPINGS, metric_title
from csrec_dist.experiments.study.spec import Entry, matches
from csrec_dist.experiments.study.tables import Against, in_percent, select
from csrec_dist.experiments.study.views import GROUPS, CurveOptions, FigureOptions
from csrec_dist.report.charts import (
    INK,
    MUTED,
    STUDENT,
    add_legend,
    draw_picture,
    panels_figure,
    save_picture,
    series_colours,
    themed,
)
from csrec_dist.report.document import Picture
from csrec_dist.report.figures import bars_height, horizontal_bars

BAR_SPACE = 0.8


@dataclass(frozen=True)
class Series:
    """One line of a panel: its name, and the values of all seeds at each position of the x axis."""

    name: str
    values: list[list[float]]


def draw(options: FigureOptions, axes: dict[str, list[str]], results: pl.DataFrame, folder: Path) -> Picture | None:
    """Draw means over seeds with their range, as <name>.png in `folder`; None, and no file, without results.

    Args:
        axes: the ordered values of the study's axes, for the x axis, lines and panels.
        results: the rows of all finished runs, from `collect`.
    """
    if not len(results):
        return None
    shown = select(results, options.where)
    columns = _columns(options, axes, shown)
    drawn = shown.join(_level(options, shown), on="run", how="anti")
    if not columns or not len(drawn):
        return None
    panels = _present(axes, options.panels, drawn)
    colours = series_colours([name or options.metric for name in _present(axes, options.lines, drawn)])
    legend: dict[str, Any] = {}
    with themed():
        figure = panels_figure(len(panels))
        for plot, panel in zip(figure.axes, panels, strict=True):
            rows = _of(drawn, options.panels, panel)
            names = _present(axes, options.lines, rows)
            lines = [_series(options, columns, rows, name) for name in names]
            legend |= _draw_panel(plot, options, list(columns), lines, colours)
            legend |= _draw_level(plot, options, shown, panel)
            plot.set_title(panel or "")
        add_legend(figure, legend, options.lines)
        return save_picture(figure, f"{options.metric} over {options.x}", options.name, folder)


def _columns(
    options: FigureOptions, axes: dict[str, list[str]], results: pl.DataFrame
) -> dict[str, tuple[str, str | None]]:
    """The x axis: for each tick label the column of its values, and the value of the axis x there."""
    if options.x not in GROUPS:
        names = axes[options.x] if options.metric in results.columns else []
        return {name: (options.metric, name) for name in names}
    start, end = f"{options.x}/", f"/{options.metric}"
    columns = [name for name in results.columns if name.startswith(start) and name.endswith(end)]
    return {name.removeprefix(start).removesuffix(end): (name, None) for name in columns}


def _level(options: FigureOptions, rows: pl.DataFrame) -> pl.DataFrame:
    """The runs of the cells of `level`."""
    return select(rows, options.level) if options.level else rows.clear()


def _present(axes: dict[str, list[str]], axis: str | None, rows: pl.DataFrame) -> list[str | None]:
    """The values of an axis that occur in the rows, in the study's order; one None without an axis."""
    return [value for value in axes[axis] if value in rows[axis]] if axis else [None]


def _of(rows: pl.DataFrame, axis: str | None, value: str | None) -> pl.DataFrame:
    return rows if axis is None or value is None else rows.filter(pl.col(axis) == value)


def _series(
    options: FigureOptions, columns: dict[str, tuple[str, str | None]], rows: pl.DataFrame, name: str | None
) -> Series:
    rows = _of(rows, options.lines, name)
    scale = _scale(options.metric)
    values = [
        [scale * value for value in _of(rows, options.x, at)[column].drop_nulls()] for column, at in columns.values()
    ]
    return Series(name or options.metric, values)


def ticks_of(options: FigureOptions, names: Sequence[str]) -> list[float]:
    """Positions on the x axis: rising numbers of a line at their values, everything else side by side."""
    side_by_side = [float(index) for index in range(len(names))]
    try:
        values = [float(name) for name in names]
    except ValueError:
        return side_by_side
    rises = all(one < other for one, other in pairwise(values)) and all(map(isfinite, values))
    return values if rises and options.style != "bars" else side_by_side


def _draw_panel(
    plot: Axes, options: FigureOptions, names: list[str], lines: Sequence[Series], colours: Mapping[str, str]
) -> dict[str, Any]:
    legend: dict[str, Any] = {}
    width, ticks = BAR_SPACE / len(lines), ticks_of(options, names)
    for number, line in enumerate(lines):
        shift = (number - (len(lines) - 1) / 2) * width if options.style == "bars" else 0.0
        positions = [tick + shift for tick, values in zip(ticks, line.values, strict=True) if values]
        samples = [values for values in line.values if values]
        means = [mean(values) for values in samples]
        lows = [middle - min(values) for middle, values in zip(means, samples, strict=True)]
        highs = [max(values) - middle for middle, values in zip(means, samples, strict=True)]
        if options.style == "bars":
            fill: dict[str, Any] = {"color": colours[line.name], "ecolor": INK, "label": line.name}
            legend[line.name] = plot.bar(positions, means, width, yerr=[lows, highs], capsize=2, **fill)
        else:
            style: dict[str, Any] = {"color": colours[line.name], "label": line.name}
            legend[line.name] = plot.errorbar(positions, means, yerr=[lows, highs], marker="o", capsize=3, **style)
    plot.set_xticks(ticks, names)
    plot.set_xlabel(GROUPINGS.get(options.x, options.x))
    title = options.metric if {"/", "_"} & set(options.metric) else metric_title(options.metric)
    plot.set_ylabel(f"{title} (%)" if in_percent(options.metric) else title)
    return legend


def _draw_level(plot: Axes, options: FigureOptions, shown: pl.DataFrame, panel: str | None) -> dict[str, Any]:
    """A dashed line at the mean of the panel's cells of `level`, or of all if `level` fixes the panels' axis."""
    rows = _level(options, shown)
    values = rows if options.panels in options.level else _of(rows, options.panels, panel)
    level = [_scale(options.metric) * value for value in values[options.metric].drop_nulls()]
    if not level:
        return {}
    name = ", ".join(rows[next(iter(options.level))].unique(maintain_order=True))
    return {name: plot.axhline(mean(level), color=MUTED, linestyle="--", label=name)}


def _scale(metric: str) -> int:
    return 100 if in_percent(metric) else 1


def draw_changes(lines: Sequence[Against], other: str, metric: str, folder: Path) -> Picture:
    """Draw how much each column of a table is above another in the mean over its rows, as better_than.png."""

    def bars(plot: Axes) -> dict[str, Any]:
        changes = [100 * line.change for line in lines]
        horizontal_bars(plot, [line.column for line in lines], changes, STUDENT, "{:+.1f} %")
        return {}

    title = f"Change of {metric_title(metric)} against {other}, %: mean over the rows of the table"
    return draw_picture(title, "better_than", bars, folder=folder, height=bars_height(len(lines)))


def draw_curve(options: CurveOptions, entries: Sequence[Entry], folder: Path) -> Picture | None:
    """Draw the number of training interactions of each item, the most popular first; None if no dataset exists."""
    datasets: dict[str, Path] = {}
    for entry in entries:
        dataset = entry.run.dataset_folder
        if matches(options.where, entry.cell) and (dataset / "dataset.json").exists():
            datasets.setdefault(entry.cell[options.panels] if options.panels else "", dataset)
    if not datasets:
        return None
    with themed():
        figure = panels_figure(len(datasets))
        for plot, (name, dataset) in zip(figure.axes, datasets.items(), strict=True):
            counts = sorted(ItemPopularity.read(Dataset(dataset)).counts.tolist(), reverse=True)
            plot.fill_between(range(1, len(counts) + 1), counts, color=STUDENT)
            plot.set_xlabel("item, by number of interactions")
            plot.set_ylabel("training interactions")
            plot.set_title(name)
        return save_picture(figure, "number of interactions by item", options.name, folder)
