"""Charts of a search: the trials in their order, what each key explains, and the value over each key."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from csrec_dist.evaluation.options import metric_title
from csrec_dist.experiments.tune.space import Range, Space, text
from csrec_dist.experiments.tune.trials import Trial
from csrec_dist.report.charts import MUTED, STUDENT, Legend, draw_picture
from csrec_dist.report.document import Picture
from csrec_dist.report.figures import bars_height, horizontal_bars
from csrec_dist.training.limits import SELECTION_METRIC

VALUE = f"validation {metric_title(SELECTION_METRIC)}"
Measured = Sequence[tuple[int, Trial]]
"""Trials with a value, and their numbers."""


def draw_figures(
    trials: Sequence[Trial], space: Space, importances: Mapping[str, float], folder: Path
) -> Iterator[Picture]:
    """The pictures, as far as there are trials for them; their PNG files are written to the folder."""
    measured = [(number, trial) for number, trial in enumerate(trials) if trial.value is not None]
    if not measured:
        return
    yield draw_picture("The trials in their order", "history", partial(_draw_history, measured), folder=folder)
    if importances:
        title = "Importance: the share of the differences between trials that each key explains (PED-ANOVA)"
        bars = partial(_draw_importance, importances)
        yield draw_picture(title, "importance", bars, folder=folder, height=bars_height(len(importances)))
    for key, dimension in space.dimensions.items():
        title = f"The trials by {key}; later ones are darker"
        yield draw_picture(title, key, partial(_draw_by_key, key, dimension, measured), folder=folder)


def _draw_history(trials: Measured, axes: Axes) -> Legend:
    complete = [(number, trial.value or 0.0) for number, trial in trials if trial.state == "complete"]
    others = [(number, trial.value) for number, trial in trials if trial.state != "complete"]
    legend: dict[str, Any] = {}
    if complete:
        numbers, values = zip(*complete, strict=True)
        (legend["complete"],) = axes.plot(numbers, values, "o", color=STUDENT)
        best = list(accumulate(values, max))
        (legend["best so far"],) = axes.step(numbers, best, where="post", color=STUDENT)
    if others:
        (legend["pruned or failed"],) = axes.plot(*zip(*others, strict=True), "x", color=MUTED)
    axes.set(xlabel="trial", ylabel=VALUE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return legend


def _draw_importance(importances: Mapping[str, float], axes: Axes) -> Legend:
    horizontal_bars(axes, list(importances), list(importances.values()), [STUDENT] * len(importances))
    return {}


def _draw_by_key(key: str, dimension: list[Any] | Range, trials: Measured, axes: Axes) -> Legend:
    """Values of lists stand side by side in their order, numbers of ranges where they are."""
    texts = [text(value) for value in dimension] if isinstance(dimension, list) else []
    for is_complete, marker in ((True, "o"), (False, "x")):
        some = [(number, trial) for number, trial in trials if (trial.state == "complete") == is_complete]
        axes.scatter(
            [texts.index(text(trial.values[key])) if texts else trial.values[key] for _, trial in some],
            [trial.value or 0.0 for _, trial in some],
            c=[number for number, _ in some],
            marker=marker,
            cmap="Blues",
            vmin=-len(trials) / 2,
            vmax=len(trials),
        )
    if isinstance(dimension, list):
        axes.set_xticks(range(len(texts)), texts)
        axes.set_xlim(-0.5, len(texts) - 0.5)
    elif dimension.log:
        axes.set_xscale("log")
    axes.set(xlabel=key, ylabel=VALUE)
    return {}
