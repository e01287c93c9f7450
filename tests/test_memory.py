"""What is freed is used again, without asking the system for the same pages at every step, or goes back to it."""

import os
import platform
import subprocess
import sys

import pytest

from csrec_dist.memory import OWN_SETTINGS

STEPS = """
import resource, sys, torch
from csrec_dist.memory import set_allocator
if sys.argv[1] == "keep":
    assert set_allocator()
torch.set_num_threads(1)
layers = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8)), torch.nn.GELU())
def steps(number):
    for _ in range(number):
        layers(torch.ones(6000, 256)).square().sum().backward()
steps(5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
steps(10)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PIECES = """
import resource, sys, torch
from pathlib import Path
from csrec_dist.memory import set_allocator
assert set_allocator(gives_back=sys.argv[1] == "give back")
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20
pieces = [torch.ones(1 << 18) for _ in range(200)]
before = resident()
del pieces[::2]
print(before - resident())
"""


FIRST = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_TOP_PAD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
"""What glibc begins with. Named by the user they stay; else it may happen to raise them to what the net needs."""


def printed(code: str, choice: str, settings: dict[str, str] | None = None) -> int:
    """The number that a new process prints which runs this code."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN_SETTINGS} | (settings or {})
    command = [sys.executable, "-c", code, choice]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    """Counted are pages that the system handed out in ten steps of a net whose activations take some 50 MiB."""
    assert 20 * printed(STEPS, "keep") < printed(STEPS, "do not", FIRST)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_between_what_is_used_is_given_back_where_memory_is_scarce() -> None:
    """Of 200 MiB in pieces of one, every second is freed; counted are MiB that the process has less."""
    assert printed(PIECES, "keep") < 10
    assert printed(PIECES, "give back") > 90
