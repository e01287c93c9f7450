"""Test targets that training has of the same user: in windows that overlap, a model can have learnt them by heart."""

import numpy as np
import polars as pl

from csrec_dist.data.stored import Dataset


def leaked_rows(dataset: Dataset) -> np.ndarray:
    """Whether each test row's target is a training target of the same user, in whatever window: bool [test rows].

    Row r is at place r. The training split is read once, streamed, unless `prepare` found none to leak.
    """
    leaks = np.zeros(dataset.splits["test"].num_rows, bool)
    if not dataset.statistics["leaked_test_targets"]:
        return leaks
    items = pl.col("items")
    trained = _rows(dataset, "train").select("user", target=items.list.slice(1)).explode("target")
    test = _rows(dataset, "test").select("row", "user", target=items.list.last())
    leaks[test.join(trained, on=["user", "target"], how="semi").collect(engine="streaming")["row"].to_numpy()] = True
    return leaks


def _rows(dataset: Dataset, split: str) -> pl.LazyFrame:
    return pl.scan_parquet([dataset.lane_file(split, lane) for lane in range(dataset.num_lanes)])
