"""A cache opened for a slice of the catalog: its rows of the item tables, from the files that hold them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.distributed.groups import Group
from csrec_dist.labels import FactoredLabels, LabelCache, MixtureLabels, cache
from csrec_dist.labels import format as formats
from csrec_dist.tensor_files import TensorSpec
from tests.helpers import label_fixtures as fixtures


def slice_of(rank: int, size: int) -> CatalogSlice:
    return CatalogSlice.of(fixtures.NUM_ITEMS, Group(tuple(range(size)), rank))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the files of item tables that are read."""
    names: set[str] = set()
    map_tensor = cache.map_tensor

    def noted(path: Path, name: str, spec: TensorSpec) -> np.ndarray:
        if name.startswith("item_"):
            names.add(path.name)
        return map_tensor(path, name, spec)

    monkeypatch.setattr(cache, "map_tensor", noted)
    monkeypatch.setattr(formats, "ITEMS_PER_FILE", 4)
    return names


@pytest.mark.parametrize("combine", ["logit_mean", "prob_mean"])
def test_slices_are_rows_of_the_whole_tables(dataset: Dataset, tmp_path: Path, opened: set[str], combine: str) -> None:
    fixtures.label_alone(dataset, tmp_path, 2, combine=combine)
    weight, bias = LabelCache(tmp_path).item_tables
    assert bias is not None
    assert len(opened) == -(-fixtures.NUM_ITEMS // 4)
    for size in (1, 2, 3, fixtures.NUM_ITEMS + 2):
        for rank in range(size):
            opened.clear()
            catalog = slice_of(rank, size)
            own_weight, own_bias = LabelCache(tmp_path, group=catalog.group).item_tables
            assert own_bias is not None
            assert torch.equal(own_weight, weight[catalog.rows])
            assert torch.equal(own_bias, bias[catalog.rows])
            first_file, files = catalog.first // 4, -(-catalog.stop // 4)
            assert len(opened) == (files - first_file if catalog.num_rows else 0)


def test_labels_of_a_slice_have_its_items(dataset: Dataset, tmp_path: Path) -> None:
    fixtures.label_alone(dataset, tmp_path / "mean")
    fixtures.label_alone(dataset, tmp_path / "mixture", combine="prob_mean")
    catalog, ids = slice_of(1, 3), np.array([3, 0])
    for name, form in (("mean", FactoredLabels), ("mixture", MixtureLabels)):
        labels = LabelCache(tmp_path / name, dataset, catalog.group).rows(ids)
        assert isinstance(labels, form)
        assert (labels.num_examples, labels.num_items) == (2, catalog.num_rows)


def test_only_the_files_of_the_slice_are_held_to_their_checksums(
    dataset: Dataset, tmp_path: Path, opened: set[str]
) -> None:
    fixtures.label_alone(dataset, tmp_path)
    last = sorted(tmp_path.glob("items-*.safetensors"))[-1]
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    found = [LabelCache(tmp_path, dataset, slice_of(rank, 2).group).check_shards([]) for rank in range(2)]
    assert [len(problems) for problems in found] == [0, 1]
    assert len(LabelCache(tmp_path, dataset).check_shards([])) == 1
