"""The command line, alone or under a launcher.

Exit status: 0 success, 2 the user's mistake, 130 and 143 stopped by a signal after a checkpoint, 1 everything else.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from csrec_dist import __version__, threads
from csrec_dist.errors import SharedUserError, UserError, shared_errors
from csrec_dist.processes import end_with_parent

STAGES = ("prepare", "teach", "label", "distill", "baseline", "evaluate")

COMPARISON_WIDTH = 110
"""Columns that a comparison needs: in a narrower terminal its lines are broken rather than its figures truncated."""

EPILOG = """\
a run goes through these stages:
  raw log -> prepare -> dataset -> teach -> members -> label -> soft-label cache -> distill -> student -> evaluate
`run` does all of them. Finished stages are skipped; interrupted ones resume. Give the same command again to resume.

examples:
  csrec-dist fetch ml-100k                                            download a public log
  csrec-dist run --config configs/experiments/demo.yaml               train and evaluate, on one process
  accelerate launch --multi_gpu --num_processes 2 -m csrec_dist run --config configs/experiments/demo.yaml
                                                                      the same on two processes, with or without GPUs
  csrec-dist run --config configs/experiments/demo.yaml --set training.beta=0.75 --set name=demo_b75
  csrec-dist report runs/demo runs/demo_b75                           compare the metrics of two runs
  csrec-dist recommend runs/demo -n 20                                write top-20 lists for all users

`csrec-dist COMMAND --help` explains a command; docs/configuration.md lists every key of a config.
"""

EXAMPLES = {
    "prepare": "csrec-dist prepare --config configs/experiments/demo.yaml --set dataset.source=clicks.csv",
    "teach": "csrec-dist teach --config configs/experiments/demo.yaml --set teachers.num=4 --set name=four_teachers",
    "label": "csrec-dist label --config configs/experiments/demo.yaml",
    "distill": "csrec-dist distill --config configs/experiments/demo.yaml --restart distill",
    "baseline": "csrec-dist baseline --config configs/experiments/demo.yaml",
    "evaluate": "csrec-dist evaluate --config configs/experiments/demo.yaml --set evaluation.top_n=[1,10,50]",
    "run": "csrec-dist run --config configs/experiments/demo.yaml --set training.beta=0.75 --set name=demo_b75",
    "fetch": "csrec-dist fetch ml-100k",
    "simulate": "csrec-dist simulate worlds/small --interactions 100000 --users 2000 --items 1000 --noise-rate 0.2",
    "recommend": "csrec-dist recommend runs/demo -n 20 --exclude-seen --output lists.parquet",
    "report": "csrec-dist report runs/demo runs/demo_b75",
    "compare": "csrec-dist compare runs/base_s0,runs/base_s1 runs/csrec_m_s0,runs/csrec_m_s1 -n 5 10",
    "plan": "csrec-dist plan --config configs/experiments/demo.yaml --num-processes 8",
    "study": "csrec-dist study table3_lastfm --jobs 2 --only student=gru4rec --set dataset.source=PATH_OF_LOG",
    "doctor": "csrec-dist doctor",
    "info": "csrec-dist labels info runs/demo --items 1000000",
    "verify": "csrec-dist labels verify runs/demo",
}
"""One line to copy for the help of each command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    end_with_parent()
    keep_threads = threads.choose()
    options = build_parser().parse_args(arguments)
    options.keep_threads = keep_threads
    try:
        return options.command(options) or 0
    except UserError as error:
        _say(error)
        return 2
    except PermissionError as error:
        print(f"csrec-dist: {error.filename}: permission denied; ask its owner, or give another path.", file=sys.stderr)
        return 2


def _say(error: UserError) -> None:
    """Print an error that the user can mend; if all ranks meet it, only the first of them prints it.

    A launcher ends the ranks as soon as one of them has ended, so no rank can leave the message to another. Where no
    store outlives the ranks, in which they could agree, rank 0 prints the errors that all of them meet.
    """
    rank, is_shared = os.environ.get("RANK", "0"), isinstance(error, SharedUserError)
    if "RANK" in os.environ:
        from csrec_dist.distributed.saying import is_first

        first = is_first(str(error), os.environ)
        if first is False or (first is None and is_shared and rank != "0"):
            return
    print(f"csrec-dist: {'' if rank == '0' or is_shared else f'rank {rank}: '}{error}", file=sys.stderr, flush=True)


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
    _add_fetch(commands)
    help_of = {
        "prepare": "turn a raw log into a dataset of Parquet shards",
        "teach": "train the teachers side by side, each on its own ranks",
        "label": "write the soft-label cache, with all ranks",
        "distill": "train the student on one-hot and soft labels",
        "baseline": "train the student on one-hot labels alone, for comparison",
        "evaluate": "rank the full catalog for every validation and test row, and write the metrics",
    }
    _add_simulate(commands)
    for stage in STAGES:
        _add_config(_add(commands, stage, _run_stages, help_of[stage])).set_defaults(stages=[stage])
    run = _add_config(
        _add(
            commands,
            "run",
            _run_stages,
            "do all stages of the method and write the report; finished stages are skipped, interrupted ones resume",
        )
    )
    run.set_defaults(stages=None)
    _add_recommend(commands)
    _add_report(commands)
    _add_compare(commands)
    plan = _add_config(
        _add(commands, "plan", _plan, "estimate what a run does and needs, without running it"), restart=False
    )
    plan.add_argument("--num-processes", type=int, default=1, help="number of processes of the planned run (default 1)")
    _add_study(commands)
    _add(commands, "doctor", _doctor, "check this machine: versions, devices, launcher, collectives")
    _add_labels(commands)
    return parser


