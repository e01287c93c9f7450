"""The table of a benchmark, and that of two benchmarks side by side. No torch."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from csrec_dist.bench.result import Result, StageFigures
from csrec_dist.files import flatten

NONE = "–"
MOST_RANKS = 2
"""Ranks whose numbers a cell shows one by one; of more it shows the smallest and the largest."""

Numbers = Sequence[float] | float | None


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _share(value: float) -> str:
    return f"{value:.1%}"


def _digits(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".removesuffix(".")


@dataclass(frozen=True)
class Measure:
    """A line of the table: what it takes from a stage, how a number is written, and the limit beside it.

    Of a list, which has a number for each rank, two benchmarks are compared by what `whole` makes of it. Lines of
    which `whole` is None are not compared.
    """

    title: str
    of: Callable[[Result, StageFigures], Numbers]
    write: Callable[[float], str] = _digits
    limit: Callable[[Result], str] = lambda result: ""
    whole: Callable[[Iterable[float]], float] | None = statistics.fmean

    def cell(self, result: Result, stage: StageFigures) -> str:
        """What the table shows for a stage."""
        value = self.of(result, stage)
        if not isinstance(value, Sequence):
            return NONE if value is None else self.write(value)
        if len(value) <= MOST_RANKS:
            return ", ".join(map(self.write, value))
        return f"{self.write(min(value))} to {self.write(max(value))}"

    def number(self, result: Result, stage: StageFigures) -> float | None:
        """What is compared, if it is."""
        value = self.of(result, stage)
        if self.whole is None or value is None:
            return None
        return self.whole(value) if isinstance(value, Sequence) else value


def _step(name: str) -> Callable[[Result, StageFigures], Numbers]:
    return lambda result, stage: None if stage.steps is None else getattr(stage.steps, name)


def _ranks(result: Result) -> str:
    return f"{result.num_ranks} rank{'s' * (result.num_ranks > 1)}"


def _all_reduce(result: Result) -> str:
    all_reduce = result.limits.all_reduce
    if all_reduce is None:
        return ""
    return f"all-reduce {_digits(all_reduce.milliseconds)} ms, {_digits(all_reduce.gb_per_second)} GB/s"


def _disk(result: Result) -> str:
    limits = result.limits
    written, read = limits.disk_write_gb_per_second, limits.disk_read_gb_per_second
    return f"disk {_digits(written)} written, {_digits(read)} read"


MEASURES = [
    Measure("seconds in all", lambda result, stage: stage.seconds),
    Measure("examples in all", lambda result, stage: sum(stage.examples), _count),
    Measure("examples/s", lambda result, stage: stage.rate, _count),
    Measure("  of each rank", lambda result, stage: stage.examples_per_second, _count, whole=None),
    Measure("  times one rank", lambda result, stage: stage.speedup, limit=_ranks),
    Measure("step, ms: median", _step("p50")),
    Measure("  90 % are below", _step("p90")),
    Measure("  99 % are below", _step("p99")),
    Measure("  longest", _step("largest"), whole=None),
    Measure("waited for data", lambda result, stage: stage.data_wait, _share),
    Measure("waited for ranks", lambda result, stage: stage.rank_wait, _share, _all_reduce),
    Measure(
        "TFLOP/s",
        lambda result, stage: sum(stage.teraflops),
        limit=lambda result: f"product {_digits(result.peak_teraflops)}",
    ),
    Measure("  of the product's", lambda result, stage: sum(stage.teraflops) / result.peak_teraflops, _share),
    Measure("labels, GB/s", lambda result, stage: stage.labels_gb_per_second, limit=_disk),
    Measure("peak memory, MiB", lambda result, stage: stage.peak_memory_mib, _count, whole=max),
]


LIMITS: dict[str, Callable[[Result], float | None]] = {
    "product, TFLOP/s": lambda result: result.peak_teraflops,
    "disk written, GB/s": lambda result: result.limits.disk_write_gb_per_second,
    "disk read, GB/s": lambda result: result.limits.disk_read_gb_per_second,
    "all-reduce, GB/s": lambda result: getattr(result.limits.all_reduce, "gb_per_second", None),
}


def result_table(result: Result) -> Table:
    """All that was measured, a column for each stage, and what the machines do with one thing alone."""
    where = ", ".join(f"{machine.name} ({machine.processor})" for machine in result.machines)
    log = result.log
    sizes = f"{log.windows:,} windows of {log.window}, {log.examples:,} examples, {log.items:,} items"
    table = Table(title=f"{_ranks(result)} on {where}\n{sizes}", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in result.stages:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("measured alone", style="dim", no_wrap=True)
    for measure in MEASURES:
        cells = [measure.cell(result, stage) for stage in result.stages.values()]
        if set(cells) != {NONE}:
            table.add_row(measure.title, *cells, measure.limit(result))
    return table


def identity(result: Result) -> dict[str, Any]:
    """All that may explain a difference between two benchmarks, by name: machines, versions, sizes and settings."""
    machines = {str(number): machine.model_dump() for number, machine in enumerate(result.machines)}
    parts = {"machine": machines, "version": result.versions, "log": result.log.model_dump()}
    counts = {"ranks": result.num_ranks, "threads": result.threads, "warmup_steps": result.warmup_steps}
    return flatten({**parts, **counts, "product": result.limits.product}) | result.settings


def differing(first: Result, second: Result) -> list[tuple[str, str, str]]:
    """What differs between two benchmarks besides their figures: its name, and both values."""
    before, after = identity(first), identity(second)
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [(key, str(before.get(key, NONE)), str(after.get(key, NONE))) for key in keys]


def difference_table(first: Result, second: Result) -> Table | None:
    """What differs besides the figures, or None."""
    rows = differing(first, second)
    table = Table("what differs", "A", "B", title_justify="left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table if rows else None


def comparison_table(first: Result, second: Result) -> Table:
    """The figures of two benchmarks, stage by stage, and the second over the first."""
    table = Table(title=f"A {first.date}, B {second.date}", title_justify="left")
    for name in ("stage", "measure", "A", "B", "B / A"):
        table.add_column(name, justify="left" if name in ("stage", "measure") else "right")
    for name in [stage for stage in first.stages if stage in second.stages]:
        title = name
        for measure in MEASURES:
            pair = measure.number(first, first.stages[name]), measure.number(second, second.stages[name])
            if None not in pair:
                table.add_row(title, measure.title, *_compared(measure.write, *pair))  # type: ignore[arg-type]
                title = ""
        table.add_section()
    title = "alone"
    for name, limit in LIMITS.items():
        pair = limit(first), limit(second)
        if None not in pair:
            table.add_row(title, name, *_compared(_digits, *pair))  # type: ignore[arg-type]
            title = ""
    return table


def _compared(write: Callable[[float], str], first: float, second: float) -> tuple[str, str, str]:
    return write(first), write(second), _digits(second / first) if first else NONE
