"""What `csrec-dist bench` prints and writes. A comparison imports no torch."""

import platform
from datetime import datetime
from pathlib import Path

from rich.console import Console

from csrec_dist import distributed
from csrec_dist.bench.result import read_result
from csrec_dist.bench.settings import Settings
from csrec_dist.bench.table import comparison_table, difference_table, result_table

TABLE_WIDTH = 140
"""Columns that the tables need: in a narrower terminal their lines are broken rather than their figures truncated."""


def print_measurement(
    settings: Settings, runtime: "distributed.Runtime", output: Path | None, *, keep_threads: bool
) -> None:
    """Do a benchmark, write its JSON file and print its table; every rank calls this."""
    from csrec_dist.bench.measuring import measure

    console = _console()
    name = f"bench_{platform.node()}_{datetime.now():%Y-%m-%d_%H%M%S}.json"
    path = Path(runtime.on_main(lambda: str(output or name)))
    result = measure(settings, runtime, path, lambda text: console.print(f"bench {text}"), keep_threads=keep_threads)
    if not runtime.is_main:
        return
    result.write(path)
    console.print(result_table(result))
    if result.one_rank_problem:
        console.print(f"One rank alone was not measured: {result.one_rank_problem}", markup=False, soft_wrap=True)
    console.print(f"wrote {path}", markup=False, soft_wrap=True)


def print_comparison(first: Path, second: Path) -> None:
    """Print what differs between two results, and their figures side by side."""
    before, after, console = read_result(first), read_result(second), _console()
    console.print(f"A is {first}, B is {second}.", markup=False, soft_wrap=True)
    console.print(difference_table(before, after) or "Both are of the same machines, versions and settings.")
    console.print(comparison_table(before, after))


def _console() -> Console:
    return Console(width=max(Console().width, TABLE_WIDTH))
