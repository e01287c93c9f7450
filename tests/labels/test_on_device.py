"""Labels that a device keeps are those of the cache, for the shards that a rank reads."""

from pathlib import Path

import numpy as np
import pytest
import torch

from csrec_dist.data.dataset import Dataset
from csrec_dist.labels import LabelCache
from csrec_dist.labels.cache import DeviceLabels, on_device
from tests.helpers import label_fixtures as fixtures

CPU = torch.device("cpu")


def own_examples(dataset: Dataset, shards: list[int]) -> np.ndarray:
    firsts = dataset.splits["train"].first_examples
    return np.concatenate([np.arange(firsts[shard], firsts[shard + 1]) for shard in shards])


@pytest.mark.parametrize("shards", [[0, 1, 2, 3, 4], [1, 3], [4, 0]])
@pytest.mark.parametrize("form", ["factored", "dense"])
def test_rows_are_those_of_the_cache(dataset: Dataset, tmp_path: Path, form: str, shards: list[int]) -> None:
    fixtures.label_alone(dataset, tmp_path / "labels", 2, form)
    cache = LabelCache(tmp_path / "labels", dataset)
    labels, ids = DeviceLabels(cache, shards, CPU), own_examples(dataset, shards)
    for asked in (ids, np.random.default_rng(1).choice(ids, 50), ids[:0]):
        found, expected = labels.labels(labels.fields(torch.from_numpy(asked))), cache.rows(asked)
        name = "states" if form == "factored" else "logits"
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_examples_of_other_shards_are_refused(dataset: Dataset, cache_folder: Path) -> None:
    cache = LabelCache(cache_folder, dataset)
    labels, others = DeviceLabels(cache, [1, 3], CPU), own_examples(dataset, [0, 2, 4])
    for example in others.tolist():
        with pytest.raises(IndexError, match="not all in the shards"):
            labels.fields(torch.tensor([example]))


def test_a_cpu_and_a_cache_above_the_limit_keep_nothing(dataset: Dataset, cache_folder: Path) -> None:
    cache, shards = LabelCache(cache_folder, dataset), [0, 2]
    num_bytes = sum(field.nbytes for shard in shards for field in cache.shard_fields(shard).values())
    assert num_bytes == len(own_examples(dataset, shards)) * sum(cache.index.widths) * 4
    assert on_device(cache, shards, CPU, 1 << 40) is cache
    assert on_device(cache, shards, torch.device("cuda"), num_bytes - 1) is cache
