"""A small search on a small log, for the tests of tuning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from csrec_dist.experiments.tune.search import Search, make_search

CONFIG = """
name: small
dataset: {{source: {log}, window: 8, min_interactions: 3, num_shards: 4}}
model: {{name: gru4rec, width: 8, hidden: 8, dropout: 0}}
training: {{max_epochs: 4, batch_size: 16, learning_rate: 0.01}}
evaluation: {{top_n: [10], calibration: false, lists: false}}
"""
SPACE = """
training.temperature: {low: 1.0, high: 60.0}
training.beta: [0.5, 1.0]
training.kl: [reverse, forward]
"""


def write_search(folder: Path, log: Path) -> list[str]:
    """Files of a search; what names them on the command line."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.yaml").write_text(CONFIG.format(log=log))
    (folder / "space.yaml").write_text(SPACE)
    return ["--config", str(folder / "small.yaml"), "--space", str(folder / "space.yaml"), "--output", str(folder)]


def small_search(folder: Path, log: Path, num_trials: int, **changes: Any) -> Search:
    """The same search as a value; `changes` are keys of the config."""
    write_search(folder, log)
    files = folder / "small.yaml", folder / "space.yaml"
    return make_search(*files, changes, num_trials=num_trials, output=folder, seed=0, prunes=True)


def after(count: int, act: Callable[[], None]) -> Callable[[], None]:
    """A function that acts when it is called for the time `count`, from 1."""
    calls = iter(range(1, count + 1))
    return lambda: act() if next(calls, None) == count else None
