"""Labels on a node's own disk: the same labels, of which only what the node reads is copied, whole and checked."""

import errno
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from csrec_dist.config import load_config
from csrec_dist.distributed import Runtime
from csrec_dist.errors import StorageError, UserError
from csrec_dist.files import read_json
from csrec_dist.labels import LabelCache, read_index
from csrec_dist.labels.node_copy import copy_labels, node_folder, remove_empty
from csrec_dist.runs.pipeline import execute
from csrec_dist.runs.stages import distill
from tests.helpers.disks import failing
from tests.helpers.ranks import run_ranks
from tests.helpers.run_folders import make_run


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A label cache of three shards."""
    return make_run(tmp_path_factory.mktemp("run")) / "labels"


def copy_to(labels: Path, disk: Path, shards: Iterable[int]) -> tuple[Path, list[str], list[tuple[int, int]]]:
    """The copy, what is wrong, and what was told."""
    told: list[tuple[int, int]] = []
    copy = node_folder(labels, disk, "small")
    problems = copy_labels(labels, copy, shards, lambda copied, total: told.append((copied, total)))
    return copy, problems, told


def copies(copy: Path) -> list[str]:
    """The label shards that are no links, by the first words of their names, after the item tables."""
    names = sorted(path.name for path in copy.glob("*-of-*.safetensors") if not path.is_symlink())
    assert names[0].startswith("items-00000")
    return [name[:12] for name in names if name.startswith("labels-")]


def test_shards_are_copied_and_the_rest_linked(labels: Path, tmp_path: Path) -> None:
    copy, problems, told = copy_to(labels, tmp_path, [0, 2])
    sizes = [path.stat().st_size for path in copy.glob("*.safetensors") if not path.is_symlink()]
    assert not problems
    assert copies(copy) == ["labels-00000", "labels-00002"]
    assert told[-1] == (sum(sizes), sum(sizes))
    ids = torch.randperm(read_index(labels).num_examples)
    found, expected = LabelCache(copy), LabelCache(labels)
    assert torch.equal(found.fields(ids)["states"], expected.fields(ids)["states"])
    assert torch.equal(found.item_tables[0], expected.item_tables[0])


def test_what_is_whole_is_kept_and_what_is_damaged_or_a_link_is_copied(labels: Path, tmp_path: Path) -> None:
    copy, _, _ = copy_to(labels, tmp_path, [0, 1])
    first, second, third = (next(copy.glob(f"labels-0000{shard}-*")) for shard in range(3))
    before = first.stat().st_mtime_ns
    second.write_bytes(second.read_bytes()[:-1] + b"x")
    assert third.is_symlink()
    _, problems, told = copy_to(labels, tmp_path, [0, 1, 2])
    assert not problems
    assert first.stat().st_mtime_ns == before
    assert not third.is_symlink()
    assert second.read_bytes() == (labels / second.name).read_bytes()
    assert told[-1][1] == second.stat().st_size + third.stat().st_size
    shutil.rmtree(copy)
    remove_empty(copy)
    assert not list(tmp_path.iterdir())


def test_damaged_labels_are_told_and_not_kept(labels: Path, tmp_path: Path) -> None:
    changed = tmp_path / "labels"
    shutil.copytree(labels, changed)
    path = next(changed.glob("labels-00001-*"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    copy, problems, _ = copy_to(changed, tmp_path / "disk", [0, 1])
    assert len(problems) == 1
    assert problems[0].startswith("labels-00001-of-00003.safetensors has another checksum")
    assert (copy / path.name).is_symlink()


def test_a_disk_that_is_too_small_or_no_folder_is_refused(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"labels.copy_to: labels cannot be copied to .*: File exists"):
        copy_to(labels, tmp_path / "file", [0])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    with pytest.raises(UserError, match=r"has 0.0 GiB free, and the labels that this node reads take"):
        copy_to(labels, tmp_path, [0])


def plant_link(planted: Path, elsewhere: Path) -> None:
    planted.symlink_to(elsewhere)


def plant_open_folder(planted: Path, elsewhere: Path) -> None:
    planted.mkdir()
    planted.chmod(0o777)


def plant_file(planted: Path, elsewhere: Path) -> None:
    planted.touch()


def plant_foreign_folder(planted: Path, elsewhere: Path) -> None:
    planted.mkdir(mode=0o755)
    if os.getuid() != 0:
        pytest.skip("only root can give a folder to somebody else")
    os.chown(planted, 65534, 65534)


@pytest.mark.parametrize("plant", [plant_link, plant_open_folder, plant_file, plant_foreign_folder])
def test_what_another_user_may_have_planted_is_refused_and_left_alone(
    labels: Path, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    plant(node_folder(labels, tmp_path, "small").parents[1], elsewhere)
    with pytest.raises(UserError, match="is not a folder that belongs to you"):
        copy_to(labels, tmp_path, [0])
    assert not list(elsewhere.iterdir())


def test_a_copy_is_the_user_s_alone_whatever_the_umask(labels: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        copy, _, _ = copy_to(labels, tmp_path, [0])
    finally:
        os.umask(before)
    assert copy.parents[1].parent == tmp_path
    assert copy.parents[1].stat().st_mode & 0o777 == 0o700


RUN = """
name: small
dataset: {path: %s}
model: {name: gru4rec, width: 16, dropout: 0}
method: model_level
training: {batch_size: 7, max_epochs: 2, learning_rate: 0.01}
evaluation: {top_n: [10]}
"""


def distilled(rank: int, world_size: int, folder: str, dataset: str, disks: list[str], ends: bool) -> list[str]:
    """A run to its student; what is copied on this rank's disk while it trains. Ranks of one disk are one node."""
    path = Path(folder, f"config-{rank}.yaml")
    path.write_text(RUN % dataset)
    nodes = sorted(set(disks))
    with pytest.MonkeyPatch.context() as patch:
        if len(nodes) > 1:
            patch.setenv("LOCAL_RANK", "0")
        settings = [f"output={folder}", *([f"labels.copy_to={disks[rank]}"] if disks else [])]
        real, seen = distill.train_student, []

        def train_student(*arguments: Any) -> Any:
            seen.extend(copies(arguments[-1].folder) if disks else [])
            if not ends:
                raise KeyboardInterrupt
            return real(*arguments)

        patch.setattr(distill, "train_student", train_student)
        try:
            execute(load_config(path, settings), Runtime.start(), ["prepare", "teach", "label", "distill"])
        except KeyboardInterrupt:
            assert not ends
    return seen


