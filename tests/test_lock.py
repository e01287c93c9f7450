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

import psutil
import pytest

from csrec_dist.cli import main
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare
from csrec_dist.errors import SharedUserError, StorageError, UserError
from csrec_dist.experiments.tune.running import PrunedError
from csrec_dist.lock import (
    HEARTBEAT_SECONDS,
    LONGEST_WAIT_SECONDS,
    LOOK_SECONDS,
    FolderLock,
    Holder,
    locked,
    remove_dead_locks,
)
from csrec_dist.writers import LEASE_SECONDS, is_running, machine, remove_leftovers, started, writer_name
from tests.helpers.finished_runs import refused
from tests.helpers.ranks import wait_until
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
            assert f"{run} is in use by process {other.pid} on {socket.gethostname()} since" in capsys.readouterr().err
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


@pytest.mark.parametrize(
    ("world_size", "error", "may_begin"),
    [
        (1, UserError("of all"), True),
        (2, SharedUserError("of all"), True),
        (2, StorageError("of all", is_shared=True, is_of_all=True), True),
        (2, PrunedError("of all"), True),
        (3, SharedUserError("of a group", is_of_all=False), False),
        (3, StorageError("of a group", is_shared=True), False),
    ],
)
def test_any_process_may_begin_after_an_error_of_all_ranks_and_none_after_that_of_a_group(
    tmp_path: Path, world_size: int, error: Exception, may_begin: bool
) -> None:
    """The other groups may write for a while."""
    lock = FolderLock(tmp_path / "r", WHAT)
    with pytest.raises(type(error), match="of a"):
        fail(lock, world_size, error)
    assert (tmp_path / "r").exists() != may_begin
    assert (status_of_another(HOLD, tmp_path / "r")[0] == 0) == may_begin
    lock.release()


def test_a_disk_that_fails_when_the_lock_is_released_raises_nothing_that_would_hide_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_to_read(*_: Any) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    lock = FolderLock(tmp_path / "r", WHAT)
    lock.acquire()
    monkeypatch.setattr(os, "pread", fail_to_read)
    lock.release()
    monkeypatch.undo()
    with locked(tmp_path / "r", WHAT):
        pass


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
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere psutil says it")
def test_a_process_began_when_the_kernel_says_by_no_clock_that_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        began, now = started(process.pid), time.clock_gettime(time.CLOCK_BOOTTIME)
        assert began is not None
        assert now - 60 < began <= now
        monkeypatch.setattr(psutil, "boot_time", lambda: 0.0)
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert is_running(process.pid, began)
        assert not is_running(process.pid, began - 0.01)
        process.kill()
        wait_until(lambda: started(process.pid) is None, 60, "the process to end")  # a zombie has ended
        assert Path(f"/proc/{process.pid}").exists()
    assert not is_running(process.pid, began)


