"""Top-k labels as they are written and read, against whole rows of logits in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.labels import DenseLabels, LabelCache, TopKLabels, read_index
from csrec_dist.labels.top_k import ItemBlock, TopKRows
from csrec_dist.losses import distillation
from tests.helpers import label_fixtures as fixtures

KEEP, T = 4, 2.0


def targets_of(shards: list[list[list[int]]]) -> np.ndarray:
    return np.array([item for shard in shards for row in shard for item in row[1:]])


def oracle_kept(logits: np.ndarray, target: int, keep: int) -> list[int]:
    """The items with the largest logits, the lower one of equals first, the last of them giving way to the target."""
    kept = sorted(range(1, len(logits) + 1), key=lambda item: (-logits[item - 1], item))[:keep]
    return kept if target in kept else [*kept[:-1], target]


def read_all(folder: Path) -> TopKLabels:
    cache = LabelCache(folder)
    labels = cache.rows(torch.arange(cache.num_examples))
    assert isinstance(labels, TopKLabels)
    return labels


@pytest.mark.parametrize("keep", [1, KEEP, fixtures.NUM_ITEMS + 9])
def test_written_labels_are_the_best_items_and_the_targets(dataset: Dataset, tmp_path: Path, keep: int) -> None:
    fixtures.label_alone(dataset, tmp_path, 3, "topk", keep=keep, temperature=T)
    labels, shards = read_all(tmp_path), fixtures.make_rows()
    logits, targets = fixtures.oracle_logits(shards, 3), targets_of(shards)
    keep = min(keep, fixtures.NUM_ITEMS)
    assert labels.values.shape == (len(targets), keep)
    for place, (row, target) in enumerate(zip(logits, targets, strict=True)):
        kept = labels.items[place].tolist()
        assert kept == oracle_kept(row, int(target), keep)
        np.testing.assert_allclose(labels.values[place], row[np.array(kept) - 1], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(labels.logsumexp[place], np.log(np.exp(row / T).sum()), rtol=1e-5)


def test_equal_logits_keep_the_lower_item_first_in_any_cut() -> None:
    g = torch.Generator().manual_seed(0)
    states = torch.randint(-1, 2, (40, 3), generator=g).float()
    weight = torch.randint(-1, 2, (30, 3), generator=g).float()
    targets = torch.randint(1, 31, (40,), generator=g)
    blocks = [ItemBlock(first, weight[first : first + 7], None) for first in range(0, 30, 7)]
    found = TopKRows(blocks, CatalogSlice.whole(30), 6, 1.0)(states, targets)
    for row, target, items in zip((states @ weight.T).numpy(), targets.tolist(), found["items"].tolist(), strict=True):
        assert items == oracle_kept(row, target, 6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_rows_still_sum_to_one(dataset: Dataset, tmp_path: Path, dtype: str) -> None:
    """The log-sum-exp is that of the row with its kept logits as they are stored."""
    for keep in (KEEP, fixtures.NUM_ITEMS):
        fixtures.label_alone(dataset, tmp_path / f"{keep}", 2, "topk", keep=keep, temperature=T, dtype=dtype)
    whole = read_all(tmp_path / f"{fixtures.NUM_ITEMS}")
    sums = (whole.values / T - whole.logsumexp.unsqueeze(1)).exp().sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-5)
    some, logits = read_all(tmp_path / f"{KEEP}"), torch.from_numpy(fixtures.oracle_logits(fixtures.make_rows(), 2))
    stored = logits.scatter(1, some.items.long() - 1, some.values.double())
    torch.testing.assert_close((stored / T).logsumexp(1).float(), some.logsumexp, rtol=1e-5, atol=1e-5)


def test_files_hold_what_the_pages_say(dataset: Dataset, tmp_path: Path) -> None:
    fixtures.label_alone(dataset, tmp_path, 2, "topk", keep=KEEP, temperature=T, dtype="bfloat16")
    index, examples = read_index(tmp_path), dataset.splits["train"].shard_examples
    assert (index.keep, index.temperature, index.item_shards) == (KEEP, T, ())
    for path, num_examples in zip(sorted(tmp_path.glob("labels-*.safetensors")), examples, strict=True):
        tensors = load_file(path)
        assert {name: (part.dtype, tuple(part.shape)) for name, part in tensors.items()} == {
            "values": (torch.bfloat16, (num_examples, KEEP)),
            "items": (torch.int32, (num_examples, KEEP)),
            "logsumexp": (torch.float32, (num_examples,)),
        }


def test_all_items_kept_teach_what_dense_labels_do(dataset: Dataset, tmp_path: Path) -> None:
    fixtures.label_alone(dataset, tmp_path / "topk", 2, "topk", keep=99, temperature=T)
    fixtures.label_alone(dataset, tmp_path / "dense", 2, "dense")
    ids = np.array([7, 3, 7, 40, 0])
    labels = [LabelCache(tmp_path / form).rows(ids) for form in ("topk", "dense")]
    assert isinstance(labels[1], DenseLabels)
    g = torch.Generator().manual_seed(0)
    weight, targets = (
        torch.randn(fixtures.NUM_ITEMS, 3, generator=g),
        torch.from_numpy(targets_of(fixtures.make_rows())),
    )
    found = []
    for each in labels:
        states = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
        total, _ = distillation(states, weight, targets[ids], each, temperature=T, beta=0.5, kl="forward")
        found.append((total.detach(), *torch.autograd.grad(total, states)))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
