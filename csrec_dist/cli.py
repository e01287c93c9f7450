"""The command line, alone or under a launcher.

Exit status: 0 done, 2 the user's mistake, 130 and 143 stopped by a signal with a checkpoint written, 1 everything else.
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
"""Columns that a comparison needs: in a narrower terminal its lines are broken rather than its figures cut."""

EPILOG = """\
the way of a run:
  raw log -> prepare -> dataset -> teach -> members -> label -> soft-label cache -> distill -> student -> evaluate
`run` walks all of it; what is done already is not done again, what was cut off goes on.

examples:
  csrec-dist fetch ml-100k
  csrec-dist run --config configs/experiments/demo.yaml
  accelerate launch --multi_gpu --num_processes 2 -m csrec_dist run --config configs/experiments/demo.yaml
  csrec-dist run --config configs/experiments/demo.yaml --set training.beta=0.75 --set name=demo_b75
  csrec-dist labels verify runs/demo/labels

docs/configuration.md lists every key of a config.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    end_with_parent()
    keep_threads = threads.choose()
    options = _parser().parse_args(arguments)
    options.keep_threads = keep_threads
    try:
        return options.command(options) or 0
    except UserError as error:
        _say(error)
        return 2
    except PermissionError as error:
        print(f"csrec-dist: {error.filename}: permission denied; ask its owner, or name another one.", file=sys.stderr)
        return 2


def _say(error: UserError) -> None:
    """Print what the user can mend: once, where all ranks meet it, by the rank that is first.

    A launcher ends the ranks as soon as one of them has ended, so that no rank can leave it to another. Where they have
    no store that outlives them to agree in, rank 0 says what all meet.
    """
    rank, is_shared = os.environ.get("RANK", "0"), isinstance(error, SharedUserError)
    if "RANK" in os.environ:
        from csrec_dist.distributed.saying import is_first

        first = is_first(str(error), os.environ)
        if first is False or (first is None and is_shared and rank != "0"):
            return
    print(f"csrec-dist: {'' if rank == '0' or is_shared else f'rank {rank}: '}{error}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
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
        "teach": "train the teacher module, each member on ranks of its own",
        "label": "write the soft-label cache, all ranks together",
        "distill": "train the student on one-hot and soft labels",
        "baseline": "train the student on one-hot labels alone, to compare",
        "evaluate": "rank the full catalog for every test target",
    }
    _add_simulate(commands)
    for stage in STAGES:
        _add_config(_add(commands, stage, _run_stages, help_of[stage])).set_defaults(stages=[stage])
    run = _add_config(_add(commands, "run", _run_stages, "all stages of the method, then the report"))
    run.set_defaults(stages=None)
    _add_recommend(commands)
    _add_report(commands)
    _add_compare(commands)
    plan = _add_config(
        _add(commands, "plan", _plan, "say what a run would do and need, before any work"), restart=False
    )
    plan.add_argument("--num-processes", type=int, default=1, help="number of processes to plan for")
    _add_study(commands)
    _add(commands, "doctor", _doctor, "check this machine: versions, devices, collectives")
    _add_labels(commands)
    return parser


def _add(commands: argparse._SubParsersAction, name: str, command: Callable, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=command)
    return parser


def _add_config(parser: argparse.ArgumentParser, restart: bool = True) -> argparse.ArgumentParser:
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file, see configs/experiments")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one key, e.g. training.beta=0.75"
    )
    if restart:
        parser.add_argument("--restart", metavar="STAGE", help="do this stage again, and all that depend on it")
    return parser


def _run_stages(options: argparse.Namespace) -> int:
    from csrec_dist.config import load_config

    with shared_errors():
        config = load_config(options.config, options.set)
    from csrec_dist.distributed import Runtime
    from csrec_dist.report import print_results, write_report
    from csrec_dist.runs.pipeline import execute

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

    parser = _add(commands, "fetch", _fetch, "download a public log, from the first place that answers")
    parser.add_argument("name", choices=sorted(SOURCES), help="the data set")
    parser.add_argument("--source", type=Path, metavar="PATH", help="take it from a local file instead")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to keep it (default: $CSREC_DATA or data)")


def _fetch(options: argparse.Namespace) -> int:
    from csrec_dist.data.download import downloads_folder, fetch

    path = fetch(options.name, options.folder or downloads_folder(), options.source, print)
    print(f"{options.name} is in {path}")
    return 0


