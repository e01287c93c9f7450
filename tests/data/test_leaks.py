"""Which test targets leak, against loops over what each user was trained on."""

from pathlib import Path

import polars as pl
import pytest

from csrec_dist.data.batches import to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare
from csrec_dist.evaluation.per_row import TargetFacts


def rows(dataset: Dataset, split: str) -> dict[int, tuple[int, list[int]]]:
    """User and items of each row."""
    found = {}
    for batch in map(to_batch, dataset.stream(split, batch_size=5)):
        for row, user, items in zip(batch.rows.tolist(), batch.users.tolist(), batch.items.tolist(), strict=True):
            found[row] = user, [item for item in items if item]
    return found


@pytest.mark.parametrize("noise", [None, {"rate": 0.5}])
@pytest.mark.parametrize("windows", ["paper", "disjoint"])
def test_a_target_leaks_if_its_user_was_trained_on_it(
    small_log: Path, tmp_path: Path, windows: str, noise: dict[str, float] | None
) -> None:
    """On what the training rows show, noise included."""
    options = {"source": str(small_log), "min_interactions": 3, "window": 5, "num_shards": 3, "windows": windows}
    prepare(DatasetOptions.model_validate(options | {"noise": noise}), tmp_path / "dataset")
    dataset = Dataset(tmp_path / "dataset")
    trained = {(user, item) for user, items in rows(dataset, "train").values() for item in items[1:]}
    for split in ("test", "valid"):
        files = pl.read_parquet(tmp_path / "dataset" / f"{split}-*.parquet", columns=["row", "leaked"])
        pairs = rows(dataset, split)
        assert dict(files.rows()) == {row: (user, items[-1]) in trained for row, (user, items) in pairs.items()}
        assert 0 < files["leaked"].sum() < len(files)
        if split == "test":
            assert dataset.statistics["leaked_test_targets"] == files["leaked"].sum()
            facts = [TargetFacts.read(dataset, shard).leaked for shard in range(dataset.num_shards)]
            assert sum(int(leaked.sum()) for leaked in facts) == files["leaked"].sum()
