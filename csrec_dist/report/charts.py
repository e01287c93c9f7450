"""Charts of a page: their look, their colours in light and dark, and how they are saved.

A chart is drawn once, for a light page, and saved as a PNG file and as an SVG. The SVG names the page's colours instead
of its own, so that it follows the page between light and dark. Labels are text, never mathematics.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from csrec_dist.errors import shortened
from csrec_dist.files import atomic_path
from csrec_dist.report.document import Picture

INK, MUTED, GRID = "#1f2329", "#626b76", "#d9dee4"
"""Text, axes, and lines of the grid, on a light page."""
BASE, STUDENT, ENSEMBLE = "#77808b", "#2468c8", "#c4541b"
OTHERS = ("#17936a", "#8a5fd0", "#ae8200", "#c93c86", "#0d8595", "#8a5a36", "#5b7f1b", "#5060a8")
"""Colours of the models: each has its own, in all charts of a page."""
VARIABLES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    BASE: "var(--base)",
    STUDENT: "var(--student)",
    ENSEMBLE: "var(--ensemble)",
    **{colour: f"var(--other-{number})" for number, colour in enumerate(OTHERS)},
}
THEME = {
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": "medium",
    "font.size": 11,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
}
WIDTH = 5.6
"""Of a chart, in inches: two or three of them stand side by side, or one on a phone."""
DOTS_PER_INCH = 130
LONGEST_LABEL = 32


def label(text: str) -> str:
    """A name as a chart has room for it; the tables have it in full."""
    return shortened(" ".join(text.split()), LONGEST_LABEL)


def colours(names: Iterable[str]) -> dict[str, str]:
    """The colour of each model of a run by its name there."""
    fixed, others = {"base": BASE, "student": STUDENT, "teachers": ENSEMBLE}, cycle(OTHERS)
    return {name: fixed.get(name) or next(others) for name in names}


def series_colours(names: Sequence[str]) -> dict[str, str]:
    """The colours of things in an order of their own, such as runs."""
    return dict(zip(names, cycle((STUDENT, ENSEMBLE, *OTHERS, BASE)), strict=False))


@contextmanager
def themed() -> Iterator[None]:
    """In the block matplotlib draws in the style of the page's charts, whatever the process has set."""
    with style.context(["default", THEME]):
        yield


Legend = Mapping[str, Any]
"""Matplotlib's handles by name. Not by their own labels, as matplotlib leaves out those that begin with "_"."""


def draw_picture(
    title: str,
    name: str,
    draw: Callable[[Axes], Legend],
    *,
    folder: Path | None = None,
    height: float = 3.5,
) -> Picture:
    """A picture of what `draw` puts into its one panel; its PNG is written to <folder>/<name>.png."""
    with themed():
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        add_legend(figure, draw(figure.add_subplot()))
        return save_picture(figure, title, name, folder)


def panels_figure(num_panels: int) -> Figure:
    """A figure with panels side by side. Within `themed`."""
    figure = Figure(figsize=(WIDTH if num_panels == 1 else 1 + 4 * num_panels, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for number in range(num_panels):
        figure.add_subplot(1, num_panels, number + 1)
    return figure


def add_legend(figure: Figure, legend: Legend, title: str | None = None) -> None:
    """One legend for all panels, below them."""
    names = [label(name) for name in legend]
    if names:
        columns = 2 if max(map(len, names)) > 20 else 3
        figure.legend(legend.values(), names, title=title, loc="outside lower center", ncols=columns)


def save_picture(figure: Figure, title: str, name: str, folder: Path | None = None) -> Picture:
    """A figure as a picture; in a folder, its PNG is written too. Within `themed`."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is the same for PNG and SVG, and computed once
    if folder is not None:
        with atomic_path(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # so that the same chart has the same bytes
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = _page_svg(buffer.getvalue(), prefix=re.sub(r"[^\w-]", "-", name))
    return Picture(title, f"{name}.png", svg, is_wide=figure.get_figwidth() > WIDTH)


def _page_svg(svg: str, prefix: str) -> str:
    """A stand-alone SVG as a part of a page: its ids get a prefix, colours and font are the page's, and its size too.

    Only tags are changed, never the text between them.
    """
    drawing = svg[svg.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", drawing, flags=re.DOTALL)
    return re.sub(r"<[^>]+>", lambda tag: _page_tag(tag[0], prefix), drawing).strip()


def _page_tag(tag: str, prefix: str) -> str:
    if tag.startswith("<svg"):
        return re.sub(r' (width|height)="[^"]*"', "", tag)
    tag = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{prefix}-", tag)
    tag = re.sub(r"font-family: [^;]*; ", "", tag)
    for colour, variable in VARIABLES.items():
        tag = tag.replace(f": {colour}", f": {variable}")
    return tag
