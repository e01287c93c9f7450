"""SoftRec's labels: counted by hand, softmax of log counts, read as a cache is read."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from csrec_dist.data.dataset import Dataset
from csrec_dist.labels import PopularityLabels, popularity_labels, target_counts
from csrec_dist.losses import distillation
from tests.helpers import label_fixtures as fixtures


def counts_by_hand(shards: list[list[list[int]]]) -> np.ndarray:
    counts = np.zeros(fixtures.NUM_ITEMS, np.int64)
    for row in (row for shard in shards for row in shard):
        for item in row[1:]:
            counts[item - 1] += 1
    return counts


def test_only_targets_of_training_are_counted(small_dataset: Path) -> None:
    dataset = Dataset(small_dataset)
    counts = Counter(item for row in dataset.stream("train") for item in row["items"][1:])
    assert target_counts(dataset).tolist() == [counts[item] for item in range(1, dataset.num_items + 1)]
    assert target_counts(dataset).sum() == dataset.splits["train"].num_examples


@pytest.mark.parametrize("temperature", [1.0, 3.0, 9.0])
def test_labels_are_tempered_shares_with_each_item_counted_once_more(temperature: float) -> None:
    counts = np.array([5, 0, 1, 99, 0, 2])
    labels = popularity_labels(counts, 4)
    expected = (counts + 1.0) ** (1 / temperature)
    logits = labels.tile(slice(0, 4), slice(0, 6), scale=1 / temperature).double()
    np.testing.assert_allclose(logits.softmax(1).numpy(), np.tile(expected / expected.sum(), (4, 1)), rtol=1e-6)


def test_read_by_example_id_as_a_cache_is(dataset: Dataset) -> None:
    reader = PopularityLabels(dataset)
    assert reader.num_examples == dataset.splits["train"].num_examples
    labels = reader.labels(reader.fields(torch.tensor([3, 1, 3])))
    expected = popularity_labels(counts_by_hand(fixtures.make_rows()), 3)
    assert torch.equal(labels.states, expected.states)
    assert torch.equal(labels.item_weight, expected.item_weight)
    assert labels[torch.tensor([True, False, True])].num_examples == 2
    again = reader.labels(reader.fields(torch.tensor([0])))
    assert again.item_weight is labels.item_weight


def test_the_students_loss_from_them_equals_the_dense_one(dataset: Dataset) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(fixtures.NUM_ITEMS, 4, generator=generator, dtype=torch.float64)
    targets = torch.arange(1, 8)
    labels = PopularityLabels(dataset).labels({"states": torch.ones(7, 1)})
    total, _ = distillation(states, weight, targets, labels, temperature=3.0, beta=0.5)
    share = torch.from_numpy(counts_by_hand(fixtures.make_rows()) + 1.0) ** (1 / 3)
    mixture = (share / share.sum() + torch.nn.functional.one_hot(targets - 1, fixtures.NUM_ITEMS)) / 2
    log_p = (states @ weight.T).log_softmax(1)
    expected = (log_p.exp() * (log_p - mixture.log())).sum() / 2 - log_p[torch.arange(7), targets - 1].sum() / 2
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)