def _add(commands: argparse._SubParsersAction, name: str, command: Callable, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example:\n  {EXAMPLES[name]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def _add_config(parser: argparse.ArgumentParser, restart: bool = True) -> argparse.ArgumentParser:
    parser.add_argument("--config", required=True, metavar="FILE", help="the run's YAML file; see configs/experiments")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key, e.g. training.beta=0.75; repeatable",
    )
    if restart:
        parser.add_argument("--restart", metavar="STAGE", help="do this stage and all that depend on it again")
    return parser


def _run_stages(options: argparse.Namespace) -> int:
    from csrec_dist.config import load_config

    with shared_errors():
        config = load_config(options.config, options.set)
    from csrec_dist.distributed import Runtime
    from csrec_dist.memory import keep_freed_memory
    from csrec_dist.report import print_results, write_report
    from csrec_dist.runs.pipeline import execute

    keep_freed_memory()
    with shared_errors():
        distributed = config.distributed
        runtime = Runtime.start(distributed.timeout_minutes, distributed.engine, config.training.precision)
    try:
        run = execute(config, runtime, options.stages, options.restart, keep_threads=options.keep_threads)
        if runtime.is_main and options.stages is None:
            write_report(run.folder)
            print_results(run.folder, Console())
    finally:
        runtime.close()
    return 0


def _add_fetch(commands: argparse._SubParsersAction) -> None:
    from csrec_dist.data.download import SOURCES

    parser = _add(commands, "fetch", _fetch, "download a public log from the first site that answers")
    parser.add_argument("name", choices=sorted(SOURCES), help="name of the data set")
    parser.add_argument(
        "--source", type=Path, metavar="PATH", help="read it from a local file instead of downloading it"
    )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="folder to put it into (default: $CSREC_DATA or data)"
    )


def _fetch(options: argparse.Namespace) -> int:
    from csrec_dist.data.download import downloads_folder, fetch

    path = fetch(options.name, options.folder or downloads_folder(), options.source, print)
    print(f"{options.name} is in {path}")
    return 0


def _add_simulate(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "simulate", _simulate, "generate a log of users whose true preferences are known")
    parser.add_argument("folder", type=Path, help="new folder; use its log/ as dataset.source")
    parser.add_argument(
        "--interactions",
        type=int,
        dest="num_interactions",
        metavar="N",
        help="total number of interactions (default 100000)",
    )
    parser.add_argument("--users", type=int, dest="num_users", metavar="U", help="number of users (default 2000)")
    parser.add_argument("--items", type=int, dest="num_items", metavar="V", help="number of items (default 1000)")
    parser.add_argument(
        "--clusters",
        type=int,
        dest="num_clusters",
        metavar="C",
        help="number of item clusters (default: 1 up to 1000 items, else √V)",
    )
    parser.add_argument("--width", type=int, metavar="D", help="dimensions of a user's taste (default 16)")
    parser.add_argument("--sharpness", type=float, metavar="X", help="standard deviation of the logits (default 3)")
    parser.add_argument(
        "--drift", type=float, metavar="X", help="how far a taste moves per interaction, 0 to 1 (default 0.02)"
    )
    parser.add_argument(
        "--popularity", type=float, metavar="X", help="Zipf exponent of the items' exposure (default 0.5)"
    )
    parser.add_argument(
        "--noise-rate", type=float, metavar="X", help="share of interactions that are noise (default 0)"
    )
    parser.add_argument("--noise-kind", choices=("uniform", "popularity", "position"), help="(default uniform)")
    parser.add_argument("--seed", type=int, help="seed of everything (default 0)")


def _simulate(options: argparse.Namespace) -> int:
    from csrec_dist.experiments.simulate import simulate, simulation_options

    values = {key: value for key, value in vars(options).items() if key not in ("command", "folder", "keep_threads")}
    truth = simulate(simulation_options(values), options.folder, print)
    print(f"wrote {options.folder}; {truth['num_replaced']:,} of its interactions are noise")
    return 0


