"""What all commands' parsers have in common: help with an example to copy, a config, overrides."""

import argparse
from collections.abc import Callable

EXAMPLES = {
    "prepare": "csrec-dist prepare --config demo.yaml --set dataset.source=clicks.csv",
    "reshard": "csrec-dist reshard runs/demo/dataset data/demo_256 --num-shards 256",
    "teach": "csrec-dist teach --config demo.yaml --set teachers.num=4 --set name=four_teachers",
    "label": "csrec-dist label --config demo.yaml",
    "distill": "csrec-dist distill --config demo.yaml --restart distill",
    "baseline": "csrec-dist baseline --config demo.yaml",
    "evaluate": "csrec-dist evaluate --config demo.yaml --set evaluation.top_n=[1,10,50]",
    "run": "csrec-dist run --config demo.yaml --set training.beta=0.5 --set name=demo_b50",
    "fetch": "csrec-dist fetch ml-100k",
    "init": "csrec-dist init clicks.csv",
    "simulate": "csrec-dist simulate worlds/small --interactions 100000 --users 2000 --items 1000 --noise-rate 0.2",
    "recommend": "csrec-dist recommend runs/demo -n 20 --exclude-seen --output lists.parquet",
    "export": "csrec-dist export runs/demo --format onnx --output exports/demo",
    "serve": "csrec-dist serve runs/demo --port 8000",
    "report": "csrec-dist report runs/demo runs/demo_b50",
    "compare": "csrec-dist compare runs/base_s0,runs/base_s1 runs/csrec_m_s0,runs/csrec_m_s1 -n 5 10",
    "plan": "csrec-dist plan --config demo.yaml --num-processes 8",
    "study": "csrec-dist study table3_lastfm --jobs 2 --only student=gru4rec --set dataset.source=PATH_OF_LOG",
    "tune": "csrec-dist tune --config demo.yaml --space demo_space.yaml --trials 12",
    "doctor": "csrec-dist doctor",
    "bench": "csrec-dist bench --items 100000 --model gru4rec --output bench_100k.json",
    "verify": "csrec-dist verify runs/demo",
    "labels info": "csrec-dist labels info runs/demo --items 1000000",
    "labels verify": "csrec-dist labels verify runs/demo",
}
"""One line to copy for the help of each command."""

Commands = argparse._SubParsersAction
"""What `add_subparsers` returns: the commands of a parser."""


def add(commands: Commands, name: str, command: Callable, text: str, group: str = "") -> argparse.ArgumentParser:
    """Add a command, perhaps of a group such as `labels`: its help, an example, and the function that does its work."""
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example:\n  {EXAMPLES[f'{group} {name}'.strip()]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def add_bad_rows(parser: argparse.ArgumentParser) -> None:
    """Add what is done with rows of a log that cannot be read: an override like any other."""
    parser.add_argument(
        "--on-bad-rows",
        dest="set",
        action="append",
        metavar="error|skip",
        type="dataset.on_bad_rows={}".format,
        help="rows of the log that cannot be read are an error (default), or left out and counted; as "
        "--set dataset.on_bad_rows=...",
    )


def add_config(parser: argparse.ArgumentParser, restart: bool = True, required: bool = True) -> argparse.ArgumentParser:
    """Add the config of a run, its overrides, and unless it runs nothing the stage to restart."""
    parser.add_argument("--config", required=required, metavar="FILE", help="the run's YAML file (see `init`)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key, e.g. training.beta=0.75; repeatable",
    )
    if restart:
        add_bad_rows(parser)
        parser.add_argument("--restart", metavar="STAGE", help="do this stage and all that depend on it again")
        parser.add_argument("--log-dir", metavar="DIR", help="write what each rank says to DIR/rank-00003.log, too")
    return parser