def _add_simulate(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "simulate", _simulate, "make a log of users whose true preferences are known")
    parser.add_argument("folder", type=Path, help="new folder; its log/ is a dataset.source")
    parser.add_argument(
        "--interactions", type=int, dest="num_interactions", metavar="N", help="in all (default 100000)"
    )
    parser.add_argument("--users", type=int, dest="num_users", metavar="U", help="default 2000")
    parser.add_argument("--items", type=int, dest="num_items", metavar="V", help="default 1000")
    parser.add_argument(
        "--clusters", type=int, dest="num_clusters", metavar="C", help="default: 1 up to 1000 items, else √V"
    )
    parser.add_argument("--width", type=int, metavar="D", help="numbers in a taste (default 16)")
    parser.add_argument("--sharpness", type=float, metavar="X", help="standard deviation of the logits (default 3)")
    parser.add_argument("--drift", type=float, metavar="X", help="how far a taste moves a step, 0 to 1 (default 0.02)")
    parser.add_argument("--popularity", type=float, metavar="X", help="Zipf exponent of the exposure (default 0.5)")
    parser.add_argument("--noise-rate", type=float, metavar="X", help="share of interactions replaced (default 0)")
    parser.add_argument("--noise-kind", choices=("uniform", "popularity", "position"), help="default uniform")
    parser.add_argument("--seed", type=int, help="default 0")


def _simulate(options: argparse.Namespace) -> int:
    from csrec_dist.experiments.simulate import simulate, simulation_options

    values = {key: value for key, value in vars(options).items() if key not in ("command", "folder", "keep_threads")}
    truth = simulate(simulation_options(values), options.folder, print)
    print(f"wrote {options.folder}: {truth['num_replaced']:,} interactions are noise")
    return 0


def _add_recommend(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "recommend", _recommend, "write the student's top-n lists as Parquet")
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("-n", "--top-n", type=int, default=10, help="items in a list (default 10)")
    parser.add_argument(
        "--histories", type=Path, metavar="FILE", help='JSON lines {"user": ..., "items": [...]}; default: all users'
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: recommendations.parquet in the run")
    parser.add_argument("--exclude-seen", action="store_true", help="leave out all that the user ever had")
    parser.add_argument("--batch-size", type=int, default=256, help="histories scored at once (default 256)")


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
    parser = _add(commands, "compare", _compare, "say whether two models differ on the same test rows (paired tests)")
    side = "RUN, RUN:MODEL, or several with commas between: one model trained with several seeds"
    parser.add_argument("first", metavar="A", help=side)
    parser.add_argument("second", metavar="B", help="likewise; the model is the student unless said")
    parser.add_argument("-n", "--top-n", type=int, nargs="+", default=[10], help="cut-offs (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")


def _compare(options: argparse.Namespace) -> int:
    from csrec_dist.report.paired import compare_models, comparison_table

    comparison = compare_models(options.first, options.second, top_n=options.top_n, seed=options.seed)
    Console(width=max(Console().width, COMPARISON_WIDTH)).print(comparison_table(comparison))
    return 0


def _add_report(commands: argparse._SubParsersAction) -> None:
    parser = _add(commands, "report", _report, "write a run's report, or compare several runs")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")


def _report(options: argparse.Namespace) -> int:
    from csrec_dist.report import compare, print_results, write_report

    if len(options.runs) > 1:
        Console().print(compare(options.runs))
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
    parser = _add(commands, "study", _study, "a grid of runs (configs/studies), its tables and figures; resumable")
    parser.add_argument("study", metavar="STUDY", help="a study's YAML file, or its name in configs/studies")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, each on one thread (default 1)")
    parser.add_argument("--output", type=Path, default=Path("studies"), metavar="DIR", help="default: studies")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key in all runs, e.g. training.max_epochs=2",
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
        help="results.parquet of this study from another machine: its runs are not done again; repeatable",
    )
    parser.add_argument("--results", action="store_true", help="do no runs; write the results of those that are done")


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
    from csrec_dist.doctor import examine

    console, findings = Console(), examine()
    for finding in findings:
        mark = ("ok  ", "green") if finding.ok else ("look", "red")
        console.print(Text.assemble(mark, " ", (finding.name, "bold"), f": {finding.text}"), soft_wrap=True)
    return 0 if all(finding.ok for finding in findings) else 1


def _add_labels(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("labels", help="look at or check a soft-label cache")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    info = _add(actions, "info", _labels_info, "say what a cache holds and how many bytes it takes")
    info.add_argument("folder", type=Path, help="folder of the cache, or of its run")
    info.add_argument("--items", type=int, metavar="V", help="also say what it would take for V items")
    verify = _add(actions, "verify", _labels_verify, "check every file of a cache against its index")
    verify.add_argument("folder", type=Path, help="folder of the cache, or of its run")
    verify.add_argument("--quick", action="store_true", help="sizes only, no checksums")


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
        raise UserError(f"{options.folder} is damaged in {len(problems)} places; label again (--restart label).")
    print(f"{options.folder} is whole.")
    return 0
