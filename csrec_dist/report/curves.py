"""The curves of a run's trainings as PNG files."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from csrec_dist.files import atomic_path
from csrec_dist.runfolder import RunFolder

LOSS_PARTS = {"loss": "-", "cross_entropy": "--", "divergence": ":"}
SIZE = (8, 3.8)  # inches
DOTS_PER_INCH = 120


def draw_curves(run: RunFolder, folder: Path) -> dict[str, Path]:
    """Write loss.png and validation.png into `folder`; their paths by title, empty when nothing was trained here."""
    epochs = {run.title(name): training["epochs"] for name, training in run.trainings.items() if "epochs" in training}
    if not epochs:
        return {}
    return {
        "Training loss and its parts": _draw(folder / "loss.png", "loss per example", _losses(epochs)),
        "Validation NDCG@10": _draw(folder / "validation.png", "NDCG@10", _validation(epochs)),
    }


Curve = tuple[str, str, str, list[int], list[float]]  # label, colour, line style, epochs from 1, values


def _losses(epochs: dict[str, list[dict]]) -> list[Curve]:
    """The parts of each model's loss; parts that are the loss itself, or zero throughout, are left out."""
    curves = []
    for number, (title, points) in enumerate(epochs.items()):
        for part, style in LOSS_PARTS.items():
            values = [point[part] for point in points]
            if part == "loss" or (any(values) and values != [point["loss"] for point in points]):
                curves.append((f"{title}: {part.replace('_', '-')}", f"C{number}", style, _numbers(points), values))
    return curves


def _validation(epochs: dict[str, list[dict]]) -> list[Curve]:
    return [
        (title, f"C{number}", "-", _numbers(points), [point["valid"]["ndcg@10"] for point in points])
        for number, (title, points) in enumerate(epochs.items())
    ]


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
    """A figure of the report's size with one plot, which needs no display."""
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
