"""The command that a project begins with: `init` writes a commented config for a log, or copies one of the package."""

import argparse
import signal
from pathlib import Path

from csrec_dist.cli.parsing import Commands, add, add_bad_rows
from csrec_dist.errors import UserError

MORE_EXAMPLES = """
  csrec-dist init 'logs/part-*.parquet' -o shop.yaml --set dataset.columns.user=customer --yes
  csrec-dist init --list
  csrec-dist init demo"""


def add_init(commands: Commands) -> None:
    """`init`."""
    text = "look at a log and write a commented config for it; or copy one that comes with csrec_dist"
    parser = add(commands, "init", _init, text)
    parser.epilog = f"{parser.epilog}{MORE_EXAMPLES}"
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        "source", nargs="?", metavar="LOG", help="a file or folder, as dataset.source takes it; or a name of --list"
    )
    asked.add_argument("--list", action="store_true", help="list the configs that come with csrec_dist")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="(default: <log>.yaml in this folder)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of dataset that is known, e.g. dataset.columns.user=customer; repeatable",
    )
    add_bad_rows(parser)
    parser.add_argument("--yes", action="store_true", help="ask nothing: decide what is uncertain, and say so")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it is there")


def _init(options: argparse.Namespace) -> int:
    from csrec_dist.packaged_configs import is_packaged

    if options.list:
        list_configs()
    elif is_packaged(options.source):
        if options.output or options.set or options.yes or options.overwrite:
            raise UserError(f"{options.source} is copied into this folder as it is; options are for logs.")
        copy_packaged(options.source)
    else:
        from csrec_dist.init.asking import Decisions
        from csrec_dist.init.command import init_from_log

        decisions = Decisions.of_terminal(print, options.yes)
        try:
            init_from_log(options.source, options.output, options.set, decisions, print, options.overwrite)
        except KeyboardInterrupt:  # at a question
            return 128 + signal.SIGINT
    return 0


def list_configs() -> None:
    """Print the names of all configs that come with the package, by what they are for."""
    from csrec_dist.packaged_configs import KINDS, packaged_configs

    configs = list(packaged_configs())
    width = max(len(config.name) for config in configs)
    for kind, command in KINDS.items():
        print(f"{kind}: {command.format(file='FILE')}")
        for config in configs:
            if config.kind == kind:
                print(f"  {config.name:{width}}  {config.about}".rstrip())


def copy_packaged(name: str) -> None:
    """Copy a config and print which files were written, and the command that takes it."""
    from csrec_dist.packaged_configs import KINDS, copy_config, find_config

    written = copy_config(name, Path())
    print(f"wrote {', '.join(map(str, written))}")
    print(f"next: {KINDS[find_config(name).kind].format(file=written[0])}")
