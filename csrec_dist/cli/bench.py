"""The command that measures throughput, alone or under any launcher."""

import argparse
from pathlib import Path

from csrec_dist import distributed
from csrec_dist.cli.parsing import Commands, add
from csrec_dist.errors import shared_errors
from csrec_dist.threads import choose as choose_threads

MORE_EXAMPLES = """
  accelerate launch --multi_gpu --num_processes 2 -m csrec_dist bench --config demo.yaml
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
        from csrec_dist.bench.command import print_comparison

        print_comparison(*options.compare)
        return 0
    from csrec_dist.bench.settings import settings_of

    with shared_errors():
        settings = settings_of(vars(options))
        config = settings.measured(1, Path())
    keep_threads = choose_threads()
    from csrec_dist.memory import set_allocator

    set_allocator(gives_back=config.distributed.shares_out_model)
    with shared_errors():
        runtime = distributed.Runtime.start(
            config.distributed.timeout_minutes, config.distributed.engine, config.training.precision
        )
    from csrec_dist.bench.command import print_measurement

    with runtime:
        print_measurement(settings, runtime, options.output, keep_threads=keep_threads)
    return 0
