"""Figures of a search: the trials in their order, what each key explains, and the value over each key."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import ceil
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from csrec_dist.evaluation.options import metric_title
from csrec_dist.experiments.tune.space import Range, Space, text
from csrec_dist.experiments.tune.trials import Trial
from csrec_dist.files import atomic_path
from csrec_dist.training.limits import SELECTION_METRIC

YLABEL = f"validation {metric_title(SELECTION_METRIC)}"
MOST_COLUMNS = 3
SIZE, PANEL = (8.0, 3.8), (4.0, 3.2)  # inches
DOTS_PER_INCH = 120


def draw_figures(
    trials: Sequence[Trial], space: Space, importances: Mapping[str, float], folder: Path
) -> dict[str, Path]:
    """Write history.png, importance.png and slices.png, as far as there are trials for them; their paths by title."""
    measured = [(number, trial) for number, trial in enumerate(trials) if trial.value is not None]
    if not measured:
        return {}
    drawn = {"The trials in their order": _draw_history(measured, folder / "history.png")}
    if importances:
        title = "Importance: the share of the differences between trials that each key explains (PED-ANOVA)"
        drawn[title] = _draw_importance(importances, folder / "importance.png")
    drawn["The trials by the value of each key; later trials are darker"] = _draw_slices(
        measured, space, folder / "slices.png"
    )
    return drawn


Measured = Sequence[tuple[int, Trial]]


def _split(trials: Measured) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Numbers and values of the complete trials, and of the others."""
    points = [(number, trial.value or 0.0, trial.state == "complete") for number, trial in trials]
    return [each[:2] for each in points if each[2]], [each[:2] for each in points if not each[2]]


def _draw_history(trials: Measured, path: Path) -> Path:
    figure, axes = _new(SIZE)
    complete, others = _split(trials)
    if complete:
        numbers, values = zip(*complete, strict=True)
        axes.plot(numbers, values, "o", label="complete")
        axes.step(numbers, list(accumulate(values, max)), where="post", color="C1", label="best so far")
    if others:
        axes.plot(*zip(*others, strict=True), "x", color="gray", label="pruned or failed")
    axes.set(xlabel="trial", ylabel=YLABEL)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize="small")
    return _save(figure, path)


def _draw_importance(importances: Mapping[str, float], path: Path) -> Path:
    figure, axes = _new(SIZE)
    names = list(importances)[::-1]
    axes.barh(names, [importances[name] for name in names])
    axes.set(xlabel="importance", xlim=(0, 1))
    return _save(figure, path)


def _draw_slices(trials: Measured, space: Space, path: Path) -> Path:
    """A panel for each key."""
    num_columns = min(MOST_COLUMNS, len(space.dimensions))
    num_rows = ceil(len(space.dimensions) / num_columns)
    figure = Figure(figsize=(PANEL[0] * num_columns, PANEL[1] * num_rows), layout="constrained")
    for number, (key, dimension) in enumerate(space.dimensions.items()):
        axes = figure.add_subplot(num_rows, num_columns, number + 1)
        _draw_slice(axes, key, dimension, trials)
        axes.set_ylabel("" if number % num_columns else YLABEL)
    return _save(figure, path)


def _draw_slice(axes: Axes, key: str, dimension: list[Any] | Range, trials: Measured) -> None:
    """Values of lists stand side by side in their order, numbers of ranges where they are."""
    texts = [text(value) for value in dimension] if isinstance(dimension, list) else []
    for is_complete, marker in ((True, "o"), (False, "x")):
        points = [
            (number, trial.values[key], trial.value or 0.0)
            for number, trial in trials
            if (trial.state == "complete") == is_complete
        ]
        places = [texts.index(text(value)) if texts else value for _, value, _ in points]
        values = [value for *_, value in points]
        numbers = [number for number, *_ in points]
        axes.scatter(places, values, c=numbers, marker=marker, cmap="Blues", vmin=-len(trials) / 2, vmax=len(trials))
    if isinstance(dimension, list):
        axes.set_xticks(range(len(texts)), texts)
        axes.set_xlim(-0.5, len(texts) - 0.5)
    elif dimension.log:
        axes.set_xscale("log")
    axes.set_xlabel(key)
    axes.grid(alpha=0.3)


def _new(size: tuple[float, float]) -> tuple[Figure, Axes]:
    """A figure with one plot; it needs no display."""
    figure = Figure(figsize=size, layout="constrained")
    axes: Axes = figure.subplots()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
    return path
