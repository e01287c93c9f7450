"""The tables at the end of a run, for the terminal."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from csrec_dist.runfolder import ResultRow, RunFolder

NONE = "–"


def results_table(folder: Path | str) -> list[ResultRow]:
    """The run's models with their metrics: Base if it was trained, the student, each teacher, and the
    teachers together where several make the soft labels.

    Raises:
        UserError: the folder is not a run's.
    """
    return RunFolder(folder).results


def figure(metrics: Mapping[str, float | None], name: str) -> str:
    """A metric with four decimals, or a dash where there is none."""
    value = metrics.get(name)
    return NONE if value is None else f"{value:.4f}"


def print_results(folder: Path | str, console: Console) -> None:
    """Print the models' Recall@10 and NDCG@10 on test, what each stage took, and where run and report are.

    Raises:
        UserError: the folder is not a run's.
    """
    run = RunFolder(folder)
    console.print(_models(run))
    if run.hidden_targets:
        console.print(run.hidden_targets, highlight=False, soft_wrap=True)
    console.print(_stages(run))
    if run.missing:
        console.print(f"Not done yet: {', '.join(run.missing)}.", highlight=False)
    report = run.folder / "report" / "report.html"
    for name, path in (("run", run.folder), ("report", report)):
        if path.exists():
            console.print(f"{name:7}{path}", markup=False, highlight=False, soft_wrap=True)


def _models(run: RunFolder) -> Table:
    table = Table(title=f"{run.config.name}: {run.config.model.name}, full catalog, test", title_justify="left")
    for name in ("model", "Recall@10", "NDCG@10"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in run.results:
        style = "bold" if row.name == "student" else None
        table.add_row(row.title, figure(row.test, "recall@10"), figure(row.test, "ndcg@10"), style=style)
    return table


def _stages(run: RunFolder) -> Table:
    table = Table(title="stages", title_justify="left")
    for name in ("stage", "seconds", "ranks", "peak memory of each rank, MiB"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for row in run.stages:
        table.add_row(row.stage, f"{row.seconds:,.1f}", str(row.num_ranks), row.memory)
    return table
