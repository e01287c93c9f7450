"""One writer: a folder belongs to one process at a time, since two that write the same files would ruin both."""

import atexit
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from csrec_dist.errors import UserError, is_of_all
from csrec_dist.storage import FAILURES, storage_error
from csrec_dist.writers import LEASE_SECONDS, boot_id, is_running, machine, server_time, started

FILE = ".lock"
HEARTBEAT_SECONDS = 10.0
LOOK_SECONDS = 2.0
"""Between two looks at the lock of a process of another machine, which may be dead."""
LONGEST_WAIT_SECONDS = 2 * LEASE_SECONDS
"""For such a process; the servers of some disks keep the kernel's locks of a dead machine for longer than the lease."""
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems answer that know no locks, such as Lustre without its option flock: there the lease decides."""


@dataclass(frozen=True)
class Holder:
    """The process that a lock file names: for people its host and since when it has the lock, in seconds since 1970;
    its number and its start (`writers.started`), and what names its machine."""

    host: str
    since: float = field(compare=False)
    pid: int
    started: float | None
    machine: str

    @classmethod
    def this(cls) -> Self:
        """This process."""
        return cls(socket.gethostname(), time.time(), os.getpid(), started(os.getpid()), machine())

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The holder in a lock file's text; None where it names nobody, or is cut off."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def has_this_kernel(self) -> bool:
        """Whether it runs on this machine, perhaps in another container: the kernel's lock on its file tells of it."""
        return self.machine.partition(" ")[0] == boot_id()

    def is_alive(self, seconds: float, *, has_locks: bool) -> bool:
        """Whether it may still be at work, once nobody has the kernel's lock on its file.

        On this machine the kernel's lock, or else the process itself, tells. Of a process on another machine, whatever
        that is called, the heartbeat tells: it was last heard of so many `seconds` ago.
        """
        if has_locks and self.has_this_kernel():
            return False
        if self.machine == machine():
            return is_running(self.pid, self.started)
        return seconds <= LEASE_SECONDS

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {time.strftime('%F %T', time.localtime(self.since))}"


