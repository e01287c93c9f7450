"""A prepared dataset that is damaged says so, and item ids are named by a fingerprint."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from csrec_dist.data.dataset import Dataset
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare
from csrec_dist.errors import UserError
from csrec_dist.files import read_json
from tests.helpers.run_folders import without_checksums


@pytest.fixture
def folder(small_dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_dataset, tmp_path / "dataset"))


@pytest.fixture
def unchecked(folder: Path) -> Path:
    """A folder whose dataset.json names no checksums, as if another tool had written it."""
    return without_checksums(folder)


def rewrite(folder: Path, info: Any) -> None:
    (folder / "dataset.json").write_text(json.dumps(info))


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("key", ["num_items", "num_users", "num_shards", "window", "fingerprint", "splits"])
@pytest.mark.parametrize("value", [None, [], -1])
def test_a_damaged_dataset_json_is_the_users_error(folder: Path, key: str, value: Any) -> None:
    info = read_json(folder / "dataset.json")
    if value is None:
        del info[key]
    else:
        info[key] = value
    rewrite(folder, info)
    with pytest.raises(UserError, match=rf"dataset\.json is damaged: {key}"):
        Dataset(folder)


def test_a_damaged_split_is_the_users_error(folder: Path) -> None:
    info = read_json(folder / "dataset.json")
    del info["splits"]["train"]["shard_examples"]
    rewrite(folder, info)
    with pytest.raises(UserError, match=r"dataset\.json is damaged: splits\.train\.shard_examples"):
        Dataset(folder)


@pytest.mark.parametrize("info", [[], "text", 3, {}])
def test_another_dataset_json_is_the_users_error(folder: Path, info: Any) -> None:
    rewrite(folder, info)
    with pytest.raises(UserError, match="has dataset format None"):
        Dataset(folder)


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_cut_shard_is_the_users_error(unchecked: Path, share: float) -> None:
    dataset = Dataset(unchecked)
    path = dataset.shard_file("train", 1)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=rf"{path.name} cannot be read"):
        dataset.open_shard("train", 1)


def test_a_shard_damaged_inside_is_the_users_error(unchecked: Path) -> None:
    dataset = Dataset(unchecked)
    path = dataset.shard_file("train", 1)
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196
    path.write_bytes(data)
    shard = dataset.open_shard("train", 1)
    with pytest.raises(UserError, match=rf"{path.name} cannot be read"):
        list(shard.blocks())


def test_a_foreign_parquet_file_is_the_users_error(unchecked: Path) -> None:
    dataset = Dataset(unchecked)
    path = dataset.shard_file("train", 1)
    path.write_bytes((unchecked / "items.parquet").read_bytes())
    with pytest.raises(UserError, match=rf"{path.name} cannot be read"):
        list(dataset.open_shard("train", 1).blocks())


def test_the_id_map_is_named_by_its_bytes(folder: Path) -> None:
    expected = hashlib.sha256((folder / "items.parquet").read_bytes()).hexdigest()[:16]
    dataset = Dataset(folder)
    assert dataset.id_map_fingerprint == expected
    (folder / "items.parquet").unlink()
    assert dataset.id_map_fingerprint == expected
    with pytest.raises(UserError, match=r"items\.parquet is missing"):
        Dataset(folder).id_map_fingerprint  # noqa: B018


def test_sequences_hold_all_that_each_user_had_in_order(tmp_path: Path) -> None:
    """More users than a row group holds, each with a suffix of 0…9, rows of the log in an order of their own."""
    first = {user: user % 7 for user in range(1100)}
    lines = [
        f"{user},{item},{item}" for item in (3, 9, 0, 5, 8, 1, 7, 2, 6, 4) for user in first if item >= first[user]
    ]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,timestamp", *lines]) + "\n")
    options = DatasetOptions(
        source=str(tmp_path / "log.csv"), min_interactions=1, window=3, split="temporal", num_shards=2
    )
    prepare(options, tmp_path / "dataset")
    dataset = Dataset(tmp_path / "dataset")
    users, items = (pl.read_parquet(dataset.folder / f"{name}s.parquet")["raw"].to_list() for name in ("user", "item"))
    found = {users[user - 1]: [items[item - 1] for item in sequence] for user, sequence in dataset.sequences()}
    assert found == {user: list(range(start, 10)) for user, start in first.items()}
    assert list(found) == users


@pytest.mark.parametrize("share", [0, 0.5])
def test_cut_sequences_are_the_users_error(unchecked: Path, share: float) -> None:
    path = unchecked / "sequences.parquet"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"sequences\.parquet cannot be read"):
        list(Dataset(unchecked).sequences())


@pytest.mark.parametrize("name", ["train-00001-of-00005", "test-00000-of-00005", "items", "users", "sequences"])
def test_a_bit_that_flipped_in_any_file_is_the_users_error(folder: Path, name: str) -> None:
    path = folder / f"{name}.parquet"
    assert Dataset(folder).file(path.name) == path
    flip(path, 8 * (path.stat().st_size // 2))
    with pytest.raises(UserError, match=rf"{path.name} is damaged: it has another checksum"):
        Dataset(folder).file(path.name)


def test_a_flipped_bit_of_dataset_json_is_the_users_error(folder: Path) -> None:
    path = folder / "dataset.json"
    digit = path.read_text().index('"num_items": ') + len('"num_items": ')
    flip(path, 8 * digit)
    with pytest.raises(UserError, match=r"dataset\.json is damaged: its content does not have the checksum"):
        Dataset(folder)


def test_pages_are_compared_at_every_read(unchecked: Path) -> None:
    """A page whose numbers decompress as before, but whose checksum is another one."""
    path = Dataset(unchecked).shard_file("train", 1)
    table = pq.read_table(path)
    pq.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
    shard = Dataset(unchecked).open_shard("train", 1)
    numbers = table["row"].to_numpy().tobytes()
    flip(path, 8 * path.read_bytes().index(numbers))
    with pytest.raises(UserError, match=r"cannot be read .*CRC"):
        list(shard.blocks())
