"""The hand-made dataset and its labels."""

from pathlib import Path

import pytest

from csrec_dist.data.dataset import Dataset
from tests.helpers import label_fixtures as fixtures


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """43 rows in 5 shards."""
    return fixtures.write_dataset(tmp_path / "dataset", fixtures.make_rows())


@pytest.fixture
def cache_folder(dataset: Dataset, tmp_path: Path) -> Path:
    """Factored labels of two members."""
    fixtures.label_alone(dataset, tmp_path / "labels")
    return tmp_path / "labels"
