"""A run's results on the terminal, and how figures are written: metrics, stages, and where the time went."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from csrec_dist.report.answer import Ranked, run_answer
from csrec_dist.report.document import NONE
from csrec_dist.runs.run import ResultRow, Run

TIMES = {"waited for data": "data_wait_seconds", "waited for others": "collective_wait_seconds"}
HEADER = ("busy", *TIMES)
MOST_RANKS = 4


def time_shares(run: Run, stage: str) -> list[str]:
    """A finished stage's cells under `HEADER`: shares of each rank's seconds, or their range if there are many ranks.

    Waits in the gradients' all-reduce, which overlaps with the backward pass, count as busy, as does reading rows in
    evaluation and labelling.
    """
    record = run.record(stage)
    usages = record.usage if record else []
    if not usages or any(name not in usage for usage in usages for name in TIMES.values()):
        return [NONE] * len(HEADER)
    waited = [
        [usage[name] / usage["seconds"] if usage["seconds"] else 0.0 for usage in usages] for name in TIMES.values()
    ]
    busy = [1 - sum(shares) for shares in zip(*waited, strict=True)]
    return [spread(shares) for shares in (busy, *waited)]


def spread(shares: Sequence[float]) -> str:
    """The ranks' shares; of many ranks the smallest and the largest."""
    if len(shares) <= MOST_RANKS:
        return ", ".join(f"{share:.0%}" for share in shares)
    return f"{min(shares):.0%} to {max(shares):.0%}"


def results_table(folder: Path | str) -> list[ResultRow]:
    """The run's models with their metrics: Base if it was trained, the student, each teacher, and the
    teacher ensemble if several members make the soft labels.

    Raises:
        UserError: the folder is not the folder of a run.
    """
    return Run.open(folder).results


def figure(metrics: Mapping[str, float | None], name: str) -> str:
    """A metric with four decimals, or a dash if it is missing."""
    value = metrics.get(name)
    return NONE if value is None else f"{value:.4f}"


def print_results(folder: Path | str, console: Console) -> None:
    """Print the models' Recall@10 and NDCG@10 on test, the cost of each stage, the paths of run and report,
    and whether soft labels helped, as the report says it.

    Raises:
        UserError: the folder is not the folder of a run.
    """
    run = Run.open(folder)
    console.print(_models(run))
    if run.hidden_targets:
        console.print(run.hidden_targets, highlight=False, soft_wrap=True)
    console.print(_stages(run))
    if run.missing:
        console.print(f"Missing stages: {', '.join(run.missing)}.", highlight=False)
    report = run.folder / "report" / "report.html"
    for name, path in (("run", run.folder), ("report", report)):
        if path.exists():
            console.print(f"{name:7}{path}", markup=False, highlight=False, soft_wrap=True)
    if run.results:
        answer = run_answer(run, Ranked(run))
        said = " ".join((answer.headline, *answer.details))
        console.print(f"\n{said}", markup=False, highlight=False, soft_wrap=not console.is_terminal)


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


def number(value: Any) -> str:
    """A statistic for display: separated thousands, six significant digits, a dash for none."""
    if value is None:
        return NONE
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}" if isinstance(value, float) else str(value)
