"""One process without what only Linux has: /proc, CPU affinities, advice to the page cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from csrec_dist.files import read_json

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_LINUX = """
import builtins, io, os, sys
import torch, psutil, datasets, accelerate  # they choose by the system that they run on, and are not to be fooled
del os.sched_getaffinity, os.posix_fadvise
sys.platform = "darwin"
opened = io.open
def open_elsewhere(path, *rest, **options):
    if str(path).startswith(("/proc/", "/sys/")) and "csrec_dist" in sys._getframe(2).f_code.co_filename:
        raise FileNotFoundError(path)
    return opened(path, *rest, **options)
io.open = open_elsewhere
from csrec_dist.cli import main
sys.exit(main())
"""


def elsewhere(folder: Path, *arguments: str) -> str:
    """What a command prints on a system that is not Linux."""
    command = [sys.executable, "-c", WITHOUT_LINUX, *arguments]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_doctor_says_what_the_machine_has(tmp_path: Path) -> None:
    assert f"{os.cpu_count()} of them usable" in elsewhere(tmp_path, "doctor")


@pytest.mark.long
def test_a_run_gives_the_same(tmp_path: Path, finished_run: tuple[Path, Path]) -> None:
    config, folder = finished_run
    elsewhere(tmp_path, "run", "--config", str(config), "--set", f"output={tmp_path}")
    assert read_json(tmp_path / folder.name / "metrics.json") == read_json(folder / "metrics.json")
