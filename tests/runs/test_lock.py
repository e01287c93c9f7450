"""A run's folder is one run's: a second one is refused, and a dead one is no obstacle."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from csrec_dist.cli import main
from csrec_dist.errors import UserError
from csrec_dist.runs.lock import RunLock

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from csrec_dist.runs.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
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
            assert f"{run} is in use by process {other.pid} on {socket.gethostname()}." in capsys.readouterr().err
            assert [path.name for path in run.iterdir()] == [".lock"]
        finally:
            other.kill()
    assert str(other.pid) in (run / ".lock").read_text(), "it had no time to tidy up"
    assert main(["prepare", "--config", config]) == 0
    assert (run / ".lock").read_text() == ""


def test_a_lock_is_released_and_names_its_holder_meanwhile(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path / "r"), RunLock(tmp_path / "r")
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
    first, second, flock = RunLock(tmp_path / "r"), RunLock(tmp_path / "r"), fcntl.flock
    first.acquire()

    def flock_after_the_release(file: int, operation: int) -> None:
        first.release()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock_after_the_release)
    second.acquire()
    assert (tmp_path / "r/.lock").exists()
    with pytest.raises(UserError, match="in use"):
        RunLock(tmp_path / "r").acquire()


def test_a_file_system_without_locks_protects_nothing_and_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for lock in (RunLock(tmp_path / "r"), RunLock(tmp_path / "r")):
        lock.acquire()
        lock.release()


def test_a_holder_that_is_not_named_yet_is_another_process(tmp_path: Path) -> None:
    first = RunLock(tmp_path)
    first.acquire()
    (tmp_path / ".lock").write_text("")
    with pytest.raises(UserError, match="in use by another process"):
        RunLock(tmp_path).acquire()
    first.release()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not writable: Not a directory"):
        RunLock(tmp_path / "file/r").acquire()
