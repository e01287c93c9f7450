"""A run's folder is one run's: a second one is refused, and a dead one is no obstacle."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from csrec_dist.cli import main
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare
from csrec_dist.errors import SharedUserError, UserError
from csrec_dist.lock import FolderLock, Holder, locked, remove_dead_locks
from csrec_dist.writers import LEASE_SECONDS, machine, remove_leftovers, writer_name
from tests.helpers.finished_runs import refused
from tests.helpers.study_files import write_study

ROOT = Path(__file__).resolve().parents[1]
WHAT = "The folder"
HOLD = """
import sys
from pathlib import Path
from csrec_dist.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]), "The folder")
lock.acquire()
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def config(tmp_path: Path, small_log: Path) -> str:
    path = tmp_path / "config.yaml"
    dataset = f"{{source: {small_log}, window: 8, min_interactions: 3, num_shards: 4}}"
    path.write_text(f"name: r\noutput: {tmp_path / 'runs'}\ndataset: {dataset}\nmodel: {{name: gru4rec}}\n")
    return str(path)


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that has the folder's lock until it is killed."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_folder_in_use_is_refused_by_the_name_of_its_process_until_that_is_killed(
    tmp_path: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs/r"
    with holder(run) as other:
        try:
            assert main(["prepare", "--config", config]) == 2
            assert (
                f"{run} is in use by process {other.pid} on {socket.gethostname()}, which began"
                in capsys.readouterr().err
            )
            assert [path.name for path in run.iterdir()] == [".lock"]
        finally:
            other.kill()
    assert str(other.pid) in (run / ".lock").read_text(), "it had no time to tidy up"
    assert main(["prepare", "--config", config]) == 0
    assert not (run / ".lock").exists()


def test_a_lock_is_released_and_names_its_holder_meanwhile(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path / "r", WHAT), FolderLock(tmp_path / "r", WHAT)
    first.acquire()
    with pytest.raises(UserError, match=f"process {os.getpid()} on"):
        second.acquire()
    second.release()
    with pytest.raises(UserError, match=f"process {os.getpid()} on"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_a_lock_on_a_file_that_its_holder_removes_meanwhile_is_taken_on_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, flock = FolderLock(tmp_path / "r", WHAT), FolderLock(tmp_path / "r", WHAT), fcntl.flock
    first.acquire()

    def flock_after_the_release(file: int, operation: int) -> None:
        first.release()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock_after_the_release)
    second.acquire()
    assert (tmp_path / "r/.lock").exists()
    with pytest.raises(UserError, match="in use"):
        FolderLock(tmp_path / "r", WHAT).acquire()


KEEP = """
import sys
from pathlib import Path
from csrec_dist.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]), "The folder")
with lock.released_when_ranks_are_done(2):
    lock.acquire()
    sys.exit(3)
"""


def status_of_another(code: str, folder: Path) -> tuple[int, str]:
    """The exit status of a process that takes the folder's lock and ends, and what it says."""
    command = [sys.executable, "-c", code, str(folder)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def fail(lock: FolderLock, world_size: int, error: Exception) -> None:
    """What a run does that fails while it has the lock."""
    with lock.released_when_ranks_are_done(world_size):
        lock.acquire()
        raise error


def test_after_an_error_of_one_rank_its_process_alone_may_begin_again(tmp_path: Path) -> None:
    """The other ranks may write for a while: they are those that begin again, or a launcher ends them all."""
    failed, again = FolderLock(tmp_path / "r", WHAT), FolderLock(tmp_path / "r", WHAT)
    with pytest.raises(UserError, match="of one rank"):
        fail(failed, 2, UserError("of one rank"))
    status, said = status_of_another(HOLD, tmp_path / "r")
    assert status == 1
    assert f"in use by process {os.getpid()} on" in said
    with again.released_when_ranks_are_done(2):
        again.acquire()
        assert status_of_another(HOLD, tmp_path / "r")[0] == 1
        failed.release()
        assert status_of_another(HOLD, tmp_path / "r")[0] == 1, "the lock is no longer the failed one's"
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("world_size", "error"), [(1, UserError), (2, SharedUserError)])
def test_after_an_error_of_all_ranks_any_process_may_begin(
    tmp_path: Path, world_size: int, error: type[UserError]
) -> None:
    lock = FolderLock(tmp_path / "r", WHAT)
    with pytest.raises(error, match="of all"):
        fail(lock, world_size, error("of all"))
    assert not (tmp_path / "r").exists()


