"""Figures of a run's evaluation as PNG files: NDCG@10 by popularity of the target, and reliability."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from csrec_dist.report.curves import new_figure, save_figure
from csrec_dist.runfolder import RunFolder

DECILES = "NDCG@10 by decile of the target's popularity"
RELIABILITY = "Reliability: accuracy by confidence"
LARGEST_MARK, SMALLEST_MARK = 150.0, 6.0  # square points
FEWEST_ROWS = 10
"""Bins with fewer are not drawn: their accuracy says nothing."""

Bins = Sequence[Mapping[str, Any]]


def draw_diagrams(run: RunFolder, folder: Path) -> dict[str, Path]:
    """Write deciles.png and reliability.png into `folder`; the paths of those that have something to show, by title."""
    deciles = {row.title: row.groups["popularity_decile"] for row in run.results if "popularity_decile" in row.groups}
    filled = {row.title: _filled(row.calibration["bins"]) for row in run.results if row.calibration}
    bins = {title: kept for title, kept in filled.items() if kept}
    drawn = {}
    if deciles:
        drawn[DECILES] = _draw_deciles(deciles, folder / "deciles.png")
    if bins:
        drawn[RELIABILITY] = _draw_reliability(bins, folder / "reliability.png")
    return drawn


def _draw_deciles(deciles: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> Path:
    """A line for each model; a gap where no target is of the decile."""
    figure, axes = new_figure()
    for title, groups in deciles.items():
        values = [math.nan if group["ndcg@10"] is None else group["ndcg@10"] for group in groups.values()]
        axes.plot(list(groups), values, marker="o", markersize=4, label=title)
    axes.set(xlabel="decile of the items, 1 the most popular", ylabel="NDCG@10")
    axes.set_ylim(bottom=0)
    return save_figure(figure, path)


def _filled(bins: Bins) -> Bins:
    return [each for each in bins if each["count"] >= FEWEST_ROWS]


def _draw_reliability(models: Mapping[str, Bins], path: Path) -> Path:
    """Accuracy over mean confidence of each bin, marks as large as the share of rows in it."""
    figure, axes = new_figure()
    for number, (title, bins) in enumerate(models.items()):
        _draw_bins(axes, f"C{number}", title, bins)
    limit = 1.05 * max(each[name] for bins in models.values() for each in bins for name in ("confidence", "accuracy"))
    axes.plot([0, limit], [0, limit], "--", color="gray", linewidth=1, label="calibrated")
    xlabel = f"mean confidence of a bin of at least {FEWEST_ROWS} rows; a larger mark holds more rows"
    axes.set(xlabel=xlabel, ylabel="accuracy")
    return save_figure(figure, path)


def _draw_bins(axes: Axes, colour: str, title: str, bins: Bins) -> None:
    places = [each["confidence"] for each in bins], [each["accuracy"] for each in bins]
    total = sum(each["count"] for each in bins)
    sizes = [SMALLEST_MARK + (LARGEST_MARK - SMALLEST_MARK) * each["count"] / total for each in bins]
    axes.plot(*places, color=colour, linewidth=1, alpha=0.6, label=title)
    axes.scatter(*places, sizes, color=colour)