@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"started": 1.0}])
def test_without_locks_a_dead_process_of_this_machine_is_replaced_at_once(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    """Its number is nobody's, or another process's by now."""
    (tmp_path / ".lock").write_text(json.dumps(asdict(replace(Holder.this(), **change))))
    lock = FolderLock(tmp_path, WHAT)
    lock.acquire()
    lock.release()


ELSEWHERE = Holder("elsewhere", 1.0, 7, 1.0, "another boot pid:[1]")
NAMESAKE = replace(ELSEWHERE, host=socket.gethostname(), pid=os.getpid())


@pytest.fixture(params=[0, 86400], ids=["the clocks agree", "this clock is a day ahead"])
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's clock, beside that of the disk's server."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + request.param)


class Waited:
    """Seconds that a start has waited for a process of another machine; the test's clock alone goes on meanwhile."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seconds, self.heard_after, self.path = 0.0, float("inf"), Path()
        silence, monotonic = FolderLock._silence, time.monotonic
        patch.setattr(time, "sleep", self.sleep)
        patch.setattr(time, "monotonic", lambda: monotonic() + self.seconds)
        patch.setattr(FolderLock, "_silence", lambda lock: silence(lock) + self.seconds)

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        if self.seconds >= self.heard_after:
            os.utime(self.path)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> Waited:
    return Waited(monkeypatch)


def held_elsewhere(path: Path, other: Holder, seconds: float) -> None:
    """A lock file of a process that was heard of so many seconds ago."""
    path.write_text(json.dumps(asdict(other)))
    last_beat = path.stat().st_mtime - seconds
    os.utime(path, (last_beat, last_beat))


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("other", [ELSEWHERE, NAMESAKE], ids=["elsewhere", "namesake"])
@pytest.mark.parametrize("seconds", [0, LEASE_SECONDS / 2, LEASE_SECONDS + 60])
def test_a_dead_process_of_another_machine_is_replaced_when_its_lease_has_ended(
    tmp_path: Path, waited: Waited, capsys: pytest.CaptureFixture[str], seconds: float, other: Holder
) -> None:
    """A machine may have another one's name, and a clock that is not the server's."""
    held_elsewhere(tmp_path / ".lock", other, seconds)
    with locked(tmp_path, WHAT):
        assert Holder.parse((tmp_path / ".lock").read_text()) == Holder.this()
    left = max(LEASE_SECONDS - seconds, 0)
    assert left <= waited.seconds <= left + 2 * LOOK_SECONDS
    said = f"was in use by process {other.pid} on {other.host} since 1970"
    assert (said in capsys.readouterr().err) == bool(left)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("heard_after", [0, HEARTBEAT_SECONDS])
def test_a_living_process_of_another_machine_is_waited_for_until_it_is_heard_of(
    tmp_path: Path, waited: Waited, heard_after: float
) -> None:
    path = tmp_path / ".lock"
    held_elsewhere(path, ELSEWHERE, LEASE_SECONDS / 2)
    waited.path, waited.heard_after = path, heard_after
    with pytest.raises(UserError, match=f"in use by process {ELSEWHERE.pid} on {ELSEWHERE.host} since 1970"):
        FolderLock(tmp_path, WHAT).acquire()
    assert heard_after <= waited.seconds <= heard_after + LOOK_SECONDS
    assert path.read_text() == json.dumps(asdict(ELSEWHERE))
    assert os.listdir(tmp_path) == [".lock"]


def test_a_kernel_lock_that_a_dead_machine_has_left_on_the_server_is_waited_for_no_longer_than_is_said(
    tmp_path: Path, waited: Waited, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers free the locks of a dead machine after a time of their own."""
    held_elsewhere(tmp_path / ".lock", ELSEWHERE, 0)
    flock, freed_after = fcntl.flock, 1.5 * LEASE_SECONDS

    def flock_when_freed(file: int, operation: int) -> None:
        if waited.seconds < freed_after:
            raise BlockingIOError
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock_when_freed)
    with locked(tmp_path, WHAT):
        assert waited.seconds >= freed_after
    held_elsewhere(tmp_path / ".lock", ELSEWHERE, 0)
    waited.seconds, freed_after = 0.0, float("inf")
    with pytest.raises(UserError, match="in use by process"):
        FolderLock(tmp_path, WHAT).acquire()
    assert waited.seconds <= LONGEST_WAIT_SECONDS + 2 * LOOK_SECONDS


@pytest.mark.parametrize("has_locks", [True, False])
def test_of_a_process_in_another_container_the_kernel_tells_or_else_the_heartbeat(
    tmp_path: Path, waited: Waited, has_locks: bool, request: pytest.FixtureRequest
) -> None:
    """Its number means nothing here, where another process may have it."""
    if not has_locks:
        request.getfixturevalue("no_locks")
    other = replace(Holder.this(), pid=2**22 + 1, machine=f"{machine().partition(' ')[0]} pid:[1]")
    held_elsewhere(tmp_path / ".lock", other, 0)
    with locked(tmp_path, WHAT):
        assert bool(waited.seconds) != has_locks


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
