"""One writer: a folder belongs to one process at a time, since two that write the same files would ruin both."""

import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Self

from csrec_dist.errors import UserError
from csrec_dist.files import LEASE_SECONDS
from csrec_dist.storage import FAILURES, storage_error

FILE = ".lock"
HEARTBEAT_SECONDS = 10.0
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems answer that know no locks, such as Lustre without its option flock: there the lease decides."""


@dataclass(frozen=True)
class Holder:
    """The process that a lock file names: where it runs, since when, and since when its machine does (`boot`)."""

    host: str
    pid: int
    started: float
    boot: str

    @classmethod
    def this(cls) -> Self:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()) or 0.0, boot_id())

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The holder in a lock file's text; None where it names nobody, or is cut off."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def is_alive(self, last_beat: float, *, has_locks: bool) -> bool:
        """Whether it may still be at work, once nobody has the kernel's lock on its file.

        On this machine the kernel's lock, or else the process itself, tells. Of a process on another machine the
        heartbeat tells: `last_beat` is when it was last heard of, by the clock of the file system.
        """
        if self.boot == boot_id():
            return not has_locks and _started(self.pid) == self.started
        return self.host != socket.gethostname() and time.time() - last_beat <= LEASE_SECONDS

    def __str__(self) -> str:
        return (
            f"process {self.pid} on {self.host}, which began at {time.strftime('%F %T', time.localtime(self.started))}"
        )


class FolderLock:
    """An exclusive lock on a file in a folder, or beside one that has yet to appear, which names its holder.

    The kernel's lock (flock) ends with its process, however that ends. Where the file system has none, or none that
    reaches other machines, the name in the file is a lease: its holder touches the file every `HEARTBEAT_SECONDS`, and
    a process of another machine takes it over after `LEASE_SECONDS` without that. The file goes when it is released,
    and so do folders that were made for it and have nothing else in them.
    """

    def __init__(self, folder: Path, what: str, *, beside: bool = False) -> None:
        """`what` the folder is, in messages; `beside` puts the file beside it, as .<name>.lock."""
        self._folder, self._what = folder, what
        self._path = folder.parent / f".{folder.name}{FILE}" if beside else folder / FILE
        self._file: int | None = None
        self._made: list[Path] = []  # the folders that were made for the file, the innermost first
        self._has_locks = True
        self._released = threading.Event()
        self._heart: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock, making the folder if need be; nothing else is touched where that fails.

        Raises:
            StorageError: the disk is full, failing or read-only.
            UserError: another process has it, or the folder cannot be written.
        """
        try:
            # The folder may be removed, with its file, by a process that lets go between our opening it and locking it:
            # a lock on a file that is no longer there protects nothing, so it is taken again.
            while not self._is_current():
                self._close()
                self._made = [folder for folder in self._path.parents if not folder.exists()]
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
                self._flock()
            holder = self._holder()
            if holder and holder.is_alive(self._path.stat().st_mtime, has_locks=self._has_locks):
                self._refuse(holder)
            self._write(json.dumps(asdict(Holder.this())) + "\n")
        except BlockingIOError:
            self._refuse(self._holder())
        except OSError as error:
            self._remove()
            if error.errno in FAILURES:
                raise storage_error(error, self._folder) from None
            raise UserError(f"{self._what} {self._folder} is not writable: {error.strerror}.") from None
        self._released.clear()
        self._heart = threading.Thread(target=self._beat_until_released, name="lock", daemon=True)
        self._heart.start()

    def release(self) -> None:
        """Let go of the lock, if this process has it."""
        if self._file is None:
            return
        self._released.set()
        if self._heart is not None:
            self._heart.join()  # it touches the file, whose number may be another's once it is closed
        if self._holder() == Holder.this() and self._is_current():
            self._remove()
        self._close()

    def beat(self) -> bool:
        """Say that the holder is at work; False where another process has taken the lock over meanwhile."""
        holder = _read_holder(self._path)
        if holder not in (None, Holder.this()):
            return False
        if self._file is not None:
            os.utime(self._file)
        return True

    def _beat_until_released(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            try:
                is_ours = self.beat()
            except OSError:  # a disk that does not answer for a while
                continue
            if not is_ours and not self._released.is_set():
                # Whatever this process writes from now on ruins the other's files, so it does not even tidy up.
                print(
                    f"csrec-dist: {self._what} {self._folder} was taken over by {_read_holder(self._path)}: this "
                    f"process was not heard of for {LEASE_SECONDS:.0f} seconds. It ends here; the other goes on.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)

    def _flock(self) -> None:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._has_locks = True
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            self._has_locks = False

    def _refuse(self, holder: Holder | None) -> None:
        self._close()
        raise UserError(
            f"{self._what} {self._folder} is in use by {holder or 'another process'}. Wait for it to end, stop it, or "
            "name another folder."
        ) from None

    def _is_current(self) -> bool:
        """Whether the locked file is the one in the folder, which a process that let go may just have removed."""
        return (
            self._file is not None and self._path.exists() and os.path.samestat(os.fstat(self._file), self._path.stat())
        )

    def _remove(self) -> None:
        """Remove the file, if it was opened and is nobody else's, and the folder that was made for it."""
        if self._file is not None and self._holder() in (None, Holder.this()):
            self._path.unlink(missing_ok=True)
        self._close()
        with suppress(OSError):  # what has something in it stays, and so do the folders around it
            for folder in self._made:
                folder.rmdir()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, text: str) -> None:
        assert self._file is not None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text.encode(), 0)

    def _holder(self) -> Holder | None:
        """The process that the file names; nobody for the moment between the lock and its name."""
        assert self._file is not None
        return Holder.parse(os.pread(self._file, 4096, 0).decode(errors="replace"))


@contextmanager
def locked(folder: Path, what: str, *, beside: bool = False) -> Iterator[None]:
    """Within the block this process alone writes to the folder; UserError where another one does."""
    lock = FolderLock(folder, what, beside=beside)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _read_holder(path: Path) -> Holder | None:
    try:
        return Holder.parse(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return None


def _started(pid: int) -> float | None:
    """When a process of this machine began, in seconds since 1970; None where there is none."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


@cache
def boot_id() -> str:
    """What names this start of this machine, whatever its host name; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
