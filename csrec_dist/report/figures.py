"""Figures of a report: curves of trainings, and diagrams of metrics."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from csrec_dist.files import atomic_path
from csrec_dist.report.findings import DECILES, RELIABILITY
from csrec_dist.runs.run import Run

LOSS_PARTS = {"loss": "-", "cross_entropy": "--", "divergence": ":"}
SIZE = (8, 3.8)  # inches
DOTS_PER_INCH = 120


def draw_curves(run: Run, folder: Path) -> dict[str, Path]:
    """Write loss.png and validation.png into `folder` and return their paths by title; empty if nothing was trained."""
    epochs = {run.title(name): training["epochs"] for name, training in run.trainings.items() if "epochs" in training}
    if not epochs:
        return {}
    return {
        "Training loss and its parts": _draw(folder / "loss.png", "loss per example", _losses(epochs)),
        "Validation NDCG@10": _draw(
            folder / "validation.png",
            "NDCG@10",
            [
                (title, f"C{number}", "-", _numbers(points), [point["valid"]["ndcg@10"] for point in points])
                for number, (title, points) in enumerate(epochs.items())
            ],
        ),
    }


Curve = tuple[str, str, str, list[int], list[float]]  # label, colour, line style, epochs (from 1), values


def _losses(epochs: dict[str, list[dict]]) -> list[Curve]:
    """The parts of each model's loss, without parts that equal the loss or are always zero."""
    curves = []
    for number, (title, points) in enumerate(epochs.items()):
        for part, style in LOSS_PARTS.items():
            values = [point[part] for point in points]
            if part == "loss" or (any(values) and values != [point["loss"] for point in points]):
                curves.append((f"{title}: {part.replace('_', '-')}", f"C{number}", style, _numbers(points), values))
    return curves


def _numbers(points: list[dict]) -> list[int]:
    return [point["epoch"] + 1 for point in points]


def _draw(path: Path, ylabel: str, curves: list[Curve]) -> Path:
    figure, axes = new_figure()
    for label, colour, style, numbers, values in curves:
        axes.plot(numbers, values, style, color=colour, label=label, marker="." if len(values) == 1 else None)
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return save_figure(figure, path)


def new_figure() -> tuple[Figure, Axes]:
    """A figure with one plot, in the size of the report; it needs no display."""
    figure = Figure(figsize=SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def save_figure(figure: Figure, path: Path) -> Path:
    """Write the figure, its legend beside the plot, as PNG; the path."""
    figure.legend(fontsize="small", loc="outside right upper")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
    return path


LARGEST_MARK, SMALLEST_MARK = 150.0, 6.0  # square points
FEWEST_ROWS = 10
"""Bins with fewer rows are not drawn: their accuracy means nothing."""

Bins = Sequence[Mapping[str, Any]]


def draw_diagrams(run: Run, folder: Path) -> dict[str, Path]:
    """Write deciles.png and reliability.png into `folder`, if there is data for them; their paths by title."""
    deciles = {row.title: row.groups["popularity_decile"] for row in run.results if "popularity_decile" in row.groups}
    filled = {
        row.title: [each for each in row.calibration["bins"] if each["count"] >= FEWEST_ROWS]
        for row in run.results
        if row.calibration
    }
    bins = {title: each for title, each in filled.items() if each}
    drawn = {}
    if deciles:
        drawn[DECILES] = _draw_deciles(deciles, folder / "deciles.png")
    if bins:
        drawn[RELIABILITY] = _draw_reliability(bins, folder / "reliability.png")
    return drawn


def _draw_deciles(deciles: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> Path:
    """A line for each model, with a gap at deciles without targets."""
    figure, axes = new_figure()
    for title, groups in deciles.items():
        values = [math.nan if group["ndcg@10"] is None else group["ndcg@10"] for group in groups.values()]
        axes.plot(list(groups), values, marker="o", markersize=4, label=title)
    axes.set(xlabel="decile of the items, 1 the most popular", ylabel="NDCG@10")
    axes.set_ylim(bottom=0)
    return save_figure(figure, path)


def _draw_reliability(models: Mapping[str, Bins], path: Path) -> Path:
    """Accuracy over mean confidence of each bin; the size of a mark shows the bin's share of the rows."""
    figure, axes = new_figure()
    for number, (title, bins) in enumerate(models.items()):
        points = [each["confidence"] for each in bins], [each["accuracy"] for each in bins]
        total = sum(each["count"] for each in bins)
        sizes = [SMALLEST_MARK + (LARGEST_MARK - SMALLEST_MARK) * each["count"] / total for each in bins]
        axes.plot(*points, color=f"C{number}", linewidth=1, alpha=0.6, label=title)
        axes.scatter(*points, sizes, color=f"C{number}")
    limit = 1.05 * max(each[name] for bins in models.values() for each in bins for name in ("confidence", "accuracy"))
    axes.plot([0, limit], [0, limit], "--", color="gray", linewidth=1, label="calibrated")
    xlabel = f"mean confidence of a bin of at least {FEWEST_ROWS} rows; larger marks have more rows"
    axes.set(xlabel=xlabel, ylabel="accuracy")
    return save_figure(figure, path)
