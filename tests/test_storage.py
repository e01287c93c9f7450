"""Full, failing and read-only disks: one sentence and exit status 1, and the same command goes on afterwards."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from csrec_dist.cli import main
from csrec_dist.config import load_config
from csrec_dist.distributed import RankFailure, Runtime
from csrec_dist.distributed.layout import teaching_rounds
from csrec_dist.errors import StorageError
from csrec_dist.files import atomic_path, new_folder, write_json
from csrec_dist.lock import FolderLock
from csrec_dist.runs.pipeline import execute
from csrec_dist.storage import FAILURES, require_room, size
from csrec_dist.tensor_files import StreamedTensor, save_tensors, stream_tensors
from tests.helpers.disks import KIB, before_calls, failing, filled, short_writes, small_disk
from tests.helpers.finished_runs import content
from tests.helpers.ranks import run_ranks

CONFIG = """
name: r
output: {output}
dataset: {{source: {log}, window: 8, min_interactions: 3, num_shards: 4}}
model: {{name: gru4rec, width: 32, hidden: 32, dropout: 0}}
training: {{max_epochs: 2, learning_rate: 0.01}}
"""
STAGES = ("prepare", "teach", "label", "distill", "evaluate")


def config_in(folder: Path, output: Path, log: Path) -> str:
    path = folder / f"{output.name}.yaml"
    path.write_text(CONFIG.format(output=output, log=log))
    return str(path)


def results(run: Path) -> dict[str, str]:
    """What a run has computed, by the bytes of its files; what depends on the clock is left out."""
    found = content(run)
    return {name: digest for name, digest in found.items() if name.endswith((".safetensors", ".parquet"))}


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.count("csrec-dist: ") == 1
    assert len(said.splitlines()) == 1, said
    return said


def test_a_full_disk_is_one_sentence_in_every_stage_and_the_same_command_goes_on(
    tmp_path: Path, small_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each stage meets a disk without room, then one that ends while it writes, then one with room."""
    whole = config_in(tmp_path, tmp_path / "whole", small_log)
    assert main(["run", "--config", whole]) == 0
    with small_disk(tmp_path / "disk", 8192 * KIB) as disk:
        config = config_in(tmp_path, disk, small_log)
        for stage in STAGES:
            for left in (0, 8 * KIB, 40 * KIB):
                with filled(disk, left):
                    capsys.readouterr()
                    status = main([stage, "--config", config])
                    if status == 0:
                        break
                    assert status == 1
                    said = one_sentence(capsys)
                    assert str(disk / "r") in said
                    assert "Make room" in said
            else:
                assert main([stage, "--config", config]) == 0
        assert results(disk / "r") == results(tmp_path / "whole/r")
        assert not list(disk.rglob("*.tmp"))


def write_both(folder: Path) -> None:
    for name in ("a.json", "b.json"):
        write_json(folder / name, {})


def write_bytes(path: Path, num_bytes: int) -> None:
    with atomic_path(path, num_bytes) as temporary:
        temporary.write_bytes(bytes(num_bytes))


def write_folder(folder: Path, num_bytes: int) -> None:
    with new_folder(folder) as new:
        (new / "file").write_bytes(bytes(num_bytes))


@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT, errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_whatever_a_disk_answers_is_one_sentence_with_the_file(tmp_path: Path, call: str, number: int) -> None:
    write_both(tmp_path)
    with failing(call, number, tmp_path), pytest.raises(StorageError) as caught:
        write_both(tmp_path)
    path = re.escape(str(tmp_path / ("a.json" if call == "open" else "b.json")))
    assert re.match(rf"{path} cannot be written.*{os.strerror(number)}", str(caught.value))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.json", "b.json"]


def write_parquet(path: Path) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(pa.table({"row": range(1000)}), temporary)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_json(path, list(range(1000))),
        lambda path: save_tensors(path, {"a": torch.arange(1000)}),
        lambda path: stream_tensors(path, {"a": StreamedTensor(torch.int64, (1000,), torch.arange(1000).split(7))}, {}),
        write_parquet,
    ],
    ids=["text", "safetensors", "streamed safetensors", "Parquet"],
)
@pytest.mark.parametrize("num_bytes", [0, 1, 1000])
def test_a_write_that_is_cut_short_is_one_sentence_and_the_old_file_stays(
    tmp_path: Path, write: Callable[[Path], object], num_bytes: int
) -> None:
    write(tmp_path / "file")
    before = content(tmp_path)
    with short_writes(num_bytes), pytest.raises(StorageError, match=rf"{tmp_path}/file cannot be written.*too large"):
        write(tmp_path / "file")
    assert content(tmp_path) == before


