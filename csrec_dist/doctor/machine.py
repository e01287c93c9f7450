"""Checks of this machine: versions, devices, limits, names and ports, the launcher, collectives, and the disk."""

import os
import platform
import resource
import secrets
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil
import torch

from csrec_dist.distributed.alone import check_launch
from csrec_dist.distributed.selfcheck import backends, try_all_reduce
from csrec_dist.errors import UserError
from csrec_dist.storage import free_bytes, size
from csrec_dist.threads import cgroup_quota, num_usable_cpus

NEEDED = ("torch", "accelerate", "datasets", "safetensors", "polars")
FOR_DEEPSPEED = ("deepspeed",)
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
LAUNCHER_PREFIXES = ("ACCELERATE_", "SLURM_NNODES", "SLURM_NTASKS", "SLURM_PROCID", "GLOO_", "NCCL_", "CUDA_VISIBLE")
Status = Literal["ok", "WARN", "FAIL"]
GIB, MIB = 2**30, 2**20
LEAST_ROOM = GIB
LEAST_SHARED_MEMORY = 64 * MIB
"""What containers have unless they are asked for more. NCCL's ranks of one machine take some MiB for each pair."""
LEAST_FILES, LEAST_PROCESSES = 1024, 512
PROBE_BYTES = 32 * MIB
SLOW_DISK = 20 * MIB  # bytes a second, written and synced


@dataclass(frozen=True)
class Check:
    """What was looked at, and what was seen there.

    FAIL: a run would fail or not do what it should. WARN: it would be slow, or fail under a load that is likely.
    """

    name: str
    status: Status
    text: str


def check_machine(output: Path | str = "runs", engine: str = "ddp", precision: str = "fp32") -> list[Check]:
    """Check everything that a run depends on; `output` is the folder of all runs. Takes some seconds."""
    return [
        Check("Python", "ok", f"{platform.python_version()} on {platform.platform()}"),
        *_packages(),
        _processor(),
        threads(os.environ),
        limits(),
        _gpus(),
        *_backends(),
        shared_memory(),
        _name(),
        _ports(),
        _all_reduce(),
        launcher(os.environ, engine, precision),
        _compiler(),
        *disk(Path(output)),
    ]


def _packages() -> list[Check]:
    versions = {name: installed_version(name) for name in (*NEEDED, *FOR_DEEPSPEED)}
    needed = [Check(name, "ok" if versions[name] else "FAIL", versions[name] or "not installed") for name in NEEDED]
    missing = "not installed (only needed for DeepSpeed)"
    return needed + [Check(name, "ok", versions[name] or missing) for name in FOR_DEEPSPEED]


def installed_version(name: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> Check:
    cores, usable = os.cpu_count(), num_usable_cpus()
    memory = psutil.virtual_memory()
    text = f"{cores} cores, {usable} of them usable; memory {memory.total / GIB:.1f} GiB, "
    return Check("processor", "ok", f"{text}{memory.available / GIB:.1f} GiB of it free")


def threads(environ: Mapping[str, str]) -> Check:
    """More threads than cores, or than the container's quota, wait for each other at every step."""
    usable, quota, omp_threads = num_usable_cpus(), cgroup_quota(), environ.get("OMP_NUM_THREADS", "")
    ranks = int(environ.get("LOCAL_WORLD_SIZE") or "1")
    allowed = usable if quota is None else min(usable, max(1, int(quota)))
    limit = "no quota" if quota is None else f"a quota of {quota:g} CPUs"
    num_threads = int(omp_threads) if omp_threads.isdigit() else max(1, allowed // ranks)
    text = f"{ranks} rank(s) of {num_threads} thread(s) here; {usable} CPUs and {limit}"
    if ranks * num_threads > allowed:
        return Check("threads", "WARN", f"{text}: more threads than they can run at once; set OMP_NUM_THREADS")
    return Check("threads", "ok", text)


def limits() -> Check:
    """How many files and processes (threads count, too) the system lets this user have."""
    limits_of_system: dict[str, tuple[int, int]] = {"open files (ulimit -n)": (resource.RLIMIT_NOFILE, LEAST_FILES)}
    if hasattr(resource, "RLIMIT_NPROC"):
        limits_of_system["processes and threads (ulimit -u)"] = (resource.RLIMIT_NPROC, LEAST_PROCESSES)
    seen, small = [], []
    for name, (kind, least) in limits_of_system.items():
        limit = resource.getrlimit(kind)[0]
        seen.append(f"{name}: {'no limit' if limit == resource.RLIM_INFINITY else limit}")
        if limit != resource.RLIM_INFINITY and limit < least:
            small.append(f"{name} should be {least} or more")
    return Check("limits", "WARN" if small else "ok", "; ".join([*seen, *small]))


def _gpus() -> Check:
    if not torch.cuda.is_available():
        return Check("GPUs", "ok", "none; ranks run on CPUs over gloo")
    devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return Check("GPUs", "ok", ", ".join(f"{device.name} {device.total_memory / GIB:.0f} GiB" for device in devices))


def _backends() -> list[Check]:
    built, gpus = backends(), torch.cuda.is_available()
    nccl = "in torch" if built["nccl"] else "not in torch" + (": GPUs cannot work together" if gpus else "")
    gloo: Status = "ok" if built["gloo"] else "FAIL"
    return [
        Check("gloo", gloo, "in torch" if built["gloo"] else "not in torch: CPU ranks cannot start"),
        Check(
            "NCCL",
            "ok" if built["nccl"] or not gpus else "FAIL",
            nccl if gpus or built["nccl"] else f"{nccl}, but no GPU needs it",
        ),
    ]


def shared_memory(folder: Path = Path("/dev/shm")) -> Check:  # nosec B108
    """What ranks of one machine exchange tensors through."""
    if not folder.is_dir():
        return Check("shared memory", "ok", f"there is no {folder}")
    total, _, free = shutil.disk_usage(folder)
    text = f"{size(free)} of {size(total)} are free in {folder}"
    if free < LEAST_SHARED_MEMORY:
        return Check("shared memory", "WARN", f"{text}: too little for NCCL; start the container with --ipc=host")
    return Check("shared memory", "ok", text)


def _name() -> Check:
    """gloo listens at the address of the machine's name, unless GLOO_SOCKET_IFNAME names a device."""
    name = socket.gethostname()
    try:
        addresses = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(name, None)})
    except OSError as error:
        return Check("name", "WARN", f"{name} has no address ({error.strerror}): set GLOO_SOCKET_IFNAME, or /etc/hosts")
    return Check("name", "ok", f"{name} is {', '.join(addresses)}")


