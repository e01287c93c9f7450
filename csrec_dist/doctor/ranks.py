"""Checks between the ranks of a launch: versions alike, one disk, clocks, and how fast they exchange numbers."""

import fcntl
import os
import platform
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import torch

from csrec_dist import __version__
from csrec_dist.distributed import Runtime
from csrec_dist.doctor.machine import GIB, MIB, NEEDED, Check, check_machine, installed_version, nearest_folder
from csrec_dist.writers import machine, server_time

CLOCK_SECONDS = 2.0
"""Clocks that differ by more than this make logs of several machines hard to read; nothing in a run depends on them."""
VISIBLE_SECONDS = 10.0
"""How long a file that another node renamed may take to be seen: NFS looks for new names every few seconds."""
NUM_SUMMED = 4 * MIB  # float32 numbers, 16 MiB
REPEATS = 5
SLOW_LINK = 100 * MIB  # bytes a second


def check_ranks(
    runtime: Runtime, output: Path | str = "runs", engine: str = "ddp", precision: str = "fp32"
) -> list[Check]:
    """Check the machines of a launch, and its ranks together; every rank calls this and gets the same checks.

    Of the first machine all checks, of the others what is not ok, by the first rank there.
    """
    is_first = runtime.node == runtime.rank

    def examined() -> list[Any]:
        return [astuple(check) for check in check_machine(output, engine, precision)] if is_first else []

    first, *others = [[Check(*each) for each in part] for part in runtime.world.on_all(examined, "the machines")]
    bad = [
        replace(check, name=f"rank {rank}: {check.name}")
        for rank, checks in enumerate(others, 1)
        for check in checks
        if check.status != "ok"
    ]
    between = [
        _versions(runtime),
        *_names(runtime),
        _clocks(runtime),
        *_shared_disk(runtime, Path(output)),
        _bandwidth(runtime),
    ]
    return [*first, *bad, *between]


def _versions(runtime: Runtime) -> Check:
    packages = {"csrec_dist": __version__, "Python": platform.python_version()}
    packages |= {name: installed_version(name) or "missing" for name in NEEDED}
    versions = runtime.gather(packages)
    unlike = [
        f"{name} is {', '.join(f'{each[name]} on rank {rank}' for rank, each in enumerate(versions))}"
        for name in packages
        if len({each[name] for each in versions}) > 1
    ]
    nodes = len(set(runtime.gather(machine())))
    if unlike:
        return Check("versions", "FAIL", f"{'; '.join(unlike)}: install the same everywhere")
    return Check("versions", "ok", f"alike on {runtime.world_size} ranks of {nodes} machine(s)")


def _names(runtime: Runtime) -> list[Check]:
    """Ranks of several machines meet at the addresses of their names, which must not be those of the machine itself."""
    try:
        addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)]
    except OSError:
        addresses = []
    is_loopback = all(address.startswith(("127.", "::1")) for address in addresses)
    of_ranks = runtime.gather([machine(), is_loopback and not os.environ.get("GLOO_SOCKET_IFNAME")])
    if len({name for name, _ in of_ranks}) == 1 or not any(is_bad for _, is_bad in of_ranks):
        return []
    ranks = ", ".join(str(rank) for rank, (_, is_bad) in enumerate(of_ranks) if is_bad)
    text = f"the machine of rank(s) {ranks} has a name without an address in the network: set GLOO_SOCKET_IFNAME"
    return [Check("names", "WARN", text)]


def _clocks(runtime: Runtime) -> Check:
    runtime.world.barrier()
    times = runtime.gather(time.time())
    spread = max(times) - min(times)
    text = f"the ranks' clocks are within {spread:.2f} s"
    return Check("clocks", "ok" if spread <= CLOCK_SECONDS else "WARN", text)


