"""The commands that describe and verify a soft-label cache."""

import argparse
from pathlib import Path

from csrec_dist.cli.parsing import Commands, add
from csrec_dist.errors import UserError
from csrec_dist.threads import choose as choose_threads


def add_labels(commands: Commands) -> None:
    """`labels info` and `labels verify`."""
    parser = commands.add_parser("labels", help="describe or verify a soft-label cache")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    info = add(actions, "info", _labels_info, "describe a cache: form, members, sizes, measured error", "labels")
    info.add_argument("folder", type=Path, help="folder of the cache, or of its run")
    info.add_argument("--items", type=int, metavar="V", help="compute the sizes for a catalog of V items instead")
    verify = add(actions, "verify", _labels_verify, "verify every file of a cache against its index", "labels")
    verify.add_argument("folder", type=Path, help="folder of the cache, or of its run")
    verify.add_argument("--quick", action="store_true", help="check sizes only, not checksums")
    verify.add_argument(
        "--recompute",
        type=float,
        metavar="SHARE",
        help="compute this share of a run's label shards, at least one, again from its teachers, and compare",
    )


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
    if options.recompute is not None and not problems:
        problems = _recomputed(options.folder, options.recompute)
    for problem in problems:
        print(problem)
    if problems:
        raise UserError(
            f"{options.folder} is damaged in {len(problems)} places; write the labels again with --restart label."
        )
    print(f"{options.folder} is whole.")
    return 0


def _recomputed(folder: Path, share: float) -> list[str]:
    """What is wrong with a sample of a run's labels, computed again; UserError where its teachers are others now."""
    if not 0 < share <= 1:
        raise UserError(f"--recompute takes a share above 0 and up to 1, not {share:g}.")
    choose_threads()
    import torch

    from csrec_dist import models
    from csrec_dist.labels import read_index
    from csrec_dist.labels.recompute import recompute
    from csrec_dist.runs.inputs import weights_fingerprint
    from csrec_dist.runs.run import Run

    run, members = Run.open(folder), read_index(folder / "labels").members
    folders = [run.folder / "teachers" / member.name for member in members]
    for member, teacher in zip(members, folders, strict=True):
        if weights_fingerprint(teacher) != member.fingerprint:
            raise UserError(f"{teacher} has other weights than the teacher that labelled; label again.")
    teachers = dict(enumerate(map(models.load, folders)))
    names, problems = recompute(run.folder / "labels", run.dataset, teachers, share, device=torch.device("cpu"))
    print(f"computed again from {len(teachers)} teachers: {', '.join(names)}")
    return problems
