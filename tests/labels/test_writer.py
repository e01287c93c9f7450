"""Laws of labelling: equal bytes at any number of ranks, and after any number of interruptions."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from csrec_dist.data.dataset import Dataset
from csrec_dist.errors import UserError
from csrec_dist.labels import LabelCache, labeller, read_index, top_k, verify
from csrec_dist.labels import format as formats
from tests.helpers import label_fixtures as fixtures
from tests.helpers.ranks import run_ranks

KINDS = [(num_members, form, {}) for num_members in (1, 2, 3) for form in ("factored", "dense")]
KINDS += [(8, form, {"combine": "weighted", "weights": fixtures.WEIGHTS}) for form in ("factored", "dense")]
KINDS += [(num_members, "factored", {"combine": "prob_mean"}) for num_members in (3, 8)]
KINDS += [(3, "topk", {"keep": 5, "temperature": 2.0}), (2, "dense", {"dtype": "float16"})]
KINDS += [(2, "auto", {"dtype": "auto", "kl": "forward", "keep": 3, "tolerance": 10.0})]


def label_everything(rank: int, world_size: int, dataset: str, root: str) -> bool:
    """All kinds of labels, with several item files and several chunks a batch."""
    formats.ITEMS_PER_FILE = 10
    labeller.CHUNK_BYTES = 8 * fixtures.NUM_ITEMS * 11
    labeller.BATCH_ROWS = 5
    top_k.BLOCK_ITEMS, top_k.CHUNK_ROWS = 8, 3
    torch.set_num_threads(2 if world_size == 1 else 1)
    for place, (num_members, form, combining) in enumerate(KINDS):
        fixtures.label(rank, world_size, dataset, f"{root}/{world_size}-{place}", num_members, form, **combining)
    return torch.get_num_threads() == (2 if world_size == 1 else 1)


def test_files_are_byte_equal_at_any_number_of_ranks(dataset: Dataset, tmp_path: Path) -> None:
    for world_size in (1, 2, 3):
        assert all(run_ranks(label_everything, world_size, str(dataset.folder), str(tmp_path)))
    for place, kind in enumerate(KINDS):
        alone, *others = (fixtures.file_bytes(tmp_path / f"{w}-{place}") for w in (1, 2, 3))
        form = read_index(tmp_path / f"1-{place}").form
        assert kind[1] in (form, "auto")
        assert len(alone) == 1 + 5 + (3 if form == "factored" else 0)
        assert all(other == alone for other in others), kind


def label_both_forms(rank: int, world_size: int, dataset: str, root: str) -> None:
    for form in ("factored", "dense"):
        fixtures.label(rank, world_size, dataset, f"{root}/{form}-{world_size}", 2, form)


def test_shards_without_examples(tmp_path: Path) -> None:
    shards = [[[1, 2, 3]], [[4]], [], [[5, 6]]]
    dataset = fixtures.write_dataset(tmp_path / "dataset", shards)
    label_both_forms(0, 1, str(dataset.folder), str(tmp_path))
    run_ranks(label_both_forms, 2, str(dataset.folder), str(tmp_path))
    for form in ("factored", "dense"):
        assert verify(tmp_path / f"{form}-1", dataset) == []
        assert LabelCache(tmp_path / f"{form}-1").rows(torch.tensor([2, 0])).num_examples == 2
        assert fixtures.file_bytes(tmp_path / f"{form}-1") == fixtures.file_bytes(tmp_path / f"{form}-2")


@pytest.mark.parametrize("form", ["factored", "dense", "topk"])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_cut_off_and_resumed_equals_unbroken(dataset: Dataset, tmp_path: Path, form: str, stop: int) -> None:
    fixtures.label_alone(dataset, tmp_path / "unbroken", 3, form)
    with pytest.raises(fixtures.CutOffError):
        fixtures.label(0, 1, str(dataset.folder), str(tmp_path / "resumed"), 3, form, stop, fixtures.cut_off)
    assert len(list((tmp_path / "resumed").glob("*"))) == stop - 1
    with pytest.raises(UserError, match="Run `label` first"):
        LabelCache(tmp_path / "resumed")
    result = fixtures.label(0, 1, str(dataset.folder), str(tmp_path / "resumed"), 3, form)
    assert len(result["progress"]) == 5 - (stop - 1)
    assert fixtures.file_bytes(tmp_path / "resumed") == fixtures.file_bytes(tmp_path / "unbroken")


def label_until_killed(rank: int, world_size: int, dataset: str, folder: str) -> None:
    """Rank 1 is killed while the file of its shard 1 is open."""
    stop = partial(os.kill, os.getpid(), signal.SIGKILL) if rank == 1 else None
    fixtures.label(rank, world_size, dataset, folder, 2, "factored", 2, stop)


def test_killed_ranks_resumed_alone_equal_unbroken(dataset: Dataset, tmp_path: Path) -> None:
    fixtures.label_alone(dataset, tmp_path / "unbroken")
    with pytest.raises(AssertionError, match="rank"):
        run_ranks(label_until_killed, 2, str(dataset.folder), str(tmp_path / "resumed"))
    left = {path.name for path in (tmp_path / "resumed").iterdir()}
    assert any(name.startswith(".labels-00001-of-00005") for name in left)
    assert not left & {"labels-00001-of-00005.safetensors", "label_cache.index.json"}
    result = fixtures.label(0, 1, str(dataset.folder), str(tmp_path / "resumed"), 2, "factored")
    assert len(result["progress"]) == 4
    assert fixtures.file_bytes(tmp_path / "resumed") == fixtures.file_bytes(tmp_path / "unbroken")


def test_finished_labels_are_left_alone(dataset: Dataset, cache_folder: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in cache_folder.iterdir()}
    result = fixtures.label(0, 1, str(dataset.folder), str(cache_folder), 2, "factored")
    assert result["progress"] == []
    assert {path: path.stat().st_mtime_ns for path in cache_folder.iterdir()} == times


def test_progress_counts_the_examples_of_the_column(dataset: Dataset, tmp_path: Path) -> None:
    results = run_ranks(fixtures.label, 2, str(dataset.folder), str(tmp_path / "labels"), 2, "dense")
    total = dataset.splits["train"].num_examples
    assert [result["progress"][-1] for result in results] == [(total, total)] * 2


def test_stale_shards_are_written_again(dataset: Dataset, cache_folder: Path, tmp_path: Path) -> None:
    """Shards of other members or of other shards, without an index, are never taken for ours."""
    (cache_folder / "label_cache.index.json").unlink()
    (cache_folder / "labels-00006-of-00007.safetensors").write_bytes(b"of seven shards")
    fixtures.label_alone(dataset, cache_folder, 3)
    fixtures.label_alone(dataset, tmp_path / "fresh", 3)
    assert fixtures.file_bytes(cache_folder) == fixtures.file_bytes(tmp_path / "fresh")


def test_other_files_of_the_folder_stay(dataset: Dataset, tmp_path: Path) -> None:
    names = ("items-2020.safetensors", "labels-mine.safetensors", ".labels-mine.tmp", "notes.md")
    (tmp_path / "labels").mkdir()
    for name in names:
        (tmp_path / "labels" / name).write_text("years of work")
    fixtures.label_alone(dataset, tmp_path / "labels")
    assert all((tmp_path / "labels" / name).read_text() == "years of work" for name in names)


def test_a_damaged_cache_is_mended_by_checksum(dataset: Dataset, cache_folder: Path) -> None:
    before = fixtures.file_bytes(cache_folder)
    names = [name for name in before if name.startswith("labels-")]
    (cache_folder / names[0]).unlink()
    flipped = bytearray(before[names[1]])
    flipped[-1] ^= 1
    (cache_folder / names[1]).write_bytes(flipped)
    os.truncate(cache_folder / names[2], len(before[names[2]]) - 1)
    fixtures.label_alone(dataset, cache_folder)
    assert fixtures.file_bytes(cache_folder) == before


def test_a_folder_of_other_labels_is_refused(dataset: Dataset, cache_folder: Path) -> None:
    before = fixtures.file_bytes(cache_folder)
    with pytest.raises(UserError, match=r"members.*m0.*m2"):
        fixtures.label_alone(dataset, cache_folder, 3)
    with pytest.raises(UserError, match=r"form was 'factored', is 'dense'"):
        fixtures.label_alone(dataset, cache_folder, 2, "dense")
    assert fixtures.file_bytes(cache_folder) == before


def refused(rank: int, world_size: int, dataset: str, folder: str) -> str:
    with pytest.raises(UserError) as error:
        fixtures.label(rank, world_size, dataset, folder, 3, "factored")
    return str(error.value)


def test_every_rank_is_refused(dataset: Dataset, cache_folder: Path) -> None:
    first, second = run_ranks(refused, 2, str(dataset.folder), str(cache_folder))
    assert first == second
    assert "something else" in first


def test_a_teacher_of_another_catalog_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    dataset.info["num_items"] = 99
    (dataset.folder / "dataset.json").write_text(json.dumps(dataset.info))
    with pytest.raises(UserError, match="99 items"):
        fixtures.label_alone(Dataset(dataset.folder), tmp_path / "labels")


def test_shards_are_plain_safetensors(dataset: Dataset, cache_folder: Path) -> None:
    split = dataset.splits["train"]
    for shard, path in enumerate(sorted(cache_folder.glob("labels-*.safetensors"))):
        assert path.name == f"labels-{shard:05d}-of-00005.safetensors"
        with safe_open(path, "pt") as file:
            assert file.get_tensor("states").shape == (split.shard_examples[shard], 7)
            assert file.metadata()["first"] == str(split.first_examples[shard])
    assert {path.suffix for path in cache_folder.iterdir()} == {".json", ".safetensors"}
