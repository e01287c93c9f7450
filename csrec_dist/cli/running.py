"""The commands that make a run: fetch a log, do stages, plan them, and check the machine that is to do them."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from csrec_dist import distributed
from csrec_dist.cli.parsing import Commands, add, add_config
from csrec_dist.cli.results import report_run
from csrec_dist.errors import UserError, listed, shared_errors
from csrec_dist.threads import choose as choose_threads

HELP_OF_STAGES = {
    "prepare": "turn a raw log into a dataset of Parquet shards",
    "teach": "train the teachers side by side, each on its own ranks",
    "label": "write the soft-label cache, with all ranks",
    "distill": "train the student on one-hot and soft labels",
    "baseline": "train the student on one-hot labels alone, for comparison",
    "evaluate": "rank the full catalog for every validation and test row, and write the metrics",
}
APPEND_EXAMPLE = """
  csrec-dist prepare --append november.csv --dataset runs/demo/dataset --to data/demo_november"""


def add_fetch(commands: Commands) -> None:
    """`fetch`."""
    from csrec_dist.data.download import SOURCES

    parser = add(commands, "fetch", _fetch, "download a public log from the first site that answers")
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


def add_reshard(commands: Commands) -> None:
    """`reshard`."""
    parser = add(
        commands, "reshard", _reshard, "write a prepared dataset with another number of shards, for more ranks"
    )
    parser.description = (
        "Write a prepared dataset with another number of shards: what `prepare` would make of the same log with that "
        "dataset.num_shards. Runs name it with dataset.path; teachers can be kept, soft labels are made again."
    )
    parser.add_argument("dataset", type=Path, help="folder of the prepared dataset")
    parser.add_argument("folder", type=Path, help="new folder for the other one")
    parser.add_argument("--num-shards", type=int, required=True, metavar="N", help="shards of each split")


def _reshard(options: argparse.Namespace) -> int:
    from csrec_dist.data.dataset import Dataset
    from csrec_dist.data.reshard import reshard

    reshard(Dataset(options.dataset), options.folder, options.num_shards, print)
    return 0


def add_stages(commands: Commands) -> None:
    """`prepare`, `teach`, …, and `run`, which does them all."""
    for stage, text in HELP_OF_STAGES.items():
        parser = add_config(add(commands, stage, _run_stages, text), required=stage != "prepare")
        parser.set_defaults(stages=[stage])
        if stage == "prepare":
            _add_append(parser)
    text = "do all stages of the method and write the report; finished stages are skipped, interrupted ones resume"
    add_config(add(commands, "run", _run_stages, text)).set_defaults(stages=None)


def _add_append(parser: argparse.ArgumentParser) -> None:
    """What `prepare` takes instead of a config."""
    parser.epilog = f"{parser.epilog}{APPEND_EXAMPLE}"
    appending = parser.add_argument_group("instead of --config: a new dataset of an old one and a new log")
    appending.add_argument("--append", metavar="LOG", help="file, folder or fetched name of the new interactions")
    appending.add_argument("--dataset", type=Path, metavar="DIR", help="the old dataset, such as runs/demo/dataset")
    appending.add_argument("--to", type=Path, metavar="DIR", help="folder of the new dataset")
    parser.set_defaults(command=_prepare)


def _prepare(options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name in ("config", "append", "dataset", "to")}
    named = {name for name, value in given.items() if value is not None}
    if named == {"config"}:
        return _run_stages(options)
    if named == {"append", "dataset", "to"} and options.restart is None:
        return _append(options)
    raise UserError(
        "prepare takes either --config FILE, or --append LOG --dataset OLD --to NEW; given were "
        f"{listed(f'--{name}' for name in sorted(named))}."
    )


def _append(options: argparse.Namespace) -> int:
    from csrec_dist.config import parse_overrides, parse_section, set_key
    from csrec_dist.data.append import appended_options
    from csrec_dist.data.dataset import Dataset
    from csrec_dist.data.options import DatasetOptions
    from csrec_dist.data.prepare import prepare_once
    from csrec_dist.distributed.joining import processes
    from csrec_dist.training.telemetry import StageLog

    given: dict[str, Any] = {"dataset": {}}
    with shared_errors():
        for key, value in parse_overrides(options.set).items():
            if not key.startswith("dataset."):
                raise UserError(f"--set {key}: a dataset is made, so that only keys of dataset count; remove it.")
            set_key(given, key, value)
        old = Dataset(options.dataset)
        keys = appended_options(old, given["dataset"], is_table=False) | {"source": options.append}
        settings = parse_section(DatasetOptions, keys, "The dataset's options have")
    with processes() as ranks, StageLog("prepare", None, show=ranks.is_main) as log:
        ranks.on_main(lambda: prepare_once(settings, options.to, log.say, extends=old))
    return 0


def _run_stages(options: argparse.Namespace) -> int:
    from csrec_dist.config import load_config
    from csrec_dist.memory import set_allocator

    with shared_errors():
        log_dir = [] if options.log_dir is None else [f"distributed.log_dir={options.log_dir}"]
        config = load_config(options.config, [*options.set, *log_dir])
    is_alone = options.stages == ["prepare"] and os.environ.get("WORLD_SIZE", "1") == "1"
    keep_threads = not is_alone and choose_threads()
    set_allocator(gives_back=config.distributed.shares_out_model)
    with shared_errors():
        processes = _processes(
            is_alone, config.distributed.timeout_minutes, config.distributed.engine, config.training.precision
        )
    from csrec_dist.runs.pipeline import execute

    with processes:
        run = execute(config, processes, options.stages, options.restart, keep_threads=keep_threads)
        if processes.is_main and options.stages is None:
            report_run(run.folder)
    return 0


def _processes(is_alone: bool, timeout_minutes: float, engine: str, precision: str) -> "distributed.Processes":
    """The processes that the launcher started; one that prepares a dataset alone imports no torch."""
    if is_alone:
        return distributed.SoleProcess(engine, precision)
    return distributed.Runtime.start(timeout_minutes, engine, precision)


def add_plan(commands: Commands) -> None:
    """`plan`."""
    plan = add_config(
        add(commands, "plan", _plan, "estimate what a run does and needs, without running it"), restart=False
    )
    plan.add_argument("--num-processes", type=int, default=1, help="number of processes of the planned run (default 1)")


def _plan(options: argparse.Namespace) -> int:
    from rich.console import Console

    from csrec_dist.config import load_config
    from csrec_dist.plan import print_plan

    print_plan(load_config(options.config, options.set), options.num_processes, Console())
    return 0


def add_doctor(commands: Commands) -> None:
    """`doctor`."""
    parser = add(commands, "doctor", _doctor, "tell before a run what would go wrong in it, alone or under a launcher")
    parser.description = (
        "Check versions, devices, limits, the launcher, collectives and the disk; under a launcher of several ranks "
        "also whether they have the same versions and one disk, and how fast they exchange numbers. Exit status 1 on "
        "FAIL."
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="check for this config's output and engine")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of all runs (default: the config's)")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def _doctor(options: argparse.Namespace) -> int:
    from csrec_dist.config import load_config

    config = load_config(options.config, []) if options.config else None
    output = options.output or Path(config.output if config else "runs")
    engine, precision = (config.distributed.engine, config.training.precision) if config else ("ddp", "fp32")
    choose_threads()
    from csrec_dist.doctor import check_machine, check_ranks

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return _print_checks(check_machine(output, engine, precision), options.json)
    with distributed.Runtime.start(5, engine, precision) as runtime:
        return _print_checks(check_ranks(runtime, output, engine, precision), options.json, show=runtime.is_main)


def _print_checks(checks: Sequence[Any], as_json: bool, *, show: bool = True) -> int:
    """Print the checks where they are to be shown; the exit status."""
    if show and as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    elif show:
        from rich.console import Console
        from rich.text import Text

        console, colours = Console(), {"ok": "green", "WARN": "yellow", "FAIL": "red"}
        for check in checks:
            mark = (f"{check.status:4}", colours[check.status])
            console.print(Text.assemble(mark, " ", (check.name, "bold"), f": {check.text}"), soft_wrap=True)
    return int(any(check.status == "FAIL" for check in checks))
