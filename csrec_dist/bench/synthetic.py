"""A synthetic log of given sizes, as Parquet: random items, and as many of them as the catalog is to have."""

from pathlib import Path

import numpy as np
import polars as pl


def write_log(path: Path, num_users: int, num_items: int, length: int) -> None:
    """Write a log of `num_users`, each with `length` interactions, but for the last one, who had every item once.

    The k-th item is drawn with a probability that falls as k^-½. With `dataset.windows: last` each user is one window
    and the catalog has all items, whether they are drawn or not.
    """
    random = np.random.default_rng(0)
    uniform = random.random((num_users - 1) * length)
    drawn = np.minimum((num_items * uniform**2).astype(np.int64), num_items - 1)
    lengths = np.append(np.full(num_users - 1, length), num_items)
    log = {
        "user": np.repeat(np.arange(num_users), lengths),
        "item": np.append(drawn, random.permutation(num_items)),
        "timestamp": np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths),
    }
    pl.DataFrame(log).write_parquet(path)
