"""Disks that are full, failing or read-only: said in one sentence, with what is needed, before or when it happens."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csrec_dist.errors import StorageError

FULL = (errno.ENOSPC, errno.EDQUOT)
FAILURES = (*FULL, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE, errno.ENXIO, errno.ENODEV)
"""What the system answers when not the path is wrong but the disk."""
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
GIB = 2**30


@contextmanager
def explained(path: Path | str, num_bytes: int | None = None) -> Iterator[None]:
    """What the disk under `path` answers within the block, as a StorageError; `num_bytes` are to be written there."""
    try:
        yield
    except OSError as error:
        if error.errno not in FAILURES:
            raise
        raise storage_error(error, path, num_bytes) from error


def storage_error(error: OSError, path: Path | str | None = None, num_bytes: int | None = None) -> StorageError:
    """The sentence for what a disk answered: where, how much is needed, how much is free, and what to do."""
    path = path or error.filename or "a file"
    if error.errno not in FULL:
        return StorageError(
            f"{path} cannot be written or read: {os.strerror(error.errno or 0)}. Mend the disk, or name an output on "
            "another one, and give the same command again."
        )
    needed = f"; {size(num_bytes)} are needed, {size(free_bytes(path))} are free" if num_bytes is not None else ""
    return StorageError(
        f"{path} cannot be written: {os.strerror(error.errno or 0)}{needed}. Make room and give the same command "
        "again: it goes on from what is whole."
    )


def no_permission(error: PermissionError) -> str:
    """What to do about a file or folder that belongs to somebody else."""
    return f"{error.filename}: permission denied; ask its owner, or give another path."


def require_room(folder: Path | str, num_bytes: int, what: str) -> None:
    """StorageError unless the disk of a folder, which may not be there yet, has room for so many bytes."""
    free = free_bytes(folder)
    if num_bytes > free:
        raise StorageError(
            f"{what} take {size(num_bytes)} in {folder}, whose disk has {size(free)} free. Make room and give the same "
            "command again, or name an output on another disk."
        )


def free_bytes(path: Path | str) -> int:
    """Bytes that the disk of a path, or of the nearest folder above it, has free."""
    place = Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def size(num_bytes: int) -> str:
    """A number of bytes for people: 1.5 GiB."""
    value, unit = float(num_bytes), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {UNITS[unit]}" if unit else f"{num_bytes} B"
