"""The commands of research: simulated logs, studies, which are grids of runs, and tuning."""

import argparse
from pathlib import Path

from csrec_dist.cli.parsing import Commands, add, add_config
from csrec_dist.errors import UserError
from csrec_dist.threads import choose as choose_threads


def add_simulate(commands: Commands) -> None:
    """`simulate`."""
    parser = add(commands, "simulate", _simulate, "generate a log of users whose true preferences are known")
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
        "--choice",
        choices=("draw", "argmax"),
        help="the item preferred next: drawn from P(j | s), or the most probable new one (default draw)",
    )
    parser.add_argument(
        "--noise-rate", type=float, metavar="X", help="share of interactions that are noise (default 0)"
    )
    parser.add_argument("--noise-kind", choices=("uniform", "popularity", "position"), help="(default uniform)")
    parser.add_argument("--seed", type=int, help="seed of everything (default 0)")


def _simulate(options: argparse.Namespace) -> int:
    from csrec_dist.experiments.simulate import simulate, simulation_options

    values = {key: value for key, value in vars(options).items() if key not in ("command", "folder")}
    truth = simulate(simulation_options(values), options.folder, print)
    print(f"wrote {options.folder}; {truth['num_replaced']:,} of its interactions are noise")
    return 0


def add_study(commands: Commands) -> None:
    """`study`."""
    parser = add(
        commands,
        "study",
        _study,
        "do a grid of runs and draw its tables and figures; give the command again to resume",
    )
    parser.add_argument("study", metavar="STUDY", help="a study's YAML file, or a name of `csrec-dist init --list`")
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
    if options.jobs < 1:
        raise UserError(f"--jobs is the number of runs at a time: at least 1, not {options.jobs}.")
    keep_threads = choose_threads()
    from csrec_dist.experiments.study import study_command

    return study_command(
        options.study,
        output=options.output,
        jobs=options.jobs,
        overrides=options.set,
        only=options.only,
        results_only=options.results,
        elsewhere=options.elsewhere,
        keep_threads=keep_threads,
    )


def add_tune(commands: Commands) -> None:
    """`tune`."""
    text = "search values of the config on validation, with Optuna; give the command again to resume"
    parser = add_config(add(commands, "tune", _tune, text), restart=False)
    parser.add_argument(
        "--space",
        required=True,
        metavar="FILE",
        help="YAML: by key of the config a list of values, or {low: ..., high: ...} with log or step (docs/tuning.md)",
    )
    parser.add_argument(
        "--trials", type=int, default=20, metavar="N", help="number of trials, earlier ones included (default 20)"
    )
    parser.add_argument("--output", type=Path, default=Path("tunings"), metavar="DIR", help="(default: tunings)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the proposals (default 0)")
    parser.add_argument("--no-pruning", action="store_true", help="train every trial to its end")


def _tune(options: argparse.Namespace) -> int:
    keep_threads = choose_threads()
    from csrec_dist.experiments.tune import tune_command

    return tune_command(
        options.config,
        options.space,
        num_trials=options.trials,
        output=options.output,
        overrides=options.set,
        seed=options.seed,
        prunes=not options.no_pruning,
        keep_threads=keep_threads,
    )
