"""The command that begins a project: `init` copies a config that comes with the package, or lists them."""

import argparse
from pathlib import Path

from csrec_dist.cli.parsing import Commands, add


def add_init(commands: Commands) -> None:
    """`init`."""
    parser = add(commands, "init", _init, "copy a config that comes with csrec_dist into this folder, to start from")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("name", nargs="?", metavar="NAME", help="name of a config, such as demo or table3_lastfm")
    asked.add_argument("--list", action="store_true", help="list the configs and what each is for")
    parser.add_argument(
        "--folder", type=Path, default=Path(), metavar="DIR", help="folder to copy it into (default: this one)"
    )


def _init(options: argparse.Namespace) -> int:
    if options.list:
        list_configs()
    else:
        copy_packaged(options.name, options.folder)
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


def copy_packaged(name: str, folder: Path) -> None:
    """Copy a config and print which files were written, and the command that takes it."""
    from csrec_dist.packaged_configs import KINDS, copy_config, find_config

    written = copy_config(name, folder)
    print(f"wrote {', '.join(map(str, written))}")
    print(f"next: {KINDS[find_config(name).kind].format(file=written[0])}")
