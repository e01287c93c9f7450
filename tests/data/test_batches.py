"""The stream of batches: the rows of the order, the same at any world size, and any step to start from."""

from itertools import chain, islice
from pathlib import Path

import datasets
import polars as pl
import pytest
import torch

from csrec_dist.data.batches import Batch, Prefetcher, shard_batches, to_batch, train_stream
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.order import EpochOrder


def order_of(dataset: Dataset, epoch: int = 0) -> EpochOrder:
    return EpochOrder(dataset.splits["train"].shard_rows, 6, seed=11, epoch=epoch)


def rows_by_step(dataset: Dataset, rank: int, world_size: int, start: int = 0) -> list[list[int]]:
    stream = train_stream(dataset, order_of(dataset), start_step=start, rank=rank, world_size=world_size)
    batches = [to_batch(columns) for columns in stream]
    return [batch.rows[batch.weights > 0].tolist() for batch in batches]


def on_disk(folder: Path, split: str) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted(folder.glob(f"{split}-*.parquet"))])


def test_an_epoch_streams_every_row_of_the_files_once(small_dataset: Path) -> None:
    seen = [row for step in rows_by_step(Dataset(small_dataset), 0, 1) for row in step]
    assert sorted(seen) == sorted(on_disk(small_dataset, "train")["row"].to_list())


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_together_hold_the_same_global_batches(small_dataset: Path, world_size: int) -> None:
    dataset = Dataset(small_dataset)
    alone = rows_by_step(dataset, 0, 1)
    shares = [rows_by_step(dataset, rank, world_size) for rank in range(world_size)]
    assert [sorted(step) for step in alone] == [sorted(chain(*parts)) for parts in zip(*shares, strict=True)]


@pytest.mark.parametrize("start", [1, 3])
def test_a_stream_entered_at_a_step_goes_on_as_the_unbroken_one(small_dataset: Path, start: int) -> None:
    dataset = Dataset(small_dataset)
    assert rows_by_step(dataset, 1, 2, start) == rows_by_step(dataset, 1, 2)[start:]


def test_batches_hold_the_items_and_example_ids_of_their_rows(small_dataset: Path) -> None:
    dataset = Dataset(small_dataset)
    stored = {row["row"]: row for row in on_disk(small_dataset, "train").to_dicts()}
    ids = []
    for columns in train_stream(dataset, order_of(dataset)):
        batch = to_batch(columns)
        expected_ids, expected_targets = [], []
        for row, items, weight in zip(batch.rows.tolist(), batch.items.tolist(), batch.weights.tolist(), strict=True):
            if weight:
                assert [item for item in items if item] == stored[row]["items"]
                count = len(stored[row]["items"]) - 1
                expected_ids += range(stored[row]["example_offset"], stored[row]["example_offset"] + count)
                expected_targets += stored[row]["items"][1:]
        assert batch.example_ids.tolist() == expected_ids
        assert batch.targets[batch.targets > 0].tolist() == expected_targets
        ids += expected_ids
    assert sorted(ids) == list(range(dataset.splits["train"].num_examples))


def test_shard_batches_are_padded_to_the_window_and_keep_file_order(small_dataset: Path) -> None:
    dataset = Dataset(small_dataset)
    batches = list(shard_batches(dataset, "test", [1, 3], 4))
    expected = [pl.read_parquet(dataset.shard_file("test", shard))["row"].to_list() for shard in (1, 3)]
    assert list(chain(*(batch.rows.tolist() for batch in batches))) == list(chain(*expected))
    assert {batch.items.shape[1] for batch in batches} == {dataset.window}


def test_the_files_are_a_plain_streamable_hugging_face_dataset(small_dataset: Path) -> None:
    files = sorted(str(path) for path in small_dataset.glob("train-*.parquet"))
    plain = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    assert [row["items"] for row in plain] == on_disk(small_dataset, "train")["items"].to_list()


def test_the_prefetcher_keeps_order_and_hands_errors_over() -> None:
    def source() -> object:
        yield from range(5)
        raise OSError("disk gone")

    elements = iter(Prefetcher(source(), lambda element: element * 10))  # type: ignore[arg-type]
    assert list(islice(elements, 5)) == [0, 10, 20, 30, 40]
    with pytest.raises(OSError, match="disk gone"):
        next(elements)


def test_a_rank_without_rows_gets_one_empty_place() -> None:
    order = EpochOrder((1, 1, 1), 1, seed=0, epoch=0)
    assert [len(order.batch(step)[0]) for step in range(order.num_steps)] == [1, 1, 1]
    columns = {
        name: torch.zeros(1, dtype=torch.int64).numpy() for name in ("lengths", "rows", "users", "example_offsets")
    }
    batch = Batch(
        items=torch.zeros(1, 2, dtype=torch.int64),
        weights=torch.zeros(1),
        **{name: torch.from_numpy(value) for name, value in columns.items()},
    )
    assert batch.num_examples == 0
    assert batch.example_ids.tolist() == []