def test_a_process_that_ends_by_an_error_of_one_rank_leaves_no_lock(tmp_path: Path) -> None:
    """A file with its name would keep other machines waiting for the lease."""
    assert status_of_another(KEEP, tmp_path / "r") == (3, "")
    assert not (tmp_path / "r").exists()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no locks: what is held there is held by the lease alone."""

    def flock(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_name_in_the_file_decides(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path / "r", WHAT), FolderLock(tmp_path / "r", WHAT)
    first.acquire()
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()
    assert not (tmp_path / "r").exists()


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"started": 1.0}])
def test_without_locks_a_dead_process_of_this_machine_is_replaced_at_once(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    """Its number is nobody's, or another process's by now."""
    (tmp_path / ".lock").write_text(json.dumps(asdict(replace(Holder.this(), **change))))
    lock = FolderLock(tmp_path, WHAT)
    lock.acquire()
    lock.release()


ELSEWHERE = Holder("elsewhere", 7, 1.0, "another boot pid:[1]")
NAMESAKE = replace(ELSEWHERE, host=socket.gethostname(), pid=os.getpid())


@pytest.fixture(params=[0, 86400], ids=["the clocks agree", "this clock is a day ahead"])
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's clock, beside that of the disk's server."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + request.param)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("other", [ELSEWHERE, NAMESAKE], ids=["elsewhere", "namesake"])
@pytest.mark.parametrize("seconds", [0, LEASE_SECONDS / 2, LEASE_SECONDS + 60])
def test_a_process_of_another_machine_is_replaced_when_it_was_not_heard_of_for_the_lease(
    tmp_path: Path, seconds: float, other: Holder
) -> None:
    """A machine may have another one's name, and a clock that is not the server's."""
    path = tmp_path / ".lock"
    path.write_text(json.dumps(asdict(other)))
    last_beat = path.stat().st_mtime - seconds
    os.utime(path, (last_beat, last_beat))
    before, lock = path.stat(), FolderLock(tmp_path, WHAT)
    if seconds > LEASE_SECONDS:
        lock.acquire()
        lock.release()
        return
    with pytest.raises(UserError, match=f"in use by process {other.pid} on {other.host}, which began at 1970"):
        lock.acquire()
    assert (path.stat().st_mtime, path.read_text()) == (before.st_mtime, json.dumps(asdict(other)))
    assert os.listdir(tmp_path) == [".lock"]


@pytest.mark.parametrize("has_locks", [True, False])
def test_of_a_process_in_another_container_the_kernel_tells_or_else_the_heartbeat(
    tmp_path: Path, has_locks: bool, request: pytest.FixtureRequest
) -> None:
    """Its number means nothing here, where another process may have it."""
    if not has_locks:
        request.getfixturevalue("no_locks")
    other = replace(Holder.this(), pid=2**22 + 1, machine=f"{machine().partition(' ')[0]} pid:[1]")
    (tmp_path / ".lock").write_text(json.dumps(asdict(other)))
    lock = FolderLock(tmp_path, WHAT)
    if has_locks:
        lock.acquire()
        lock.release()
    else:
        with pytest.raises(UserError, match="in use by process"):
            lock.acquire()


def test_a_beat_renews_the_lease_and_notices_who_has_taken_it_over(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path, WHAT)
    lock.acquire()
    os.utime(tmp_path / ".lock", (0, 0))
    assert lock.beat()
    assert (tmp_path / ".lock").stat().st_mtime > 0
    (tmp_path / ".lock").write_text(json.dumps(asdict(ELSEWHERE)))
    assert not lock.beat()
    lock.release()
    assert (tmp_path / ".lock").exists(), "it is the other's now"


def test_a_lock_beside_a_folder_that_has_yet_to_appear(tmp_path: Path) -> None:
    with locked(tmp_path / "d", WHAT, beside=True):
        assert [path.name for path in tmp_path.iterdir()] == [".d.lock"]
        with pytest.raises(UserError, match="in use"):
            FolderLock(tmp_path / "d", WHAT, beside=True).acquire()
    assert not list(tmp_path.iterdir())


def test_a_second_preparation_of_a_dataset_is_refused_and_touches_nothing(tmp_path: Path, small_log: Path) -> None:
    options = DatasetOptions(source=str(small_log), min_interactions=3, window=8)
    with locked(tmp_path / "d", WHAT, beside=True), pytest.raises(UserError, match=r"The dataset's folder .* in use"):
        prepare(options, tmp_path / "d")
    assert not list(tmp_path.iterdir())
    prepare(options, tmp_path / "d")
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_second_start_of_a_study_is_refused_and_touches_nothing(
    tmp_path: Path, small_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, folder = write_study(tmp_path, small_log), tmp_path / "o/small"
    with locked(folder, WHAT):
        assert "The study's folder" in refused(capsys, "study", str(study), "--output", str(folder.parent))
        assert [path.name for path in folder.iterdir()] == [".lock"]
        assert main(["study", str(study), "--output", str(folder.parent), "--results"]) == 0, "readers may"
    assert not (folder / ".lock").exists()


@pytest.mark.usefixtures("clock")
def test_what_dead_processes_were_writing_is_removed_by_the_next_start(tmp_path: Path) -> None:
    here, mine = writer_name().rsplit("-", 1)
    dead, living = (f".a.json.{here}-{process}-{'0' * 16}.tmp" for process in (2**22 + 1, int(mine)))
    host = here.rpartition("_")[0]  # which another machine has, too
    elsewhere, forgotten = (f".{name}.json.{host}_01234567-{2**22 + 1}-{'0' * 16}.tmp" for name in "bc")
    run = tmp_path / "r"
    (run / "student").mkdir(parents=True)
    for name in (dead, living, elsewhere, forgotten, ".mine.tmp"):
        (run / "student" / name).touch()
    os.utime(run / "student" / forgotten, (0, 0))
    (tmp_path / dead.replace("a.json", "r")).mkdir()
    (tmp_path / dead.replace("a.json", "r") / "part").touch()
    remove_leftovers(run, inside=True)
    assert {path.name for path in (run / "student").iterdir()} == {living, elsewhere, ".mine.tmp"}
    remove_leftovers(run)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_a_holder_that_is_not_named_yet_is_another_process(tmp_path: Path) -> None:
    first = FolderLock(tmp_path, WHAT)
    first.acquire()
    (tmp_path / ".lock").write_text("")
    with pytest.raises(UserError, match="in use by another process"):
        FolderLock(tmp_path, WHAT).acquire()
    first.release()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not writable: Not a directory"):
        FolderLock(tmp_path / "file/r", WHAT).acquire()


def test_locks_that_killed_processes_left_in_a_run_are_removed_and_those_in_use_stay(tmp_path: Path) -> None:
    dead = json.dumps(asdict(replace(Holder.this(), pid=2**22 + 1)))
    (tmp_path / "labels").mkdir()
    for name in (".lock", ".dataset.lock", "labels/.lock"):
        (tmp_path / name).write_text(dead)
    with locked(tmp_path / "used", WHAT, beside=True):
        remove_dead_locks(tmp_path)
        assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", ".used.lock", "labels"]
    assert (tmp_path / ".lock").read_text() == dead, "the folder's own is its holder's"
