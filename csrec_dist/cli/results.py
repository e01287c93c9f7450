"""The commands that read finished runs: lists of items, reports, comparisons."""

import argparse
from pathlib import Path

from csrec_dist.cli.parsing import Commands, add
from csrec_dist.errors import UserError
from csrec_dist.threads import choose as choose_threads


def add_recommend(commands: Commands) -> None:
    """`recommend`."""
    parser = add(commands, "recommend", _recommend, "write the student's top-n lists for all users as Parquet")
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
    choose_threads()
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


def add_report(commands: Commands) -> None:
    """`report`."""
    parser = add(
        commands, "report", _report, "write the report of a run, or show the metrics of several runs side by side"
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run; several are compared")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="of several runs, also write the comparison as one HTML page"
    )


def _report(options: argparse.Namespace) -> int:
    if len(options.runs) == 1:
        if options.output:
            raise UserError("--output is for several runs; the report of one is always RUN/report/report.html.")
        report_run(options.runs[0])
        return 0
    from csrec_dist.report import runs_table, write_runs_page
    from csrec_dist.terminal import print_tables

    print_tables(runs_table(options.runs))
    if options.output:
        print(f"wrote {write_runs_page(options.runs, options.output)}")
    return 0


def report_run(folder: Path) -> None:
    """Write a run's report, and print its results."""
    from rich.console import Console

    from csrec_dist.report import Ranked, print_results, write_report

    ranked = Ranked.open(folder)
    write_report(ranked)
    print_results(ranked, Console())


def add_verify(commands: Commands) -> None:
    """`verify`."""
    parser = add(
        commands, "verify", _verify, "compare all files of a run with the checksums that they were written with"
    )
    parser.add_argument("run", type=Path, help="folder of a run, finished or not")


def _verify(options: argparse.Namespace) -> int:
    choose_threads()
    from csrec_dist.runs.verify import verify

    problems = verify(options.run)
    for problem in problems:
        print(problem)
    if problems:
        raise UserError(f"{options.run} is damaged in {len(problems)} places, which are named above.")
    print(f"{options.run} is whole.")
    return 0


def add_compare(commands: Commands) -> None:
    """`compare`."""
    parser = add(commands, "compare", _compare, "test whether two models differ on the same test rows (paired tests)")
    side = "RUN, RUN:MODEL, or several separated by commas: one model trained with several seeds"
    parser.add_argument("first", metavar="A", help=side)
    parser.add_argument("second", metavar="B", help="the same; without :MODEL it is the student")
    parser.add_argument("-n", "--top-n", type=int, nargs="+", default=[10], help="cut-offs of the metrics (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default 0)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the comparison as one HTML page")


def _compare(options: argparse.Namespace) -> int:
    from csrec_dist.report import write_comparison
    from csrec_dist.report.paired import compare_models, comparison_table
    from csrec_dist.terminal import print_tables

    comparison = compare_models(options.first, options.second, top_n=options.top_n, seed=options.seed)
    print_tables(comparison_table(comparison))
    if options.output:
        print(f"wrote {write_comparison(comparison, options.output)}")
    return 0
