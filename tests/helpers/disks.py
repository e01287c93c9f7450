"""Small disks that can be filled, calls of the system that fail, and writes that are cut short."""

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

KIB = 1024


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A disk of this size in memory, mounted at a new folder; the test is skipped where that is not allowed."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={num_bytes}", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], capture_output=True, check=False).returncode != 0:
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(disk: Path, left: int) -> Iterator[None]:
    """Within the block a disk has only so many bytes left, by a file on it."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(max(shutil.disk_usage(disk).free - left, 0)))
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def before_calls(folder: Path, act: Callable[[str, str], None]) -> Iterator[None]:
    """Within the block `act(call, path)` comes before each os.open, fsync and replace of a path in `folder`.

    These are the points between which a file is written, synced and renamed: see csrec_dist/files.py.
    """

    def acting(call: str) -> Callable[..., Any]:
        real = getattr(os, call)

        def acted(target: Any, *arguments: Any, **options: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
            if path.startswith(str(folder)):
                act(call, path)
            return real(target, *arguments, **options)

        return acted

    with pytest.MonkeyPatch.context() as patch:
        for call in ("open", "fsync", "replace"):
            patch.setattr(os, call, acting(call))
        yield


def cut_next_file(num_bytes: int) -> None:
    """Have the system take only so many bytes of each file of this process until it has refused more of one.

    The write that goes beyond is cut short, and the next one fails with EFBIG: also those of safetensors and Arrow,
    which no patched function sees. `lift_limit` handles SIGXFSZ then, as the main thread has asked for before.
    """
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def lift_limit(*_: object) -> None:
    """Let files be of any size again. The system's own way with SIGXFSZ would end the process."""
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))


@contextmanager
def short_writes(num_bytes: int) -> Iterator[None]:
    """Within the block a file is cut as by `cut_next_file`."""
    before = signal.signal(signal.SIGXFSZ, lift_limit)
    cut_next_file(num_bytes)
    try:
        yield
    finally:
        lift_limit()
        signal.signal(signal.SIGXFSZ, before)


@contextmanager
def failing(call: str, number: int, folder: Path) -> Iterator[None]:
    """Within the block a call of `os` on a path in `folder` fails with an error, the second time that it is made."""
    num_calls = 0

    def act(name: str, path: str) -> None:
        nonlocal num_calls
        num_calls += name == call
        if name == call and num_calls == 2:
            raise OSError(number, os.strerror(number), path)

    with before_calls(folder, act):
        yield
