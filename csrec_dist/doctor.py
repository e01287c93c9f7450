"""A look at this machine: versions, devices, launcher, collectives, and what a run would write to."""

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from csrec_dist.distributed.runtime import check_launch
from csrec_dist.distributed.selfcheck import backends, try_all_reduce
from csrec_dist.errors import UserError

NEEDED = ("torch", "accelerate", "datasets", "safetensors", "polars")
FOR_DEEPSPEED = ("deepspeed",)
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
LAUNCHER_PREFIXES = ("ACCELERATE_", "SLURM_NNODES", "SLURM_NTASKS", "SLURM_PROCID", "GLOO_", "NCCL_", "CUDA_VISIBLE")
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `ok` is false where a run would fail or not be what it should."""

    name: str
    ok: bool
    text: str


def examine(output: Path | str = "runs") -> list[Finding]:
    """Look at everything a run depends on; `output` is the folder of all runs. Takes some seconds."""
    return [
        Finding("Python", True, f"{platform.python_version()} on {platform.platform()}"),
        *_packages(),
        _processor(),
        _gpus(),
        *_backends(),
        _all_reduce(),
        launcher(os.environ),
        _compiler(),
        writable(Path(output)),
    ]


def _packages() -> list[Finding]:
    found = [Finding(name, _version(name) is not None, _version(name) or "not installed") for name in NEEDED]
    missing = "not installed (only needed for DeepSpeed)"
    return found + [Finding(name, True, _version(name) or missing) for name in FOR_DEEPSPEED]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> Finding:
    cores, usable = os.cpu_count(), len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory()
    text = f"{cores} cores, {usable} of them usable; memory {memory.total / GIB:.1f} GiB, "
    return Finding("processor", True, f"{text}{memory.available / GIB:.1f} GiB of it free")


def _gpus() -> Finding:
    if not torch.cuda.is_available():
        return Finding("GPUs", True, "none; ranks run on CPUs over gloo")
    devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return Finding("GPUs", True, ", ".join(f"{device.name} {device.total_memory / GIB:.0f} GiB" for device in devices))


def _backends() -> list[Finding]:
    built, gpus = backends(), torch.cuda.is_available()
    nccl = "in torch" if built["nccl"] else "not in torch" + (": GPUs cannot be used together" if gpus else "")
    return [
        Finding("gloo", built["gloo"], "in torch" if built["gloo"] else "not in torch: CPU ranks cannot start"),
        Finding("NCCL", built["nccl"] or not gpus, nccl if gpus or built["nccl"] else f"{nccl}, and no GPU needs it"),
    ]


def _all_reduce() -> Finding:
    problem = try_all_reduce()
    return Finding("two processes", problem is None, problem or "a gloo all-reduce between two of them works")


def launcher(environ: Mapping[str, str]) -> Finding:
    """The launcher's environment variables as this process sees them, and whether they make sense together."""
    seen = [
        f"{name}={environ[name]}"
        for name in sorted(environ)
        if name in LAUNCHER_VARIABLES or name.startswith(LAUNCHER_PREFIXES)
    ]
    text = ", ".join(seen) or "none: this is a single process"
    try:
        check_launch(environ)
    except UserError as error:
        return Finding("launcher", False, f"{error} Seen: {text}")
    return Finding("launcher", True, text)


def _compiler() -> Finding:
    missing = [name for name in ("g++", "ninja") if shutil.which(name) is None]
    text = f"{' and '.join(missing)} not found (only needed for DeepSpeed's CPU optimizer)"
    return Finding("compiler", True, text if missing else "g++ and ninja found (only DeepSpeed needs them)")


def writable(output: Path) -> Finding:
    """Whether a run could write its folder: tried on the nearest folder that exists, by permission."""
    nearest = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        return Finding("output", False, f"{nearest} is a file, not a folder; choose another output")
    if not os.access(nearest, os.W_OK | os.X_OK):
        return Finding("output", False, f"{nearest} cannot be written to; choose another output")
    free = shutil.disk_usage(nearest).free / GIB
    return Finding("output", True, f"{output.absolute()} can be written to; {free:.1f} GiB are free")
