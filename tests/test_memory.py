"""What is freed is used again: without asking the system for the same pages at every step."""

import os
import platform
import subprocess
import sys

import pytest

from csrec_dist.memory import OWN_SETTINGS

STEPS = """
import resource, sys, torch
from csrec_dist.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
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


FIRST = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_TOP_PAD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
"""What glibc begins with. Named by the user they stay; else it may happen to raise them to what the net needs."""


def faults(choice: str) -> int:
    """Pages that the system handed out in ten steps of a net whose activations take some 50 MiB."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN_SETTINGS}
    environment |= {} if choice == "keep" else FIRST
    command = [sys.executable, "-c", STEPS, choice]
    return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    assert 20 * faults("keep") < faults("do not")
