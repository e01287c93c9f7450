"""Which test targets leak, against loops over what each user was trained on."""

from pathlib import Path

import pytest

from csrec_dist.data.batches import to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare


def rows(dataset: Dataset, split: str) -> dict[int, tuple[int, list[int]]]:
    """User and items of each row."""
    found = {}
    for batch in map(to_batch, dataset.stream(split, batch_size=5)):
        for row, user, items in zip(batch.rows.tolist(), batch.users.tolist(), batch.items.tolist(), strict=True):
            found[row] = user, [item for item in items if item]
    return found


@pytest.mark.parametrize("windows", ["paper", "disjoint"])
def test_a_target_leaks_if_its_user_was_trained_on_it(small_log: Path, tmp_path: Path, windows: str) -> None:
    options = {"source": str(small_log), "min_interactions": 3, "window": 5, "num_shards": 3, "windows": windows}
    prepare(DatasetOptions.model_validate(options), tmp_path / "dataset")
    dataset = Dataset(tmp_path / "dataset")
    trained = {(user, item) for user, items in rows(dataset, "train").values() for item in items[1:]}
    expected = {row for row, (user, items) in rows(dataset, "test").items() if (user, items[-1]) in trained}
    found = dataset.leaked_rows
    assert set(found.nonzero()[0].tolist()) == expected
    assert len(found) == dataset.splits["test"].num_rows
    assert 0 < len(expected) < len(found)
    assert dataset.statistics["leaked_test_targets"] == len(expected)


def test_nothing_is_read_where_nothing_leaks(small_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(small_dataset)
    monkeypatch.setitem(dataset.statistics, "leaked_test_targets", 0)
    monkeypatch.setattr(Dataset, "shard_file", None)
    assert not dataset.leaked_rows.any()
