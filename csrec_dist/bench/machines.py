"""What a benchmark ran on: machines and versions."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch

from csrec_dist.bench.result import Machine
from csrec_dist.distributed import Runtime
from csrec_dist.environment import commit, processor

PACKAGES = ("torch", "accelerate", "datasets", "safetensors", "triton", "deepspeed")


def machines_of(runtime: Runtime) -> list[Machine]:
    """Each machine once, with its ranks: those whose node's first rank is the same."""
    own: dict[str, Any] = {
        "name": platform.node(),
        "processor": processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }
    nodes: dict[int, list[int]] = {}
    found = runtime.gather([runtime.node, own])
    for rank, (node, _) in enumerate(found):
        nodes.setdefault(node, []).append(rank)
    return [Machine(**found[ranks[0]][1], ranks=ranks) for ranks in nodes.values()]


def versions() -> dict[str, str]:
    """Versions of what decides a benchmark's speed, by name: the commit, Python, the packages, CUDA."""
    found = {"csrec_dist": commit(), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})