@pytest.mark.parametrize("num_bytes", [0, 1, 50])
def test_a_lock_whose_name_is_cut_short_is_not_taken(tmp_path: Path, num_bytes: int) -> None:
    with short_writes(num_bytes), pytest.raises(StorageError, match="too large"):
        FolderLock(tmp_path / "r", "The folder").acquire()
    assert not (tmp_path / "r").exists()


def test_what_is_not_the_disks_fault_is_not_said_to_be(tmp_path: Path) -> None:
    with failing("fsync", errno.EINVAL, tmp_path), pytest.raises(OSError, match="Invalid argument"):
        write_both(tmp_path)


def test_a_full_disk_says_how_much_is_needed_and_free(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64 * KIB) as disk:
        with pytest.raises(StorageError, match=r"/a cannot be .*: No space left on device; 97\.7 KiB are needed, "):
            write_bytes(disk / "a", 100_000)
        with pytest.raises(StorageError, match=r"/d cannot be written: No space left on device"):
            write_folder(disk / "d", 100_000)
        assert not list(disk.iterdir())


def test_room_is_asked_for_before(tmp_path: Path) -> None:
    require_room(tmp_path / "not/there/yet", 1, "The labels")
    with pytest.raises(StorageError, match=rf"The labels take 1\.0 TiB in {tmp_path}, whose disk has .* free"):
        require_room(tmp_path, 1 << 40, "The labels")


@pytest.mark.parametrize(
    ("num_bytes", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 50, "1024.0 TiB")]
)
def test_a_size_for_people(num_bytes: int, shown: str) -> None:
    assert size(num_bytes) == shown


def test_every_failure_of_a_disk_has_a_name() -> None:
    assert all(os.strerror(number) for number in FAILURES)


RUN = """
name: small
dataset: {path: %s}
model: {name: gru4rec, width: 8, dropout: 0}
training: {batch_size: 7, max_epochs: 1, learning_rate: 0.01, checkpoint_steps: 2}
distributed: {reassign: false}
"""


def meet_a_full_disk(
    rank: int, world_size: int, folder: str, dataset: str, full: int, fails_at: str, *overrides: str
) -> str:
    """What this rank raises when the disk of rank `full` is full at the first file with `fails_at` in its path."""
    path = Path(folder, f"config-{rank}.yaml")
    path.write_text(RUN % dataset)

    def fail(call: str, name: str) -> None:
        if call == "open" and rank == full and fails_at in name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    with before_calls(Path(folder), fail):
        try:
            with Runtime.start() as runtime:
                execute(load_config(path, [f"output={folder}", *overrides]), runtime)
        except (StorageError, RankFailure) as error:
            return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("fails_at", ["teacher-1/.metrics.json", "teacher-1/.step-", "labels/.labels-"])
def test_what_the_first_rank_of_a_group_cannot_write_is_said_on_all_of_it_and_repeated_by_others(
    tmp_path: Path, small_dataset: Path, fails_at: str
) -> None:
    """Rank 1 trains the second member with rank 2, and labels shards of its own."""
    assert [slot.ranks for slot in teaching_rounds([0, 1], 3, 1)[0]] == [(0,), (1, 2)]
    found = run_ranks(meet_a_full_disk, 3, str(tmp_path), str(small_dataset), 1, fails_at)
    of_disk = [said for said in found if said.startswith("StorageError")]
    assert len(set(of_disk)) == 1
    assert "No space left on device" in of_disk[0]
    assert len(of_disk) == (2 if "teacher" in fails_at else 1)
    for said in found:
        assert said in of_disk or "because of this:" in said or "The ranks' store is gone" in said, said


@pytest.mark.parametrize(("full", "fails_at"), [(0, "student/.model.safetensors"), (1, "ranks/.student")])
def test_ranks_that_share_a_table_are_not_left_waiting_in_a_collective_for_one_that_cannot_write(
    tmp_path: Path, small_dataset: Path, full: int, fails_at: str
) -> None:
    """It writes what they compute together, one block or batch after the other."""
    overrides = ["method=base", "distributed.catalog_parallel=2"]
    found = run_ranks(meet_a_full_disk, 2, str(tmp_path), str(small_dataset), full, fails_at, *overrides)
    assert "No space left on device" in found[full]
    assert found[full].startswith("StorageError")
    other = found[1 - full]
    assert other.startswith("RankFailure")
    assert "because of this:" in other or "The ranks' store is gone" in other, other
