"""A run's folder belongs to one run at a time: two that write the same checkpoints and labels would ruin both."""

import errno
import fcntl
import json
import os
import socket
from pathlib import Path

from csrec_dist.errors import UserError

FILE = ".lock"
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What file systems answer that know no locks, such as Lustre without its option flock: nothing is protected there."""


class RunLock:
    """An exclusive lock (flock) on `.lock` in a run's folder, which names its holder while it is held.

    The kernel releases it when the process ends, however it ends, so no lock outlives its run. The file stays, empty,
    but in a folder that was made for it and has nothing else in it: both go then, as after a start that is refused.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None
        self._made_folder = False

    def acquire(self) -> None:
        """Take the lock, making the folder if need be.

        Raises:
            UserError: another process has it, or the folder cannot be written.
        """
        try:
            # The folder may be removed, with its file, by a run that ends between our opening it and locking it: a lock
            # on a file that is no longer there protects nothing, so it is taken again.
            while not self._is_current():
                self._close()
                self._made_folder = not self._folder.exists()
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self._folder / FILE, os.O_RDWR | os.O_CREAT, 0o644)
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The name is for messages alone: the kernel's lock decides, also where this process is killed before it.
            self._write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        except BlockingIOError:
            holder = self._holder()
            self._close()
            raise UserError(
                f"The run's folder {self._folder} is in use by {holder}. Wait for it to end, stop it, or give "
                "this run another name."
            ) from None
        except OSError as error:
            self._close()
            if error.errno not in WITHOUT_LOCKS:
                raise UserError(f"The run's folder {self._folder} is not writable: {error.strerror}.") from None

    def release(self) -> None:
        """Let go of the lock, if this process has it."""
        if self._file is None:
            return
        self._write("")
        if self._made_folder and os.listdir(self._folder) == [FILE]:
            (self._folder / FILE).unlink()
            self._folder.rmdir()
        self._close()

    def _is_current(self) -> bool:
        """Whether the locked file is the one in the folder, which a process that let go may just have removed."""
        path = self._folder / FILE
        return self._file is not None and path.exists() and os.path.samestat(os.fstat(self._file), path.stat())

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, text: str) -> None:
        assert self._file is not None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text.encode(), 0)

    def _holder(self) -> str:
        """The process that the file names; nobody for the moment between the lock and its name."""
        assert self._file is not None
        try:
            named = json.loads(os.pread(self._file, 4096, 0))
        except json.JSONDecodeError:
            return "another process"
        return f"process {named['pid']} on {named['host']}"