class FolderLock:
    """An exclusive lock on a file in a folder, or beside one that has yet to appear, which names its holder.

    The kernel's lock (flock) ends with its process, however that ends. Where the file system has none, or none that
    reaches other machines, the name in the file is a lease: its holder touches the file every `HEARTBEAT_SECONDS`, and
    a process of another machine takes it over after `LEASE_SECONDS` without that, for which it waits: the launcher may
    have begun anew after the first rank's machine died. The file goes when it is released, and so do folders that were
    made for it and have nothing else in them.
    """

    def __init__(self, folder: Path, what: str, *, beside: bool = False) -> None:
        """`what` the folder is, in messages; `beside` puts the file beside it, as .<name>.lock."""
        self._folder, self._what = folder, what
        self._path = folder.parent / f".{folder.name}{FILE}" if beside else folder / FILE
        self._file: int | None = None
        self._made: list[Path] = []  # the folders that were made for the file, the innermost first
        self._this = Holder.this()
        self._has_locks = True
        self._released = threading.Event()
        self._heart: threading.Thread | None = None

    def acquire(self, *, waits: bool = True) -> None:
        """Take the lock, making the folder if need be; nothing else is touched where that fails.

        Of a process of another machine it `waits` until that is heard of, or its lease has ended.

        Raises:
            StorageError: the disk is full, failing or read-only.
            UserError: another process has it, or the folder cannot be written.
        """
        try:
            if kept := _KEPT.pop(self._path.resolve(), None):
                kept.release()  # the ranks of its run are those that begin here now
            if not self._try() and not (waits and self._wait_for_lease()):
                self._refuse()
            self._write(json.dumps(asdict(self._this)) + "\n")
        except OSError as error:
            self._remove()
            if error.errno in FAILURES:
                raise storage_error(error, self._folder) from None
            raise UserError(
                f"{self._what} {self._folder} is not writable: {error.strerror}. Name another one, or ask its owner."
            ) from None
        self._released.clear()
        self._heart = threading.Thread(target=self._beat_until_released, name="lock", daemon=True)
        self._heart.start()

    def _try(self) -> bool:
        """Open the file, and whether the lock is free now: it has the kernel's then, and its holder is dead."""
        self._close()
        try:
            # The folder may be removed, with its file, by a process that lets go between our opening it and locking it:
            # a lock on a file that is no longer there protects nothing, so it is taken again.
            while not self._is_current():
                self._close()
                self._made = [folder for folder in self._path.parents if not folder.exists()]
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
                self._flock()
        except BlockingIOError:
            return False
        holder = self._holder()
        return holder is None or not holder.is_alive(self._silence(), has_locks=self._has_locks)

    def _wait_for_lease(self) -> bool:
        """Whether the lock becomes free because its holder, on another machine, is not heard of within the lease."""
        holder, sign, begin = self._holder(), self._sign(), time.monotonic()
        if holder is None or (holder.has_this_kernel() and self._has_locks) or holder.machine == machine():
            return False
        print(
            f"csrec-dist: {self._what} {self._folder} was in use by {holder}. Waiting until that process is heard of, "
            f"or has been silent for {LEASE_SECONDS:.0f} seconds ...",
            file=sys.stderr,
            flush=True,
        )
        while time.monotonic() - begin <= LONGEST_WAIT_SECONDS:
            self._close()  # others that look must not take this process for the holder
            time.sleep(LOOK_SECONDS)
            if self._try():
                return True
            if (self._holder(), self._sign()) != (holder, sign):
                return False
        return False

    def _sign(self) -> int:
        """What changes when the holder is heard of."""
        assert self._file is not None
        return os.fstat(self._file).st_mtime_ns

    def release(self) -> None:
        """Let go of the lock, if this process has it."""
        if self._file is None:
            return
        self._stop_beating()
        with suppress(OSError):  # a disk that fails keeps the file, and must not hide the error that the work ended by
            if self._holder() == self._this and self._is_current():
                self._remove()
        self._close()

    @contextmanager
    def released_when_ranks_are_done(self, world_size: int) -> Iterator[None]:
        """Release the lock at the end of the block, which all ranks go through, when none of them writes any more.

        After an error of one rank, or of a group of them, the others may write for a while. Then the lock ends with the
        process, as all of them are ended by their launcher, or when the same processes begin there again.
        """
        try:
            yield
        except BaseException as error:
            if world_size == 1 or is_of_all(error):
                self.release()
            else:
                self._keep()
            raise
        self.release()

    def _keep(self) -> None:
        """Hold the lock until this process ends or begins in the folder anew.

        The heart stops: a process whose run has failed, such as a notebook's, is not to be ended by a machine that
        knows no locks and takes the folder over.
        """
        if self._file is not None:
            self._stop_beating()
            _KEPT[self._path.resolve()] = self
            # The file as well as the kernel's lock: a process of another machine, such as the first rank after a
            # restart by the launcher, would otherwise wait for the lease.
            atexit.register(self.release)

    def _stop_beating(self) -> None:
        self._released.set()
        if self._heart is not None:
            self._heart.join()  # it touches the file, whose number may be another's once it is closed

    def beat(self) -> bool:
        """Say that the holder is at work; False where another process has taken the lock over meanwhile."""
        holder = _read_holder(self._path)
        if holder not in (None, self._this):
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

    def _refuse(self) -> None:
        holder = self._holder()
        self._close()
        raise UserError(
            f"{self._what} {self._folder} is in use by {holder or 'another process'}. Wait for it to end, stop it, or "
            "name another folder."
        ) from None

    def _silence(self) -> float:
        """Seconds since the file was touched last, both by the clock of the disk's server."""
        return server_time(self._path.parent) - self._path.stat().st_mtime

    def _is_current(self) -> bool:
        """Whether the locked file is the one in the folder, which a process that let go may just have removed."""
        return (
            self._file is not None and self._path.exists() and os.path.samestat(os.fstat(self._file), self._path.stat())
        )

    def _remove(self) -> None:
        """Remove the file, if it was opened and is nobody else's, and the folder that was made for it."""
        if self._file is not None and self._holder() in (None, self._this):
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
        data, num_written = text.encode(), 0
        while num_written < len(data):  # a disk that is nearly full takes a part, and says why at the next try
            num_written += os.pwrite(self._file, data[num_written:], num_written)

    def _holder(self) -> Holder | None:
        """The process that the file names; nobody for the moment between the lock and its name."""
        assert self._file is not None
        return Holder.parse(os.pread(self._file, 4096, 0).decode(errors="replace"))


@contextmanager
def locked(folder: Path, what: str, *, beside: bool = False, waits: bool = True) -> Iterator[None]:
    """Within the block this process alone writes to the folder; UserError where another one does."""
    lock = FolderLock(folder, what, beside=beside)
    lock.acquire(waits=waits)
    try:
        yield
    finally:
        lock.release()


def remove_dead_locks(folder: Path) -> None:
    """Remove the lock files below a folder that killed processes have left; its own, and those in use, stay.

    The work that a lock was for may be done, so that nobody takes it again.
    """
    for path in list(folder.rglob(f"*{FILE}")):
        beside = path.name != FILE
        if not beside and path.parent == folder:
            continue
        locks = path.with_name(path.name.removeprefix(".").removesuffix(FILE)) if beside else path.parent
        with suppress(UserError), locked(locks, "The folder", beside=beside, waits=False):
            pass


def _read_holder(path: Path) -> Holder | None:
    try:
        return Holder.parse(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return None


_KEPT: dict[Path, FolderLock] = {}
"""By their files, the locks of runs in this process that an error of one rank has ended."""
