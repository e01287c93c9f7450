"""The command that measures throughput, alone or under any launcher."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from csrec_dist import distributed
from csrec_dist.cli.parsing import Commands, add
from csrec_dist.errors import UserError, shared_errors
from csrec_dist.threads import choose as choose_threads

if TYPE_CHECKING:
    from csrec_dist.bench.settings import Settings

TABLE_WIDTH = 110
MORE_EXAMPLES = """
  accelerate launch --multi_gpu --num_processes 2 -m csrec_dist bench --config configs/experiments/demo.yaml
  csrec-dist bench --compare before.json after.json

docs/benchmarks.md says how to read the table."""


def add_bench(commands: Commands) -> None:
    """`bench`."""
    text = (
        "measure what each stage does a second on these machines, beside their limits, or compare two such measurements"
    )
    parser = add(commands, "bench", _bench, text)
    parser.epilog = f"{parser.epilog}{MORE_EXAMPLES}"
    _add_sizes(parser)
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a run's own config and log, instead of these sizes"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of either, e.g. teachers.num=4; repeatable",
    )
    parser.add_argument(
        "--steps", type=int, default=30, metavar="N", help="steps of a training that count (default 30)"
    )
    parser.add_argument(
        "--warmup", type=int, default=5, metavar="N", help="steps before them, which do not (default 5)"
    )
    parser.add_argument(
        "--no-one-rank",
        action="store_true",
        help="with several ranks: do not repeat it on one of them alone, to whose figures theirs are compared",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="JSON file to write (default: bench_<host>_<time>.json here); all other files are beside it while it "
        "runs, so its disk, which all machines must share, is measured",
    )
    parser.add_argument(
        "--compare", type=Path, nargs=2, metavar=("A", "B"), help="measure nothing; compare two results"
    )


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    sizes = parser.add_argument_group("sizes of a synthetic log, and of what is trained on it")
    for name, text in {
        "items": "number of items (default 20000)",
        "window": "items of a window (default 20)",
        "batch-size": "windows of each rank in a step (default 256)",
        "width": "width of the models (default 64)",
        "catalog-parallel": "ranks that share an item table (default 1)",
    }.items():
        sizes.add_argument(f"--{name}", type=int, metavar="N", help=text)
    for name, text in {
        "model": "student and teachers (default sasrec)",
        "method": "method (default model_level)",
        "engine": "ddp, fsdp or deepspeed (default ddp)",
        "precision": "fp32 or bf16 (default fp32)",
    }.items():
        sizes.add_argument(f"--{name}", metavar="NAME", help=text)


def _bench(options: argparse.Namespace) -> int:
    if options.compare:
        return _compare(*options.compare)
    with shared_errors():
        settings = _settings(options)
        config = settings.measured(1, Path("."))
    keep_threads = choose_threads()
    from csrec_dist.memory import keep_freed_memory

    keep_freed_memory()
    with shared_errors():
        runtime = distributed.Runtime.start(
            config.distributed.timeout_minutes, config.distributed.engine, config.training.precision
        )
    try:
        _measure(settings, runtime, options.output, keep_threads)
    finally:
        runtime.close()
    return 0


def _settings(options: argparse.Namespace) -> "Settings":
    from dataclasses import fields

    from csrec_dist.bench.settings import Settings, Sizes

    given = {each.name: getattr(options, each.name) for each in fields(Sizes)}
    given = {name: value for name, value in given.items() if value is not None}
    if options.config and given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"--config has sizes of its own, so {names} cannot be given beside it; use --set for its keys.")
    return Settings(
        options.steps, options.warmup, Sizes(**given), options.config, tuple(options.set), not options.no_one_rank
    )


def _measure(settings: "Settings", runtime: "distributed.Runtime", output: Path | None, keep_threads: bool) -> None:
    import platform
    from datetime import datetime

    from rich.console import Console

    from csrec_dist.bench.measuring import measure
    from csrec_dist.bench.table import result_table

    name = f"bench_{platform.node()}_{datetime.now():%Y-%m-%d_%H%M%S}.json"
    output = Path(runtime.on_main(lambda: str(output or name)))
    console = Console()
    result = measure(settings, runtime, output, lambda text: console.print(f"bench {text}"), keep_threads=keep_threads)
    if not runtime.is_main:
        return
    result.write(output)
    console = Console(width=max(console.width, TABLE_WIDTH))
    console.print(result_table(result))
    if result.one_rank_problem:
        console.print(f"One rank alone was not measured: {result.one_rank_problem}", markup=False, soft_wrap=True)
    console.print(f"wrote {os.fspath(output)}", markup=False, soft_wrap=True)


def _compare(first: Path, second: Path) -> int:
    from rich.console import Console

    from csrec_dist.bench.result import read_result
    from csrec_dist.bench.table import comparison_table, difference_table

    results = read_result(first), read_result(second)
    console = Console(width=max(Console().width, TABLE_WIDTH))
    console.print(f"A is {first}, B is {second}.", markup=False, soft_wrap=True)
    console.print(difference_table(*results) or "Both are of the same machines, versions and settings.")
    console.print(comparison_table(*results))
    return 0
