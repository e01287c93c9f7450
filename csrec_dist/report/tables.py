"""A run's results on the terminal: metrics, stages, and the answer of its report."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from csrec_dist.report.answer import Ranked, run_answer
from csrec_dist.report.names import figure
from csrec_dist.runs.run import ResultRow, Run


def results_table(folder: Path | str) -> list[ResultRow]:
    """The run's models with their metrics: Base if it was trained, the student, each teacher, and the
    teacher ensemble if several members make the soft labels.

    Raises:
        UserError: the folder is not the folder of a run.
    """
    return Run.open(folder).results


def print_results(run: Ranked | Path | str, console: Console) -> None:
    """Print the models' Recall@10 and NDCG@10 on test, the cost of each stage, the paths of run and report,
    and whether soft labels helped, as the report says it. A `Ranked` does its tests once for both.

    Raises:
        UserError: the folder is not the folder of a run.
    """
    ranked = run if isinstance(run, Ranked) else Ranked.open(run)
    opened = ranked.run
    console.print(_models(opened))
    if opened.hidden_targets:
        console.print(opened.hidden_targets, highlight=False, soft_wrap=True)
    console.print(_stages(opened))
    if opened.missing:
        console.print(f"Missing stages: {', '.join(opened.missing)}.", highlight=False)
    report = opened.folder / "report" / "report.html"
    for name, path in (("run", opened.folder), ("report", report)):
        if path.exists():
            console.print(f"{name:7}{path}", markup=False, highlight=False, soft_wrap=True)
    if opened.results:
        answer = run_answer(ranked)
        text = " ".join((answer.headline, *answer.details))
        console.print(f"\n{text}", markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _models(run: Run) -> Table:
    table = Table(title=f"{run.config.name}: {run.config.model.name}, full catalog, test", title_justify="left")
    for name in ("model", "Recall@10", "NDCG@10"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in run.results:
        style = "bold" if row.name == "student" else None
        table.add_row(row.title, figure(row.test, "recall@10"), figure(row.test, "ndcg@10"), style=style)
    return table


def _stages(run: Run) -> Table:
    table = Table(title="stages", title_justify="left")
    for name in ("stage", "seconds", "ranks", "peak memory of each rank, MiB"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for row in run.stages:
        table.add_row(row.stage, f"{row.seconds:,.1f}", str(row.num_ranks), row.memory)
    return table
