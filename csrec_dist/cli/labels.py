"""The commands that describe and verify a soft-label cache."""

import argparse
from pathlib import Path

from csrec_dist.cli.parsing import Commands, add
from csrec_dist.errors import UserError


def add_labels(commands: Commands) -> None:
    """`labels info` and `labels verify`."""
    parser = commands.add_parser("labels", help="describe or verify a soft-label cache")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    info = add(actions, "info", _labels_info, "describe a cache: form, members, sizes, measured error")
    info.add_argument("folder", type=Path, help="folder of the cache, or of its run")
    info.add_argument("--items", type=int, metavar="V", help="compute the sizes for a catalog of V items instead")
    verify = add(actions, "verify", _labels_verify, "verify every file of a cache against its index")
    verify.add_argument("folder", type=Path, help="folder of the cache, or of its run")
    verify.add_argument("--quick", action="store_true", help="check sizes only, not checksums")


def _labels_folder(folder: Path) -> Path:
    from csrec_dist.files import exists

    return folder / "labels" if exists(folder / "labels") else folder


def _labels_info(options: argparse.Namespace) -> int:
    from csrec_dist.labels import info

    figures = info(_labels_folder(options.folder), options.items)
    measured = figures.pop("measured")
    for name, value in figures.items():
        print(f"{name:28} {value}")
    if measured:
        errors = measured.pop("errors")
        print("measured".ljust(28), ", ".join(f"{name} {value}" for name, value in measured.items()))
        for error in errors:
            print(" " * 28, ", ".join(f"{name} {value}" for name, value in error.items()))
    return 0


def _labels_verify(options: argparse.Namespace) -> int:
    from csrec_dist.labels import verify

    problems = verify(_labels_folder(options.folder), deep=not options.quick)
    for problem in problems:
        print(problem)
    if problems:
        raise UserError(
            f"{options.folder} is damaged in {len(problems)} places; write the labels again with --restart label."
        )
    print(f"{options.folder} is whole.")
    return 0
