"""Checks of this machine: versions, devices, launcher, collectives, and the output folder."""

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from csrec_dist.distributed.alone import check_launch
from csrec_dist.distributed.selfcheck import backends, try_all_reduce
from csrec_dist.errors import UserError
from csrec_dist.threads import num_usable_cpus

NEEDED = ("torch", "accelerate", "datasets", "safetensors", "polars")
FOR_DEEPSPEED = ("deepspeed",)
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
LAUNCHER_PREFIXES = ("ACCELERATE_", "SLURM_NNODES", "SLURM_NTASKS", "SLURM_PROCID", "GLOO_", "NCCL_", "CUDA_VISIBLE")
GIB = 2**30


@dataclass(frozen=True)
class Check:
    """The result of one check; `ok` is false if a run would fail or not do what it should."""

    name: str
    ok: bool
    text: str


def check_machine(output: Path | str = "runs") -> list[Check]:
    """Check everything a run depends on; `output` is the folder of all runs. Takes some seconds."""
    return [
        Check("Python", True, f"{platform.python_version()} on {platform.platform()}"),
        *_packages(),
        _processor(),
        _gpus(),
        *_backends(),
        _all_reduce(),
        launcher(os.environ),
        _compiler(),
        writable(Path(output)),
    ]


def _packages() -> list[Check]:
    needed = [Check(name, _version(name) is not None, _version(name) or "not installed") for name in NEEDED]
    missing = "not installed (only needed for DeepSpeed)"
    return needed + [Check(name, True, _version(name) or missing) for name in FOR_DEEPSPEED]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> Check:
    cores, usable = os.cpu_count(), num_usable_cpus()
    memory = psutil.virtual_memory()
    text = f"{cores} cores, {usable} of them usable; memory {memory.total / GIB:.1f} GiB, "
    return Check("processor", True, f"{text}{memory.available / GIB:.1f} GiB of it free")


def _gpus() -> Check:
    if not torch.cuda.is_available():
        return Check("GPUs", True, "none; ranks run on CPUs over gloo")
    devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return Check("GPUs", True, ", ".join(f"{device.name} {device.total_memory / GIB:.0f} GiB" for device in devices))


def _backends() -> list[Check]:
    built, gpus = backends(), torch.cuda.is_available()
    nccl = "in torch" if built["nccl"] else "not in torch" + (": GPUs cannot work together" if gpus else "")
    return [
        Check("gloo", built["gloo"], "in torch" if built["gloo"] else "not in torch: CPU ranks cannot start"),
        Check("NCCL", built["nccl"] or not gpus, nccl if gpus or built["nccl"] else f"{nccl}, but no GPU needs it"),
    ]


def _all_reduce() -> Check:
    problem = try_all_reduce()
    return Check("two processes", problem is None, problem or "a gloo all-reduce between two processes works")


def launcher(environ: Mapping[str, str]) -> Check:
    """The launcher's environment variables in this process, and whether they are consistent."""
    seen = [
        f"{name}={environ[name]}"
        for name in sorted(environ)
        if name in LAUNCHER_VARIABLES or name.startswith(LAUNCHER_PREFIXES)
    ]
    text = ", ".join(seen) or "none: this is a single process"
    try:
        check_launch(environ)
    except UserError as error:
        return Check("launcher", False, f"{error} Variables: {text}")
    return Check("launcher", True, text)


def _compiler() -> Check:
    missing = [name for name in ("g++", "ninja") if shutil.which(name) is None]
    text = f"{' and '.join(missing)} not found (only needed for DeepSpeed's CPU optimizer)"
    return Check("compiler", True, text if missing else "g++ and ninja found (only DeepSpeed needs them)")


def writable(output: Path) -> Check:
    """Whether a run could write its folder, judged by the permissions of the nearest folder that exists."""
    nearest = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        return Check("output", False, f"{nearest} is a file, not a folder; set another output")
    if not os.access(nearest, os.W_OK | os.X_OK):
        return Check("output", False, f"{nearest} is not writable; set another output")
    free = shutil.disk_usage(nearest).free / GIB
    return Check("output", True, f"{output.absolute()} is writable; {free:.1f} GiB are free")
