"""A synthetic log has the sizes that were asked for, when it is prepared like any other."""

from pathlib import Path

import pytest

from csrec_dist.bench.settings import log_options, write_log
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare


@pytest.mark.parametrize(("num_users", "num_items", "num_ranks"), [(96, 20, 3), (128, 5000, 2)])
def test_it_has_all_items_and_a_window_of_each_user(
    tmp_path: Path, num_users: int, num_items: int, num_ranks: int
) -> None:
    write_log(tmp_path / "log.parquet", num_users, num_items, 10)
    options = DatasetOptions(source=str(tmp_path / "log.parquet"), **log_options(10, num_users // num_ranks, num_ranks))
    prepare(options, tmp_path / "dataset")
    dataset = Dataset(tmp_path / "dataset")
    train = dataset.splits["train"]
    assert (dataset.num_items, dataset.num_users, dataset.window) == (num_items, num_users, 10)
    assert [split.num_rows for split in dataset.splits.values()] == [num_users] * 3
    assert train.num_examples == num_users * (10 - 3), "the last two items are held out, and the first has no history"
    assert dataset.num_shards % num_ranks == 0
    assert len(set(train.shard_rows)) == 1
