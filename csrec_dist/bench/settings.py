"""What a benchmark is to do: the configs of its runs, from given sizes or from a run's own config, and their log.

Nothing here imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from csrec_dist.config import Config, load_config, parse_config, parse_overrides, set_key
from csrec_dist.errors import UserError

MOST_SHARDS = 64
NEVER_MINUTES = 1e6


@dataclass(frozen=True)
class Sizes:
    """Sizes of a synthetic log and of what is trained on it; `batch_size` are the windows of one rank in a step."""

    items: int = 20_000
    window: int = 20
    batch_size: int = 256
    width: int = 64
    model: str = "sasrec"
    method: str = "model_level"
    engine: str = "ddp"
    catalog_parallel: int = 1
    precision: str = "fp32"

    def values(self, num_ranks: int) -> dict[str, Any]:
        """The config of a run with these sizes, as plain values, without its folder and log."""
        return {
            "dataset": log_options(self.window, self.batch_size, num_ranks),
            "model": {"name": self.model, "width": self.width},
            "method": self.method,
            "training": {"batch_size": self.batch_size * num_ranks, "precision": self.precision},
            "distributed": {"engine": self.engine, "catalog_parallel": self.catalog_parallel},
        }


def log_options(window: int, batch_size: int, num_ranks: int) -> dict[str, Any]:
    """`dataset` for a synthetic log: a window of each user, and about 64 shards in all, which deal each rank's
    `batch_size` windows of a step out evenly.
    """
    of_rank = max(number for number in range(1, ceil(MOST_SHARDS / num_ranks) + 1) if batch_size % number == 0)
    return {"window": window, "windows": "last", "min_interactions": 1, "num_shards": num_ranks * of_rank}


def write_log(path: Path, num_users: int, num_items: int, length: int) -> None:
    """Write a log of `num_users`, each with `length` interactions, but for the last one, who had every item once.

    The k-th item is drawn with a probability that falls as k^-½. With `dataset.windows: last` each user is one window
    and the catalog has all items, whether they are drawn or not.
    """
    rng = np.random.default_rng(0)
    uniform = rng.random((num_users - 1) * length)
    drawn = np.minimum((num_items * uniform**2).astype(np.int64), num_items - 1)
    lengths = np.append(np.full(num_users - 1, length), num_items)
    log = {
        "user": np.repeat(np.arange(num_users), lengths),
        "item": np.append(drawn, rng.permutation(num_items)),
        "timestamp": np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths),
    }
    pl.DataFrame(log).write_parquet(path)


def batch_size_of(config: Config) -> int:
    """Windows in a batch of a run that is measured; UserError where the config leaves it to the size of a log."""
    if config.training.batch_size is None:
        raise UserError("training.batch_size: null leaves it to the size of a log; give a number to a benchmark.")
    return config.training.batch_size


@dataclass(frozen=True)
class Settings:
    """A benchmark: `steps` of each training that count after `warmup` that do not, of given sizes or of a config.

    `overrides` are `--set`s. `one_rank`: whether rank 0 alone repeats it.
    """

    steps: int = 30
    warmup: int = 5
    sizes: Sizes = field(default_factory=Sizes)
    config: Path | None = None
    overrides: Sequence[str] = ()
    one_rank: bool = True

    def __post_init__(self) -> None:
        if self.warmup < 1 or self.steps < 2:
            raise UserError(
                f"--warmup {self.warmup} --steps {self.steps}: the first step of a training has no beginning to count "
                "from, and percentiles need several; give at least 1 and 2."
            )

    def measured(self, num_ranks: int, folder: Path) -> Config:
        """The config of the run that is measured, in `folder`; UserError where it names no batch size."""
        if self.config is not None:
            values = load_config(self.config, self.overrides).dump()
            config = self._bounded(values, folder, "measured", self.warmup + self.steps)
        else:
            values = self.sizes.values(num_ranks)
            values["dataset"]["source"] = str(folder / "log.parquet")
            for key, value in parse_overrides(self.overrides).items():
                set_key(values, key, value)
            config = self._bounded(values, folder, "measured")
        batch_size_of(config)  # before any work
        return config

    def warming_up(
        self, measured: Config, window: int, num_ranks: int, folder: Path, members: Sequence[Path]
    ) -> Config:
        """The config of the run before it: the same models and batches on a log of a few steps, in such windows.

        `members` are the folders of pretrained ones, which know as many items as the measured log has.
        """
        values = measured.dump()
        values["training"]["init_from"] = None  # its items are not those of the synthetic log
        values["dataset"] = log_options(window, max(batch_size_of(measured) // num_ranks, 1), num_ranks)
        values["dataset"]["source"] = str(folder / "warmup.parquet")
        # Pretrained members know the items of the measured log by other ids, which make no difference to the speed.
        values["teachers"] |= {"pretrained": [str(each) for each in members], "trust_item_order": bool(members)}
        return self._bounded(values, folder, "warmup")

    def of_one_rank(self, measured: Config, num_ranks: int, folder: Path) -> Config:
        """The config of the run on one rank with its share of the batch, and of a synthetic log; whole item tables."""
        values = measured.dump()
        values["distributed"] |= {"engine": "ddp", "deepspeed": None, "catalog_parallel": 1}
        values["training"]["batch_size"] = ceil(batch_size_of(measured) / num_ranks)
        if self.config is not None:
            values["dataset"] = {"path": measured.dataset.path or str(folder / "measured" / "dataset")}
            return self._bounded(values, folder, "one-rank", self.warmup + self.steps)
        values["dataset"] = log_options(measured.dataset.window, values["training"]["batch_size"], 1)
        values["dataset"]["source"] = str(folder / "one-rank.parquet")
        return self._bounded(values, folder, "one-rank")

    def _bounded(self, values: Mapping[str, Any], folder: Path, name: str, max_steps: int | None = None) -> Config:
        """One epoch, or `max_steps` of it, with a checkpoint at the end only."""
        limits = {
            "max_epochs": 1,
            "max_steps": max_steps,
            "checkpoint_steps": None,
            "checkpoint_minutes": NEVER_MINUTES,
        }
        training = {**values.get("training", {}), **limits}
        return parse_config({**values, "name": name, "output": str(folder), "training": training})


def settings_of(options: Mapping[str, Any]) -> Settings:
    """The settings of the command line, from its options by name; None stands for a size that is not given."""
    sizes = {size.name: options[size.name] for size in fields(Sizes) if options[size.name] is not None}
    if options["config"] and sizes:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sizes)
        raise UserError(f"--config has sizes of its own, so {names} cannot be given beside it; use --set for its keys.")
    for name, value in sizes.items():
        if isinstance(value, int) and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}.")
    counts = options["steps"], options["warmup"]
    return Settings(*counts, Sizes(**sizes), options["config"], options["set"], not options["no_one_rank"])