def _shared_disk(runtime: Runtime, output: Path) -> list[Check]:
    """Whether all ranks have one folder, see there what one of them renames, and respect each other's locks.

    Rank 0 makes a hidden folder beside the runs, which it removes.
    """
    probe = Path(runtime.on_main(lambda: str(nearest_folder(output).absolute() / f".doctor-{secrets.token_hex(8)}")))

    def make() -> str | None:
        try:
            probe.mkdir()
            (probe / "new").write_text("whole")
            os.replace(probe / "new", probe / "renamed")
        except OSError as error:
            shutil.rmtree(probe, ignore_errors=True)
            return error.strerror or str(error)
        return None

    if problem := runtime.on_main(make):
        text = f"rank 0 cannot write to {probe.parent}: {problem}; set another output"
        return [Check("shared disk", "FAIL", text)]
    try:
        # Of a folder that a rank may not enter os.path says False, where Path.exists raises and the others would wait.
        waited = runtime.gather(_seconds_until(lambda: os.path.exists(probe / "renamed")))
        blind = [rank for rank, seconds in enumerate(waited) if seconds is None]
        if blind:
            text = f"rank(s) {', '.join(map(str, blind))} do not see what rank 0 wrote to {probe.parent}"
            return [Check("shared disk", "FAIL", f"{text}: give an output on a disk that all machines have")]
        seconds = max(waited)
        checks = [Check("shared disk", "ok", f"a file that rank 0 renamed was seen by all after {seconds:.2f} s")]
        return [*checks, _lock(runtime, probe / "renamed"), _server_clock(runtime, probe)]
    finally:
        runtime.world.barrier()
        runtime.on_main(lambda: shutil.rmtree(probe))


def _lock(runtime: Runtime, path: Path) -> Check:
    """Whether a lock of rank 0 is one for the others, too."""
    with ExitStack() as stack:
        problem = ""
        try:
            file = stack.enter_context(path.open("r+"))
        except OSError as error:  # which this rank does not raise: the others would wait for it
            problem = error.strerror or str(error)
        problems = {rank: each for rank, each in enumerate(runtime.gather(problem)) if each}
        if problems:
            text = "; ".join(f"rank {rank}: {each}" for rank, each in problems.items())
            return Check(
                "locks", "FAIL", f"a file of rank 0 cannot be opened for writing ({text}): start all ranks as one user"
            )
        if runtime.is_main:
            has_lock = _try_lock(file.fileno())
        runtime.world.barrier()
        if not runtime.is_main:
            has_lock = _try_lock(file.fileno())
        rank_0_has_lock, *others = runtime.gather(has_lock)
    if not rank_0_has_lock:
        return Check("locks", "WARN", "the disk knows no locks: do not start a run twice within the same moment")
    if any(others):
        return Check("locks", "WARN", "a lock does not reach other machines: do not start a run on two at one moment")
    return Check("locks", "ok", "a lock of rank 0 holds for all ranks")


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _server_clock(runtime: Runtime, folder: Path) -> Check:
    ahead = runtime.on_main(lambda: server_time(folder) - time.time())
    text = f"the disk's clock differs by {abs(ahead):.2f} s"
    return Check("disk's clock", "ok" if abs(ahead) <= CLOCK_SECONDS else "WARN", text)


def _seconds_until(is_so: Callable[[], bool]) -> float | None:
    """Seconds until it is so; None when it is not within `VISIBLE_SECONDS`."""
    begin = time.monotonic()
    while not is_so():
        if time.monotonic() - begin > VISIBLE_SECONDS:
            return None
        time.sleep(0.05)
    return time.monotonic() - begin


def _bandwidth(runtime: Runtime) -> Check:
    """Bytes that each rank sends in a second of an all-reduce by rings: 2 (k − 1) / k of the tensor."""
    numbers = torch.ones(NUM_SUMMED, device=runtime.device)
    seconds = []
    for _ in range(1 + REPEATS):  # the first one connects
        runtime.world.barrier()
        begin = time.perf_counter()
        total = runtime.world.all_reduce_sum(numbers.clone())
        is_right = float(total[-1]) == runtime.world_size  # waits for a GPU
        seconds.append(time.perf_counter() - begin)
    sent = 2 * (runtime.world_size - 1) / runtime.world_size * 4 * NUM_SUMMED
    rate = min(runtime.gather(sent / sorted(seconds[1:])[REPEATS // 2]))
    if not all(runtime.gather(is_right)):
        return Check("all-reduce", "FAIL", "the sum over the ranks is wrong")
    text = f"16 MiB over {runtime.world_size} ranks at {rate / GIB:.2f} GiB/s"
    if rate < SLOW_LINK:
        return Check("all-reduce", "WARN", f"{text}: is GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME the fast network?")
    return Check("all-reduce", "ok", text)
