"""The work of `csrec-dist init LOG`: look, decide, write the config, and say what was seen and what comes next."""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from csrec_dist.config import parse_config, parse_overrides, set_key
from csrec_dist.data.account import say_reading
from csrec_dist.data.compressed import on_disk
from csrec_dist.errors import UserError
from csrec_dist.files import exists, write_text
from csrec_dist.init.asking import Decisions
from csrec_dist.init.looking import Look, look_at, num_exact
from csrec_dist.init.writing import config_text


def init_from_log(
    log: str,
    output: Path | None,
    overrides: Sequence[str],
    decisions: Decisions,
    say: Callable[[str], None],
    overwrite: bool = False,
) -> Path:
    """Write a config for a log (a file, a folder or a fetched name), and say what is in the log; the config's path.

    Args:
        output: the file; by default `<log>.yaml` in the current folder.
        overrides: keys of `dataset` and the name, as `section.key=value`: they are taken as they are.
        overwrite: whether a file that is there is replaced.

    Raises:
        UserError: the file is there, or is the log itself, the log cannot be read, or a key is wrong.
    """
    stem = re.split(r"[.*?\[]", Path(log).name, maxsplit=1)[0].rstrip("-_ ") or "log"
    path = output or Path(f"{stem}.yaml")
    if exists(path) and not overwrite:
        raise UserError(f"{path} is there already: give --overwrite to replace it, or --output for another file.")
    raw: dict[str, Any] = {"name": _name(path.stem), "dataset": {"source": log}}
    for key, value in parse_overrides(overrides).items():
        if key != "name" and not key.startswith("dataset."):
            raise UserError(f"--set {key}: init takes keys of dataset, and name; write others into {path} afterwards.")
        set_key(raw, key, value)
    options = parse_config(raw).dataset
    look = look_at(options, raw["dataset"], decisions)
    if exists(path) and any(path.samefile(on_disk(file) or file) for file in look.source.files):
        raise UserError(f"{path} is the log itself; give --output for another file.")
    say_seen(look, say)
    text = config_text(look, raw, shlex.quote(str(path)))
    write_text(path, text)
    say(f"wrote {path}")
    say(f"next: csrec-dist run --config {shlex.quote(str(path))}")
    return path


def say_seen(look: Look, say: Callable[[str], None]) -> None:
    """Report what is in the log: source, columns, times, users, items, duplicates, ratings and lengths."""
    say_reading(look.log, look.source, say)
    repeats = len(look.log.frame) - look.log.frame.select("user", "item").n_unique()
    exact = f", {num_exact(look.log):,} of them with the same time and rating" if look.log.has_times else ""
    seen = f"{repeats:,} interactions are with an item that the user had before{exact}"
    say(seen if repeats else "no user has an item twice")
    ratings = look.log.frame["rating"].drop_nulls().to_numpy()
    if len(ratings):
        kinds = f"{len(np.unique(ratings)):,} different ones"
        say(f"ratings: {ratings.min():g} to {ratings.max():g}, {ratings.mean():.2f} on average, {kinds}")
    else:
        say("ratings: none")
    quarter, half, most = np.quantile(look.lengths, (0.25, 0.5, 0.75))
    say(
        f"with min_interactions {look.options.min_interactions}: {look.lengths.sum():,} interactions of "
        f"{len(look.lengths):,} users and {look.num_items:,} items; a quarter of the users has up to {quarter:g}, half "
        f"up to {half:g}, three quarters up to {most:g}, the longest {look.lengths.max():,}"
    )
    train = look.train
    say(f"windows of {look.options.window}: {train.num_rows:,} to train on, with {train.num_examples:,} examples")


def _name(stem: str) -> str:
    """The name of a run after a file."""
    return re.sub(r"[^\w.\-]", "_", stem).lstrip(".-")[:100] or "run"
