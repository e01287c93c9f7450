"""Damage that `verify` must find, and the figures that `info` gives."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from csrec_dist.data.dataset import Dataset
from csrec_dist.errors import UserError
from csrec_dist.files import read_json
from csrec_dist.labels import LabelCache, info, label_bytes, read_index, verify
from tests.helpers import label_fixtures as fixtures

SHARD = "labels-00002-of-00005.safetensors"


def edit_index(folder: Path, edit: Callable[[Any], None]) -> None:
    path = folder / "label_cache.index.json"
    index = read_json(path)  # which leaves its checksum out: what else is wrong is said too
    edit(index)
    path.write_text(json.dumps(index))


def test_a_sound_cache_has_no_problem(cache_folder: Path, dataset: Dataset) -> None:
    assert verify(cache_folder, dataset) == []


@pytest.mark.parametrize("name", [SHARD, "items-00000-of-00001.safetensors"])
@pytest.mark.parametrize("place", [3, 30, -1])
def test_any_flipped_byte_is_found(cache_folder: Path, name: str, place: int) -> None:
    data = bytearray((cache_folder / name).read_bytes())
    data[place] ^= 4
    (cache_folder / name).write_bytes(data)
    (problem,) = verify(cache_folder)
    assert name in problem
    assert "checksum" in problem


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(("shard", "found"), [(2, True), (3, False)])
def test_a_rank_finds_changed_bytes_of_its_own_shards(cache_folder: Path, shard: int, found: bool) -> None:
    flip(cache_folder / SHARD, -1)
    problems = LabelCache(cache_folder).check_shards([0, shard])
    assert [SHARD in problem for problem in problems] == [True] * found


def test_every_rank_finds_changed_and_missing_item_tables(cache_folder: Path) -> None:
    cache, items = LabelCache(cache_folder), cache_folder / "items-00000-of-00001.safetensors"
    assert cache.check_shards(range(5)) == []
    flip(items, -1)
    (problem,) = cache.check_shards([])
    assert "checksum" in problem
    items.unlink()
    assert cache.check_shards([]) == [f"{items.name} is missing."]


@pytest.mark.parametrize("name", [SHARD, "items-00000-of-00001.safetensors"])
def test_a_damaged_header_is_the_users_error_or_does_no_harm(cache_folder: Path, name: str) -> None:
    path = cache_folder / name
    ids = torch.arange(LabelCache(cache_folder).num_examples)
    sound, expected, refusals = path.read_bytes(), LabelCache(cache_folder).rows(ids), []
    for place in range(8 + int.from_bytes(sound[:8], "little")):
        flip(path, place)
        try:
            found = LabelCache(cache_folder).rows(ids)
            assert torch.equal(found.states, expected.states)
            assert torch.equal(found.item_weight, expected.item_weight)
            assert torch.equal(found.item_bias, expected.item_bias)
        except UserError as error:
            refusals.append(str(error))
        path.write_bytes(sound)
    assert len(refusals) > 80
    assert all(name in refusal for refusal in refusals)


def test_a_folder_without_a_cache_is_the_users_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="holds no soft-label cache"):
            verify(folder)


@pytest.mark.parametrize("num_items", [0, -3])
def test_info_for_no_items_is_refused(cache_folder: Path, num_items: int) -> None:
    with pytest.raises(UserError, match=f"catalog of {num_items} items.*at least 1"):
        info(cache_folder, num_items)


def test_truncated_and_missing_files_are_found_and_not_read(cache_folder: Path) -> None:
    size = (cache_folder / SHARD).stat().st_size
    os.truncate(cache_folder / SHARD, size - 4)
    assert verify(cache_folder, deep=False) == [f"{SHARD} has {size - 4} bytes; the index says {size}."]
    with pytest.raises(UserError, match="missing or cut off"):
        LabelCache(cache_folder)
    (cache_folder / SHARD).unlink()
    assert verify(cache_folder) == [f"{SHARD} is missing."]


def test_exchanged_shards_are_found_without_checksums(dataset: Dataset, tmp_path: Path) -> None:
    shards = [[[1, 2, 3]], [[4, 5, 6]]]
    folder = tmp_path / "labels"
    fixtures.label_alone(fixtures.write_dataset(tmp_path / "two", shards), folder)
    first, second = (folder / f"labels-0000{shard}-of-00002.safetensors" for shard in range(2))
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)
    assert len(verify(folder, deep=False)) == 2


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda index: index["shards"][1].update(num_examples=10**6), "gap|overlap"),
        (lambda index: index["shards"][1].update(first_example=0), "overlap"),
        (lambda index: index["shards"].pop(), "not"),
        (lambda index: index["item_shards"].pop(), "items"),
        (lambda index: index["shards"][0].update(file="../elsewhere.safetensors"), "shards.0.file"),
        (lambda index: index["shards"][0].update(sha256="none"), "sha256"),
        (lambda index: index.update(form="sparse"), "form"),
        (lambda index: index.update(form="topk"), "keep and temperature"),
        (lambda index: index.update(code="import os"), "code"),
        (lambda index: index.pop("members"), "members"),
        (lambda index: index.update(format_version=2), "label format 2"),
    ],
)
def test_a_damaged_index_is_refused(cache_folder: Path, edit: Callable[[Any], None], words: str) -> None:
    edit_index(cache_folder, edit)
    with pytest.raises(UserError, match=words):
        read_index(cache_folder)
    assert len(verify(cache_folder)) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '"x"', '{"format_version": 1'])
def test_a_foreign_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "label_cache.index.json").write_text(text)
    with pytest.raises(UserError):
        read_index(tmp_path)


def test_labels_of_another_dataset_are_found(cache_folder: Path, tmp_path: Path) -> None:
    other = fixtures.write_dataset(tmp_path / "other", fixtures.make_rows(seed=1), "d1")
    problems = verify(cache_folder, other)
    assert any("d0" in problem and "d1" in problem for problem in problems)


def test_info_gives_the_files_own_sizes(cache_folder: Path) -> None:
    figures = info(cache_folder)
    files = [path for path in cache_folder.iterdir() if path.suffix == ".safetensors"]
    assert figures["bytes"] == sum(path.stat().st_size for path in files)
    assert figures["dense_bytes"] == figures["num_examples"] * fixtures.NUM_ITEMS * 4
    assert figures["members"] == ["m0", "m1"]
    assert figures["num_shards"] == 5


def test_info_for_another_catalog(cache_folder: Path) -> None:
    figures, num_examples = info(cache_folder, num_items=1000), info(cache_folder)["num_examples"]
    assert figures["bytes"] == 4 * (7 * num_examples + 1000 * 7 + 1000)
    assert figures["ratio"] == figures["bytes"] / (4000 * num_examples)


@pytest.mark.parametrize(("num_items", "share"), [(3_646, 20), (29_351, 100)])
def test_factored_labels_of_the_papers_sizes_are_small(num_items: int, share: int) -> None:
    factored = label_bytes("factored", 48_307, num_items, [64, 64])
    assert factored * share < label_bytes("dense", 48_307, num_items, [64, 64])
