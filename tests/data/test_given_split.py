"""A split that is given by files: their rows are the targets."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from csrec_dist.data.dataset import Dataset
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare
from csrec_dist.data.sources import FileSource
from csrec_dist.errors import UserError

SPLITS = ("train", "valid", "test")
Interactions = list[tuple[str, str, int]]


def split_log(seed: int = 0) -> dict[str, Interactions]:
    """Random interactions of 12 users, 30 items; users differ in how many each split has, and some have none."""
    random = np.random.default_rng(seed)
    sizes = {"train": (0, 9), "valid": (0, 3), "test": (0, 4)}
    return {
        name: [
            (f"u{user}", f"i{random.integers(30)}", int(random.integers(100)))
            for user in random.permutation(12)
            for _ in range(random.integers(*sizes[name]))
        ]
        for name in SPLITS
    }


def write(folder: Path, log: dict[str, Interactions]) -> dict[str, str]:
    for name, rows in log.items():
        pl.DataFrame(rows, ["user", "item", "time"], orient="row").write_csv(folder / f"{name}.csv")
    keys = dict(zip(SPLITS, ("source", "valid_source", "test_source"), strict=True))
    return {key: str(folder / f"{name}.csv") for name, key in keys.items()}


def options(folder: Path, log: dict[str, Interactions], **keys: Any) -> DatasetOptions:
    files = write(folder, log)
    return DatasetOptions(**{**files, "split": "given", "min_interactions": 1, "window": 5, "num_shards": 3, **keys})


def rows_of(dataset: Dataset, split: str) -> list[tuple[str, tuple[str, ...]]]:
    """The raw ids of each row of a split."""
    items, users = (pl.read_parquet(dataset.folder / f"{name}.parquet")["raw"].to_list() for name in ("items", "users"))
    rows = dataset.stream(split)
    return sorted((users[row["user"] - 1], tuple(items[item - 1] for item in row["items"])) for row in rows)


def expected(log: dict[str, Interactions], split: str, window: int) -> list[tuple[str, tuple[str, ...]]]:
    """Each row of the file as a target, after all that its user had in earlier files and before it in its own."""
    rows = []
    for user in sorted({user for rows in log.values() for user, _, _ in rows}):
        before: list[str] = []
        for name in SPLITS:
            for _, item, _ in sorted((each for each in log[name] if each[0] == user), key=lambda each: each[2]):
                if name == split and before:
                    rows.append((user, (*before[-(window - 1) :], item)))
                before.append(item)
    return sorted(rows)


@pytest.mark.parametrize("seed", range(4))
def test_every_row_of_the_files_is_a_target(tmp_path: Path, seed: int) -> None:
    log = split_log(seed)
    info = prepare(options(tmp_path, log), tmp_path / "dataset")
    dataset = Dataset(tmp_path / "dataset")
    for split in ("valid", "test"):
        assert rows_of(dataset, split) == expected(log, split, 5)
        without = info["statistics"][f"{split}_rows_without_history"]
        assert len(log[split]) == len(expected(log, split, 5)) + without
    assert info["statistics"]["interactions"] == sum(map(len, log.values()))


def test_a_target_leaks_if_its_user_has_it_in_the_training_file(tmp_path: Path) -> None:
    prepare(options(tmp_path, split_log(), window=100), tmp_path / "dataset")
    dataset = Dataset(tmp_path / "dataset")
    trained = {(user, item) for user, items in rows_of(dataset, "train") for item in items[1:]}
    for split in ("valid", "test"):
        expected_number = sum((user, items[-1]) in trained for user, items in rows_of(dataset, split))
        leaked = pl.read_parquet(tmp_path / "dataset" / f"{split}-*.parquet")["leaked"]
        assert int(leaked.sum()) == expected_number > 0


def test_training_rows_are_cut_from_the_training_file_alone(tmp_path: Path) -> None:
    log = split_log()
    prepare(options(tmp_path, log, window=100), tmp_path / "dataset")
    trained = {user: sorted(items) for user, items in rows_of(Dataset(tmp_path / "dataset"), "train")}
    users = {user for user, _, _ in log["train"]}
    items = {user: sorted(item for each, item, _ in log["train"] if each == user) for user in users}
    assert trained == {user: each for user, each in items.items() if len(each) > 1}


def test_files_of_the_split_may_differ_in_form_but_not_in_columns(tmp_path: Path) -> None:
    log = split_log()
    whole = prepare(options(tmp_path, log), tmp_path / "dataset")
    pl.read_csv(tmp_path / "test.csv").write_parquet(tmp_path / "test.parquet")
    mixed = options(tmp_path, log, test_source=str(tmp_path / "test.parquet"))
    assert prepare(mixed, tmp_path / "mixed")["splits"] == whole["splits"]
    pl.read_csv(tmp_path / "test.csv").rename({"time": "date"}).write_csv(tmp_path / "other.csv")
    with pytest.raises(UserError, match=r"other\.csv and .*train\.csv are parts of one log, but .* timestamp"):
        prepare(options(tmp_path, log, test_source=str(tmp_path / "other.csv")), tmp_path / "none")


def test_each_file_decides_what_the_dataset_is(tmp_path: Path) -> None:
    log = split_log()
    first = prepare(options(tmp_path, log), tmp_path / "first")
    swapped = {**log, "valid": log["test"], "test": log["valid"]}
    assert prepare(options(tmp_path, swapped), tmp_path / "second")["fingerprint"] != first["fingerprint"]
    moved = tmp_path / "moved"
    moved.mkdir()
    assert prepare(options(moved, log), tmp_path / "third")["fingerprint"] == first["fingerprint"]


def test_the_file_that_a_part_is_in_decides_what_the_dataset_is(tmp_path: Path) -> None:
    files = write(tmp_path, split_log())
    places = [[files["source"], files["valid_source"]], [files["test_source"]], [files["test_source"]]]
    moved = [[files["source"]], [files["valid_source"], files["test_source"]], [files["test_source"]]]
    shas = set()
    for number, splits in enumerate((places, moved)):
        keys = {}
        for key, parts in zip(files, splits, strict=True):
            folder = tmp_path / str(number) / key
            folder.mkdir(parents=True)
            keys[key] = str(folder)
            for part, file in enumerate(parts):
                (folder / f"{part}.csv").write_bytes(Path(file).read_bytes())
        shas.add(FileSource(DatasetOptions(**keys, split="given", min_interactions=1)).identity["sha256"])
    assert len(shas) == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"test_source": None}, "needs both valid_source and test_source"),
        ({"split": "temporal"}, "needs both valid_source and test_source"),
        ({"valid_source": None, "test_source": None}, "needs both valid_source and test_source"),
        ({"min_interactions": 5}, "set min_interactions: 1"),
        ({"duplicates": "exact"}, "duplicates: keep"),
    ],
)
def test_what_would_choose_among_the_rows_is_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        options(tmp_path, split_log(), **keys)


def test_a_file_without_any_target_is_named(tmp_path: Path) -> None:
    log = {**split_log(), "test": [("new", "i1", 1)]}
    with pytest.raises(UserError, match="the split 'test' has no row: no row of its file has a history"):
        prepare(options(tmp_path, log), tmp_path / "dataset")
