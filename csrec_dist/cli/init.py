"""The command that begins with a log: `init` writes a commented config for it."""

import argparse
import signal
from pathlib import Path

from csrec_dist.cli.parsing import Commands, add

MORE_EXAMPLES = """
  csrec-dist init 'logs/part-*.parquet' -o shop.yaml --set dataset.columns.user=customer --yes"""


def add_init(commands: Commands) -> None:
    """`init`."""
    parser = add(commands, "init", _init, "look at a log and write a commented config for it, to run or to change")
    parser.epilog = f"{parser.epilog}{MORE_EXAMPLES}"
    parser.add_argument("source", metavar="LOG", help="a file or folder, as dataset.source takes it")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="(default: <log>.yaml in this folder)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of dataset that is known, e.g. dataset.columns.user=customer; repeatable",
    )
    parser.add_argument("--yes", action="store_true", help="ask nothing: decide what is uncertain, and say so")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it is there")


def _init(options: argparse.Namespace) -> int:
    from csrec_dist.init.asking import Decisions
    from csrec_dist.init.command import init_from_log

    decisions = Decisions.of_terminal(print, options.yes)
    try:
        init_from_log(options.source, options.output, options.set, decisions, print, options.overwrite)
    except KeyboardInterrupt:  # at a question
        return 128 + signal.SIGINT
    return 0
