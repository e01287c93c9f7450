"""What the bits of a training depend on besides its settings: the code, torch, the processor, threads and ranks."""

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from csrec_dist import __version__

PACKAGE = Path(__file__).resolve().parent
NAMES = ("commit", "torch", "processor", "threads", "ranks")


def environment(num_ranks: int) -> dict[str, Any]:
    """Of this process, as one of `num_ranks`: by the names of `NAMES`."""
    import torch

    return {
        "commit": commit(),
        "torch": torch.__version__,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "ranks": num_ranks,
    }


@cache
def commit() -> str:
    """The commit of the package's code, marked where it was changed since; outside of a checkout its version."""
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return f"version {__version__}"
    changed = _git("status", "--porcelain", "--", ".")
    return f"{_git('rev-parse', '--short=12', 'HEAD')}{' with changes' if changed else ''}"


@cache
def processor() -> str:
    """The GPU's name, or without one the CPU's and the instructions that torch uses of it."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _git(*arguments: str) -> str | None:
    """What git says of the package's folder; None where it is no part of a checkout, or git is not there."""
    try:
        # The user's own git, found as their shell finds it; the arguments are constants.
        command = ["git", "-C", str(PACKAGE), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # nosec B603
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
