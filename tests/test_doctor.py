"""The doctor finds what works and what does not, without changing anything."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from csrec_dist import doctor
from csrec_dist.distributed.selfcheck import backends, try_all_reduce
from csrec_dist.doctor import check_machine, launcher, writable


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


def test_all_is_checked_and_a_broken_network_is_not_ok(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def version(name: str) -> str:
        if name == "polars":
            raise PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(doctor, "try_all_reduce", lambda: "the network is down")
    monkeypatch.setattr(doctor, "version", version)
    checks = {check.name: check for check in check_machine(tmp_path / "runs")}
    expected = {"Python", "torch", "deepspeed", "processor", "GPUs", "gloo", "NCCL", "two processes", "launcher"}
    assert expected <= checks.keys()
    assert [name for name, check in checks.items() if not check.ok] == ["polars", "two processes"]
    assert checks["two processes"].text == "the network is down"
    assert not any(tmp_path.iterdir())


def test_the_launcher_is_shown_and_a_wrong_one_is_not_ok() -> None:
    assert launcher({"HOME": "/root"}).text == "none: this is a single process"
    right = launcher({"RANK": "1", "WORLD_SIZE": "2", "HOME": "/root"})
    assert right.ok
    assert right.text == "RANK=1, WORLD_SIZE=2"
    wrong = launcher({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"})
    assert not wrong.ok
    assert "--multi_gpu" in wrong.text


def test_an_output_below_a_file_is_not_ok(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not writable(tmp_path / "file").ok
    assert not writable(tmp_path / "file" / "runs").ok
    assert writable(tmp_path / "a" / "b").ok
    assert not (tmp_path / "a").exists()


def test_an_output_without_permission_is_not_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: Path(path) != tmp_path)
    assert not writable(tmp_path / "runs").ok
