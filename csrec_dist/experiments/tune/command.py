"""Tuning as a function and as a command; what is given is checked before torch is imported."""

from collections.abc import Sequence
from pathlib import Path

from csrec_dist.config import parse_overrides
from csrec_dist.distributed.joining import processes
from csrec_dist.errors import shared_errors
from csrec_dist.experiments.tune.results import PAGE, Tuning, results_table
from csrec_dist.experiments.tune.search import Given, make_search
from csrec_dist.terminal import print_tables


def tune(
    config: Given,
    space: Given,
    *,
    trials: int = 20,
    output: Path | str = "tunings",
    seed: int = 0,
    prune: bool = True,
) -> Tuning:
    """Search a space for the values with the best validation NDCG@10; the search, with its best config.

    Call it again to resume it, or to do more trials. Under a launcher all ranks call it.

    Args:
        config: a YAML file, or a dict with its keys. Its `name` is that of the search's folder in `output`.
        space: a YAML file or a dict: by key of the config a list of values, or {"low": …, "high": …}, perhaps with
            "log" or "step".
        trials: how many there are to be, those of earlier calls included.
        seed: of what is proposed; the trials' runs have that of the config.
        prune: whether a trial ends early when it is worse than the median of the others at the same epoch.

    Raises:
        UserError: the config or the space has mistakes, Optuna is missing, or the folder has another search.
        SystemExit: a signal stopped it, and the training at work has written a checkpoint.
    """
    search = make_search(config, space, {}, num_trials=trials, output=output, seed=seed, prunes=prune)
    options, precision = search.base.distributed, search.base.training.precision
    from csrec_dist.distributed import Runtime
    from csrec_dist.experiments.tune.running import do_trials

    with processes(options.timeout_minutes, options.engine, precision, computes=True) as runtime:
        assert isinstance(runtime, Runtime)
        do_trials(search, runtime, print)
    return Tuning(search.folder)


def tune_command(
    config: str,
    space: str,
    *,
    num_trials: int,
    output: Path,
    overrides: Sequence[str],
    seed: int,
    prunes: bool,
    keep_threads: bool,
) -> int:
    """Do the trials that are still to do, write the results and print them; the exit status.

    `keep_threads` is that of `execute`. Raises as `tune` does.
    """
    with shared_errors():
        search = make_search(
            config,
            space,
            parse_overrides(overrides),
            num_trials=num_trials,
            output=output,
            seed=seed,
            prunes=prunes,
        )
    from csrec_dist.distributed import Runtime
    from csrec_dist.experiments.tune.running import do_trials

    with shared_errors():
        options, precision = search.base.distributed, search.base.training.precision
        runtime = Runtime.start(options.timeout_minutes, options.engine, precision)
    with runtime:
        do_trials(search, runtime, print, keep_threads)
        if runtime.is_main:
            print_tables(results_table(search, Tuning(search.folder).trials))
            print(f"results: {search.folder / PAGE}")
    return 0
