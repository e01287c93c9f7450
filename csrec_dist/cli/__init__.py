"""The command line, alone or under a launcher.

Exit status: 0 success, 2 the user's mistake, 130 and 143 stopped by a signal after a checkpoint, 1 everything else.

A command's parser imports nothing that its work needs: help and mistakes are answered at once, and what reads files
imports no torch. Each module of this folder adds a group of commands, whose work is imported when they are called.
"""

import argparse
import os
import sys
import threading
from collections.abc import Sequence

from csrec_dist import __version__
from csrec_dist.cli import bench, experiments, init, labels, results, running, serving
from csrec_dist.errors import StorageError, UserError, is_assumed, is_shared
from csrec_dist.processes import check_variables, end_with_parent
from csrec_dist.storage import FAILURES, no_permission, storage_error

__all__ = ["build_parser", "main"]

EPILOG = """\
a run goes through these stages:
  raw log -> prepare -> dataset -> teach -> members -> label -> soft-label cache -> distill -> student -> evaluate
`run` does all of them. Finished stages are skipped; interrupted ones resume. Give the same command again to resume.

examples:
  csrec-dist fetch ml-100k                                            download a public log
  csrec-dist init clicks.csv                                          look at a log of yours; writes clicks.yaml
  csrec-dist init demo                                                copy a config that comes with csrec_dist
  csrec-dist run --config demo.yaml                                   train and evaluate, on one process
  accelerate launch --multi_gpu --num_processes 2 -m csrec_dist run --config demo.yaml
                                                                      the same on two processes, with or without GPUs
  csrec-dist run --config demo.yaml --set training.beta=0.5 --set name=demo_b50
  csrec-dist report runs/demo runs/demo_b50                           compare the metrics of two runs
  csrec-dist recommend runs/demo -n 20                                write top-20 lists for all users

`csrec-dist COMMAND --help` explains a command; docs/configuration.md lists every key of a config.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    end_with_parent()
    threading.excepthook = _say_unless_of_storage
    options = build_parser().parse_args(arguments)
    try:
        check_variables()
        return options.command(options) or 0
    except KeyboardInterrupt:
        if (os.environ.get("RANK") or "0") == "0":
            text = "csrec-dist: interrupted. What is finished stays; give the same command again to go on."
            print(text, file=sys.stderr)
        return 130
    except UserError as error:
        _say(error)
        return 2
    except StorageError as error:
        _say(error)
        return 1
    except PermissionError as error:
        print(f"csrec-dist: {no_permission(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in FAILURES:
            raise
        _say(storage_error(error))
        return 1


def _say_unless_of_storage(failure: threading.ExceptHookArgs) -> None:
    """A thread's traceback, but of a disk's failure, which the thread that waits for it says in a sentence."""
    if not (isinstance(failure.exc_value, OSError) and failure.exc_value.errno in FAILURES):
        threading.__excepthook__(failure)


def _say(error: UserError | StorageError) -> None:
    """Print an error that the user can mend; if all ranks meet it, only the first of them prints it.

    A launcher ends the ranks as soon as one of them has ended, so no rank can leave the message to another. Where no
    store outlives the ranks, in which they could agree, rank 0 prints the errors of which they have told each other;
    one that is only thought to be met by all is printed by each rank that meets it.
    """
    rank, is_one_for_all = os.environ.get("RANK") or "0", is_shared(error)
    if "RANK" in os.environ:
        from csrec_dist.distributed.store import is_first_to_say

        first = is_first_to_say(str(error), os.environ)
        is_one_for_all = is_one_for_all and not (first is None and is_assumed(error))
        if first is False or (first is None and is_one_for_all and rank != "0"):
            return
    who = "" if rank == "0" or is_one_for_all else f"rank {rank}: "
    print(f"csrec-dist: {who}{error}", file=sys.stderr, flush=True)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="csrec-dist",
        description="Distributed training of sequential recommenders with confident soft labels (CSRec).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    running.add_fetch(commands)
    init.add_init(commands)
    experiments.add_simulate(commands)
    running.add_stages(commands)
    running.add_reshard(commands)
    results.add_recommend(commands)
    serving.add_export(commands)
    serving.add_serve(commands)
    results.add_report(commands)
    results.add_compare(commands)
    results.add_verify(commands)
    running.add_plan(commands)
    experiments.add_study(commands)
    experiments.add_tune(commands)
    running.add_doctor(commands)
    bench.add_bench(commands)
    labels.add_labels(commands)
    return parser