def curve(folder: Path) -> list[float]:
    return [epoch["loss"] for epoch in read_json(folder / "small/student/metrics.json")["epochs"]]


def test_each_node_copies_what_its_ranks_read_and_removes_it_at_the_end(small_dataset: Path, tmp_path: Path) -> None:
    disks = [str(tmp_path / "disk-0"), str(tmp_path / "disk-1")]
    first, second = run_ranks(distilled, 2, str(tmp_path), str(small_dataset), disks, False)
    assert first == ["labels-00000", "labels-00002", "labels-00004"]
    assert second == ["labels-00001", "labels-00003"]
    assert all(list(Path(disk).rglob("label_cache.index.json")) for disk in disks), "kept for the next start"
    both = run_ranks(distilled, 2, str(tmp_path), str(small_dataset), disks[:1] * 2, True)
    assert both == [[f"labels-0000{shard}" for shard in range(5)]] * 2
    assert not list(Path(disks[0]).iterdir())
    found = curve(tmp_path)
    (tmp_path / "small/distill.done.json").unlink()
    shutil.rmtree(tmp_path / "small/student")
    distilled(0, 1, str(tmp_path), str(small_dataset), [], True)
    assert curve(tmp_path) == pytest.approx(found, abs=1e-4)


def test_a_disk_that_fails_while_labels_are_copied_is_told_to_all_ranks(small_dataset: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with failing("fsync", errno.ENOSPC, disk), pytest.raises(StorageError, match=r"No space.*node of rank 0") as met:
        distilled(0, 1, str(tmp_path), str(small_dataset), [str(disk)], True)
    assert met.value.is_shared
    assert distilled(0, 1, str(tmp_path), str(small_dataset), [str(disk)], True)
