"""Batches: the items and example ids of their rows, and reading ahead."""

from itertools import islice
from pathlib import Path

import polars as pl
import pytest
import torch

from csrec_dist.data.batches import Prefetcher, blank_batch, to_batch
from csrec_dist.data.dataset import Dataset


def test_batches_hold_the_items_and_example_ids_of_their_rows(small_dataset: Path) -> None:
    dataset = Dataset(small_dataset)
    files = sorted(small_dataset.glob("train-*.parquet"))
    stored = {row["row"]: row for row in pl.concat(pl.read_parquet(path) for path in files).to_dicts()}
    ids = []
    for batch in map(to_batch, dataset.stream("train", batch_size=6, epoch=0, seed=11)):
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


def test_an_element_in_torchs_format_is_the_same_batch(small_dataset: Path) -> None:
    stream = Dataset(small_dataset).stream("valid", batch_size=4)
    for element, formatted in zip(stream, stream.with_format("torch"), strict=True):
        batch, other = to_batch(element), to_batch(formatted)
        assert all(torch.equal(getattr(batch, name), getattr(other, name)) for name in element)
        assert all(getattr(batch, name).dtype == getattr(other, name).dtype for name in element)


def test_a_batch_without_rows_has_one_empty_place() -> None:
    batch = blank_batch(8)
    assert batch.items.shape == (1, 8)
    assert batch.num_examples == 0
    assert batch.example_ids.tolist() == []
    assert batch.weights.tolist() == [0]


def test_parts_of_a_batch_hold_its_rows_in_order(small_dataset: Path) -> None:
    batch = to_batch(next(iter(Dataset(small_dataset).stream("train", batch_size=7))))
    parts = batch.split(3)
    assert torch.equal(torch.cat([part.example_ids for part in parts]), batch.example_ids)
    assert [part.num_examples for part in batch.split(9)].count(0) == 2


def test_the_prefetcher_keeps_order_and_hands_errors_over() -> None:
    def source() -> object:
        yield from range(5)
        raise OSError("disk gone")

    elements = iter(Prefetcher(source(), lambda element: element * 10))  # type: ignore[arg-type]
    assert list(islice(elements, 5)) == [0, 10, 20, 30, 40]
    with pytest.raises(OSError, match="disk gone"):
        next(elements)