def _ports() -> Check:
    """A rendezvous on this machine needs a port that is free, the named one or any."""
    asked = int(os.environ.get("MASTER_PORT") or "0") if "RANK" not in os.environ else 0  # a launcher serves there now
    try:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("", asked))
            return Check("ports", "ok", f"port {server.getsockname()[1]} can be listened at")
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "it is none"
        return Check("ports", "FAIL", f"port {asked or 'any'} cannot be listened at: {reason}; set MASTER_PORT")


def _all_reduce() -> Check:
    problem = try_all_reduce()
    text = problem or "a gloo all-reduce between two processes works"
    return Check("two processes", "FAIL" if problem else "ok", text)


def launcher(environ: Mapping[str, str], engine: str = "ddp", precision: str = "fp32") -> Check:
    """The launcher's environment variables in this process, and whether they fit each other and the config's engine."""
    seen = [
        f"{name}={environ[name]}"
        for name in sorted(environ)
        if name in LAUNCHER_VARIABLES or name.startswith(LAUNCHER_PREFIXES)
    ]
    text = ", ".join(seen) or "none: this is a single process"
    try:
        check_launch(environ, engine, precision)
    except UserError as error:
        return Check("launcher", "FAIL", f"{error} Variables: {text}")
    return Check("launcher", "ok", text)


def _compiler() -> Check:
    missing = [name for name in ("g++", "ninja") if shutil.which(name) is None]
    text = f"{' and '.join(missing)} not found (only needed for DeepSpeed's CPU optimizer)"
    return Check("compiler", "ok", text if missing else "g++ and ninja found (only DeepSpeed needs them)")


def nearest_folder(output: Path) -> Path:
    """The output, or what exists of the way to it."""
    return next(folder for folder in (output, *output.absolute().parents) if folder.exists())


def disk(output: Path) -> list[Check]:
    """Whether a run could write its folder, how much room there is, and how fast a file is written and synced.

    The probes are hidden files in the nearest folder that exists, which are removed.
    """
    nearest = nearest_folder(output)
    if not nearest.is_dir():
        return [Check("output", "FAIL", f"{nearest} is a file, not a folder; set another output")]
    if not os.access(nearest, os.W_OK | os.X_OK):
        return [Check("output", "FAIL", f"{nearest} is not writable; set another output")]
    free = free_bytes(nearest)
    room: Status = "ok" if free >= LEAST_ROOM else "WARN"
    checks = [Check("output", room, f"{output.absolute()} is writable; {size(free)} are free")]
    if free < 2 * PROBE_BYTES:
        return checks
    probe = nearest / f".doctor-{secrets.token_hex(8)}"
    try:
        rate = PROBE_BYTES / _seconds_to_write(probe)
        os.replace(probe, probe.with_suffix(".renamed"))
    except OSError as error:
        return [*checks, Check("disk", "FAIL", f"{nearest}: a file cannot be written and renamed: {error.strerror}")]
    finally:
        probe.unlink(missing_ok=True)
        probe.with_suffix(".renamed").unlink(missing_ok=True)
    text = f"{size(PROBE_BYTES)} are written and synced at {size(int(rate))}/s"
    slow = f"{text}: checkpoints and labels will wait for the disk"
    return [*checks, Check("disk", "ok", text) if rate >= SLOW_DISK else Check("disk", "WARN", slow)]


def _seconds_to_write(path: Path) -> float:
    content, begin = os.urandom(MIB) * (PROBE_BYTES // MIB), time.perf_counter()
    with path.open("xb") as file:
        file.write(content)
        os.fsync(file.fileno())
    return time.perf_counter() - begin