def _add_recommend(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "recommend", _recommend, "write the student's top-n lists for all users as Parquet")
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("-n", "--top-n", type=int, default=10, help="number of items per list (default 10)")
    parser.add_argument(
        "--histories", type=Path, metavar="FILE", help='JSON lines {"user": ..., "items": [...]} (default: all users)'
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="(default: recommendations.parquet in the run's folder)"
    )
    parser.add_argument("--exclude-seen", action="store_true", help="leave out all items the user ever had")
    parser.add_argument("--batch-size", type=int, default=256, help="histories to score at once (default 256)")


def _recommend(options: argparse.Namespace) -> int:
    from csrec_dist.recommend import recommend

    path = recommend(
        options.run,
        n=options.top_n,
        output=options.output,
        histories=options.histories,
        exclude_seen=options.exclude_seen,
        batch_size=options.batch_size,
    )
    print(f"wrote {path}")
    return 0


def _add_compare(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "compare", _compare, "test whether two models differ on the same test rows (paired tests)")
    side = "RUN, RUN:MODEL, or several separated by commas: one model trained with several seeds"
    parser.add_argument("first", metavar="A", help=side)
    parser.add_argument("second", metavar="B", help="the same; without :MODEL it is the student")
    parser.add_argument("-n", "--top-n", type=int, nargs="+", default=[10], help="cut-offs of the metrics (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default 0)")


def _compare(options: argparse.Namespace) -> int:
    from csrec_dist.report.paired import compare_models, comparison_table

    comparison = compare_models(options.first, options.second, top_n=options.top_n, seed=options.seed)
    Console(width=max(Console().width, COMPARISON_WIDTH)).print(comparison_table(comparison))
    return 0


def _add_report(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands, "report", _report, "write the report of a run, or show the metrics of several runs side by side"
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run; several are compared")


def _report(options: argparse.Namespace) -> int:
    from csrec_dist.report import print_results, runs_table, write_report

    if len(options.runs) > 1:
        Console().print(runs_table(options.runs))
        return 0
    write_report(options.runs[0])
    print_results(options.runs[0], Console())
    return 0


def _plan(options: argparse.Namespace) -> int:
    from csrec_dist.config import load_config
    from csrec_dist.plan import print_plan

    print_plan(load_config(options.config, options.set), options.num_processes, Console())
    return 0


def _add_study(commands: argparse._SubParsersAction) -> None:
    parser = _add(
        commands,
        "study",
        _study,
        "do a grid of runs (configs/studies) and draw its tables and figures; give the command again to resume",
    )
    parser.add_argument("study", metavar="STUDY", help="a study's YAML file, or its name in configs/studies")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="number of runs at a time, each on one thread (default 1)"
    )
    parser.add_argument("--output", type=Path, default=Path("studies"), metavar="DIR", help="(default: studies)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key in all runs, e.g. training.max_epochs=2; repeatable",
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="AXIS=VALUE", help="do only the runs with this value; repeatable"
    )
    parser.add_argument(
        "--with",
        dest="elsewhere",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="results.parquet of this study from another machine, whose runs are not repeated here; repeatable",
    )
    parser.add_argument("--results", action="store_true", help="do no runs; write the results of the finished ones")


def _study(options: argparse.Namespace) -> int:
    from csrec_dist.experiments.study import study_command

    return study_command(
        options.study,
        output=options.output,
        jobs=options.jobs,
        overrides=options.set,
        only=options.only,
        results_only=options.results,
        elsewhere=options.elsewhere,
        keep_threads=options.keep_threads,
    )


def _doctor(options: argparse.Namespace) -> int:
    from csrec_dist.doctor import check_machine

    console, checks = Console(), check_machine()
    for check in checks:
        mark = ("ok  ", "green") if check.ok else ("FAIL", "red")
        console.print(Text.assemble(mark, " ", (check.name, "bold"), f": {check.text}"), soft_wrap=True)
    return 0 if all(check.ok for check in checks) else 1


def _add_labels(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("labels", help="describe or verify a soft-label cache")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    info = _add(actions, "info", _labels_info, "describe a cache: form, members, sizes, measured error")
    info.add_argument("folder", type=Path, help="folder of the cache, or of its run")
    info.add_argument("--items", type=int, metavar="V", help="compute the sizes for a catalog of V items instead")
    verify = _add(actions, "verify", _labels_verify, "verify every file of a cache against its index")
    verify.add_argument("folder", type=Path, help="folder of the cache, or of its run")
    verify.add_argument("--quick", action="store_true", help="check sizes only, not checksums")


def _labels_folder(folder: Path) -> Path:
    return folder / "labels" if (folder / "labels").is_dir() else folder


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
