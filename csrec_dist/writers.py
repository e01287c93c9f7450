"""Who writes: the process in the name of each temporary file, whether it still writes, and what dead ones have left."""

import glob
import hashlib
import os
import platform
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

LONGEST_HOST = 40
LEFTOVER = re.compile(r"\..+\.(?P<machine>\w+)-(?P<process>\d+)-[0-9a-f]{16}\.tmp")
"""Temporary files and folders, by the name of what they become and `writer_name`."""
ENDED, START = (b"Z", b"X"), 19
"""Of the fields of /proc/<pid>/stat after the name: states of a process that has ended, and the place of its start."""
LEASE_SECONDS = 60.0
"""How long a process of another machine may write nothing before it is taken for dead."""
VISIBLE_SECONDS = 15.0
"""How long what another machine has written may take to be seen here: some disks show it after seconds."""
LOOK_SECONDS = 0.25


@cache
def boot_id() -> str:
    """What names this start of this machine, whatever its host name, which two machines may share.

    The host name where the system does not say.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        return platform.node()


@cache
def machine() -> str:
    """What names this start of this machine, or of a container on it: processes of one see each other's numbers."""
    try:
        return f"{boot_id()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return boot_id()


def started(pid: int) -> float | None:
    """When a process of this machine began; None where there is none, or it has ended.

    On Linux in seconds since the machine's start: a clock that is set anew does not change it. Elsewhere since 1970.
    """
    try:
        # After the command's name, which may hold anything, come the state (the third field) and all others.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in ENDED else int(fields[START]) / os.sysconf("SC_CLK_TCK")
    except (FileNotFoundError, ProcessLookupError):
        return _started_elsewhere(pid) if sys.platform != "linux" else None


def _started_elsewhere(pid: int) -> float | None:
    """`started` where there is no /proc."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else round(process.create_time(), 2)
    except psutil.NoSuchProcess:
        return None


def is_running(pid: int, since: float | None) -> bool:
    """Whether the process of this machine that began then still runs, rather than none or another of its number."""
    return since is not None and started(pid) == since


def writer_name() -> str:
    """This process in the names of its temporary files, <host>_<machine>-<process>.

    A later start removes those of dead processes.
    """
    return f"{_machine_name()}-{os.getpid()}"


def temporary_sibling(path: Path) -> Path:
    """A hidden name beside `path`, which nobody guesses, for what is to become `path`."""
    return path.with_name(f".{path.name}.{writer_name()}-{secrets.token_hex(8)}.tmp")


def remove_leftovers(folder: Path, *, inside: bool = False) -> None:
    """Remove what dead processes were writing when they ended: `folder` itself, or with `inside` files in it.

    What processes of this machine were writing goes if they are no more; what those of other machines were, when
    nothing has been written to it for `LEASE_SECONDS`.
    """
    paths = folder.rglob(".*.tmp") if inside else folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp")
    for path in list(paths) if folder.parent.is_dir() else ():
        match = LEFTOVER.fullmatch(path.name)
        if match and _is_abandoned(match["machine"], int(match["process"]), path):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def server_time(folder: Path) -> float:
    """The time by the clock that stamps the files of a folder, which on a shared disk is not this machine's clock."""
    stamped = temporary_sibling(folder / "clock")
    try:
        os.close(os.open(stamped, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        return stamped.stat().st_mtime
    finally:
        stamped.unlink(missing_ok=True)


def is_visible(is_seen: Callable[[], bool], folder: Path) -> bool:
    """Whether this machine sees what another one has written to `folder`, at once or within `VISIBLE_SECONDS`.

    A client of NFS keeps in mind for half a minute that a file was not there, unless it changes the folder itself.
    """
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not is_seen():
        if time.monotonic() > deadline:
            return False
        with suppress(OSError):
            server_time(next(each for each in [folder, *folder.absolute().parents] if each.is_dir()))
        time.sleep(LOOK_SECONDS)
    return True


def _is_abandoned(machine_name: str, process: int, path: Path) -> bool:
    """Whether nobody writes to a temporary file or folder any more, by the process in its name."""
    if machine_name == _machine_name():
        import psutil

        return not psutil.pid_exists(process)
    try:
        newest = max(each.stat().st_mtime for each in [path, *path.rglob("*")])
        return server_time(path.parent) - newest > LEASE_SECONDS
    except OSError:  # it is being written to, or removed by another start, or it is not ours to remove
        return False


def _machine_name() -> str:
    """The host's name, for people, and 8 digits of what names the machine."""
    host = re.sub(r"[^A-Za-z0-9]+", "_", socket.gethostname())[:LONGEST_HOST]
    return f"{host}_{hashlib.sha256(machine().encode()).hexdigest()[:8]}"
