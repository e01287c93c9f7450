"""What a benchmark ran on: machines and versions."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch

from csrec_dist.bench.result import Machine
from csrec_dist.distributed import Runtime
from csrec_dist.environment import commit, processor
from csrec_dist.threads import num_usable_cpus

PACKAGES = ("torch", "accelerate", "datasets", "safetensors", "triton", "deepspeed")


def machines_of(runtime: Runtime) -> list[Machine]:
    """Each machine once, with its ranks: those whose node's first rank is the same."""
    machine: dict[str, Any] = {
        "name": platform.node(),
        "processor": processor(),
        "cpus": num_usable_cpus(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }
    ranks_of: dict[int, list[int]] = {}
    gathered = runtime.gather([runtime.node, machine])
    for rank, (node, _) in enumerate(gathered):
        ranks_of.setdefault(node, []).append(rank)
    return [Machine(**gathered[ranks[0]][1], ranks=ranks) for ranks in ranks_of.values()]


def versions() -> dict[str, str]:
    """Versions of what decides a benchmark's speed, by name: the commit, Python, the packages, CUDA."""
    installed = {"csrec_dist": commit(), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed | ({"cuda": torch.version.cuda} if torch.version.cuda else {})
