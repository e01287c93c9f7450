"""What `csrec-dist bench` prints and writes. Comparing two results imports no torch."""

import platform
from datetime import datetime
from pathlib import Path

from rich.console import Console

from csrec_dist import distributed
from csrec_dist.bench.result import read_result
from csrec_dist.bench.settings import Settings
from csrec_dist.bench.table import comparison_table, difference_table, result_table
from csrec_dist.terminal import print_tables


def print_measurement(
    settings: Settings, runtime: "distributed.Runtime", output: Path | None, *, keep_threads: bool
) -> None:
    """Do a benchmark, write its JSON file and print its table; every rank calls this."""
    from csrec_dist.bench.measuring import measure

    console = Console()
    name = f"bench_{platform.node()}_{datetime.now():%Y-%m-%d_%H%M%S}.json"
    path = Path(runtime.on_main(lambda: str(output or name)))
    result = measure(settings, runtime, path, lambda text: console.print(f"bench {text}"), keep_threads=keep_threads)
    if not runtime.is_main:
        return
    result.write(path)
    print_tables(result_table(result))
    if result.one_rank_problem:
        console.print(f"One rank alone was not measured: {result.one_rank_problem}", markup=False, soft_wrap=True)
    console.print(f"wrote {path}", markup=False, soft_wrap=True)


def print_comparison(first: Path, second: Path) -> None:
    """Print what differs between two results, and their figures side by side."""
    before, after, console = read_result(first), read_result(second), Console()
    console.print(f"A is {first}, B is {second}.", markup=False, soft_wrap=True)
    differences = difference_table(before, after)
    if differences is None:
        console.print("Both are of the same machines, versions and settings.")
    print_tables(*[differences] if differences else [], comparison_table(before, after))
