"""Small disks that can be filled, and calls of the system that fail."""

import os
import shutil
import subprocess
from collections.abc import Iterator
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
def failing(call: str, number: int, folder: Path) -> Iterator[list[str]]:
    """Within the block a call of `os` on a path in `folder` fails with an error, when it is made for the second time.

    Yields the paths on which it was called.
    """
    real, called = getattr(os, call), []

    def fail(target: Any, *arguments: Any, **options: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
        if path.startswith(str(folder)):
            called.append(path)
            if len(called) == 2:
                raise OSError(number, os.strerror(number), path)
        return real(target, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, fail)
        yield called
