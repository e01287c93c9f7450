"""The doctor finds what works and what does not, without changing anything."""

import errno
import fcntl
import json
import os
import resource
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from csrec_dist.cli import main
from csrec_dist.distributed import Runtime
from csrec_dist.distributed.selfcheck import backends, try_all_reduce
from csrec_dist.doctor import check_machine, machine, ranks
from csrec_dist.doctor.machine import disk, launcher, limits, shared_memory
from tests.helpers.ranks import run_ranks


@pytest.mark.launch
def test_two_processes_reduce_over_gloo() -> None:
    assert backends()["gloo"]
    assert try_all_reduce(2, timeout_seconds=120) is None


@pytest.mark.launch
def test_a_process_that_fails_is_named_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-device")
    problem = try_all_reduce(2, timeout_seconds=120)
    assert problem is not None
    assert "rank 0 ended with status 1" in problem
    assert "no-such-device" in problem


def test_processes_that_do_not_answer_are_stopped() -> None:
    assert "no answer within 0.01 s" in (try_all_reduce(2, timeout_seconds=0.01) or "")


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check that starts two processes does not."""
    monkeypatch.setattr(machine, "try_all_reduce", lambda: None)


def test_all_is_checked_and_a_broken_network_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def version(name: str) -> str:
        if name == "polars":
            raise PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(machine, "try_all_reduce", lambda: "the network is down")
    monkeypatch.setattr(machine, "version", version)
    checks = {check.name: check for check in check_machine(tmp_path / "runs")}
    expected = {"Python", "torch", "deepspeed", "processor", "threads", "limits", "GPUs", "gloo", "NCCL"}
    expected |= {"shared memory", "name", "ports", "two processes", "launcher", "compiler", "output", "disk"}
    assert expected <= checks.keys()
    assert [name for name, check in checks.items() if check.status == "FAIL"] == ["polars", "two processes"]
    assert checks["two processes"].text == "the network is down"
    assert not any(tmp_path.iterdir())


def test_a_port_that_is_none_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "99999")
    [ports] = [check for check in check_machine(tmp_path) if check.name == "ports"]
    assert (ports.status, ports.text) == ("FAIL", "port 99999 cannot be listened at: it is none; set MASTER_PORT")


def test_the_launcher_is_shown_and_a_wrong_one_is_a_failure() -> None:
    assert launcher({"HOME": "/root"}).text == "none: this is a single process"
    right = launcher({"RANK": "1", "WORLD_SIZE": "2", "HOME": "/root"})
    assert right.status == "ok"
    assert right.text == "RANK=1, WORLD_SIZE=2"
    wrong = launcher({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"})
    assert wrong.status == "FAIL"
    assert "--multi_gpu" in wrong.text
    for_another = {"RANK": "0", "WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}
    assert launcher(for_another, "fsdp").status == "ok"
    assert "distributed.engine is ddp" in launcher(for_another).text


def test_a_disk_is_written_to_and_left_as_it_was(tmp_path: Path) -> None:
    output, speed = disk(tmp_path / "a" / "b")
    assert output.status == "ok"
    assert "are free" in output.text
    assert speed.text.startswith("32.0 MiB are written and synced at")
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "runs"):
        assert [check.status for check in disk(output)] == ["FAIL"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
        assert [check.status for check in disk(tmp_path / "runs")] == ["FAIL"]

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    assert [check.status for check in disk(tmp_path)] == ["ok", "FAIL"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_too_little_of_something_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shared_memory(tmp_path / "none").status == "ok"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(total=2**26, used=2**26, free=100))
    assert shared_memory(tmp_path).status == "WARN"
    assert [check.status for check in disk(tmp_path)] == ["WARN"], "there is no room to measure its speed"
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (100, 100))
    assert limits().status == "WARN"
    monkeypatch.setattr(machine, "cgroup_quota", lambda: 1.0)
    assert machine.threads({"OMP_NUM_THREADS": "2"}).status == "WARN"
    assert machine.threads({}).status == "ok"
    assert machine.threads({"LOCAL_WORLD_SIZE": "1"}).text.startswith("1 rank(s) of 1 thread(s) here; ")


@pytest.mark.usefixtures("no_processes")
def test_the_status_says_whether_a_run_would_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--output", str(tmp_path / "runs"), "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)
    assert {each["status"] for each in checks} <= {"ok", "WARN"}
    assert {"name", "status", "text"} == checks[0].keys()
    settings = f"name: r\noutput: {tmp_path / 'file'}\ndataset: {{source: log.csv}}\ndistributed: {{engine: fsdp}}\n"
    (tmp_path / "config.yaml").write_text(settings)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert main(["doctor", "--config", str(tmp_path / "config.yaml")]) == 1
    said = capsys.readouterr().out
    assert "FAIL launcher" in said
    assert "FAIL output" in said


def examine(rank: int, world_size: int, folder: str, fault: str) -> list[tuple[str, str, str]]:
    """The checks between the ranks, as this rank got them, with a fault on rank 1."""
    with pytest.MonkeyPatch.context() as patch, Runtime.start() as runtime:
        patch.setattr(ranks, "check_machine", lambda *_: [])
        patch.setattr(ranks, "VISIBLE_SECONDS", 0.2)
        patch.setattr(ranks, "CLOCK_SECONDS", 50.0)  # no limit that a busy machine may pass
        patch.setattr(ranks, "SLOW_LINK", 2**60 if fault == "slow" else 0)
        if fault == "no locks":
            patch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
        if fault == "read-only":
            patch.setattr(
                Path, "mkdir", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only file system"))
            )
        if rank == 1 and fault == "version":
            patch.setattr(ranks, "installed_version", lambda name: "0.1")
        if rank == 1 and fault == "package":
            patch.setattr(machine, "version", lambda name: (_ for _ in ()).throw(PackageNotFoundError(name)))
        if rank == 1 and fault == "clock":
            now = ranks.time.time
            patch.setattr(ranks.time, "time", lambda: now() - 100)
        if rank == 1 and fault == "another disk":
            exists = os.path.exists
            patch.setattr(os.path, "exists", lambda path: "renamed" not in str(path) and exists(path))
        if rank == 1 and fault == "permission":
            opened = Path.open

            def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
                if path.name == "renamed":
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                return opened(path, *arguments, **options)

            patch.setattr(Path, "open", refuse)
        if rank == 1 and fault == "local locks":
            patch.setattr(fcntl, "flock", lambda *_: None)
        checks = ranks.check_ranks(runtime, Path(folder) / "runs")
        return [(check.name, check.status, check.text) for check in checks]


@pytest.mark.parametrize(
    ("fault", "name", "status"),
    [
        ("", "", "ok"),
        ("version", "versions", "FAIL"),
        ("package", "versions", "FAIL"),
        ("clock", "clocks", "WARN"),
        ("another disk", "shared disk", "FAIL"),
        ("read-only", "shared disk", "FAIL"),
        ("permission", "locks", "FAIL"),
        ("no locks", "locks", "WARN"),
        ("local locks", "locks", "WARN"),
        ("slow", "all-reduce", "WARN"),
    ],
)
def test_the_ranks_of_a_launch_are_checked_together(tmp_path: Path, fault: str, name: str, status: str) -> None:
    first, second = run_ranks(examine, 2, str(tmp_path), fault)
    assert first == second
    assert {each: found for each, found, _ in first if found != "ok"} == ({name: status} if name else {})
    assert not list(tmp_path.iterdir())
    words = {"version": "torch is 2", "package": "missing on rank 1", "permission": "rank 1: Permission denied"}
    assert words.get(fault, "") in " ".join(text for _, _, text in first)
