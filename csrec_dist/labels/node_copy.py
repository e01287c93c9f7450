"""A copy of a part of a label cache on a node's own disk, which is read as the whole cache is."""

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from csrec_dist.errors import UserError
from csrec_dist.files import atomic_path
from csrec_dist.labels.format import INDEX_NAME, ItemShard, LabelShard, read_index
from csrec_dist.storage import GIB

BLOCK_BYTES = 1 << 24


def node_folder(folder: Path, disk: Path | str, run: str) -> Path:
    """The folder on `disk` for a copy of these labels of a run of that name; other labels have another.

    All that a user has there is in one folder, which nobody else can write to: the disk may be everybody's.
    """
    return Path(disk) / f"csrec-{os.getuid()}" / run / f"labels-{read_index(folder).fingerprint}"


def copy_labels(folder: Path, copy: Path, shards: Iterable[int], tell: Callable[[int, int], None]) -> list[str]:
    """Copy the shards of `shards` and the item tables from `folder`; `copy` links to the other files.

    All copies must have the index's checksums; those that are there already and do are not copied again. `tell` is
    called after each block with the bytes copied so far and in all. Returns a sentence for each damaged file of
    `folder`. One process of a node calls this.

    Raises:
        StorageError: the disk is full after all, failing or read-only.
        UserError: the disk is too small, cannot be written to, or the user's folder there is somebody else's.
    """
    index = read_index(folder)
    chosen = [index.shards[shard] for shard in sorted(set(shards))] + list(index.item_shards)
    try:
        make_private(copy.parents[1])
        copy.mkdir(parents=True, exist_ok=True)
        missing = [
            entry
            for entry in chosen
            if (path := copy / entry.file).is_symlink() or index.file_problem(path, entry, deep=True)
        ]
        num_bytes, free = sum(entry.bytes for entry in missing), shutil.disk_usage(copy).free
        if num_bytes > free:
            raise UserError(
                f"labels.copy_to: {copy} has {free / GIB:.1f} GiB free, and the labels that this node reads take "
                f"{num_bytes / GIB:.1f} GiB. Give a larger disk, more nodes, or leave it out."
            )
        problems = _copy_all(folder, copy, missing, tell)
        for entry in index.files:
            with suppress(FileExistsError):
                (copy / entry.file).symlink_to((folder / entry.file).resolve())
        with atomic_path(copy / INDEX_NAME) as temporary:
            shutil.copyfile(folder / INDEX_NAME, temporary)
    except OSError as error:
        raise UserError(
            f"labels.copy_to: labels cannot be copied to {copy}: {error.strerror}. Mend that, or leave it out."
        ) from None
    return problems


def remove_empty(copy: Path) -> None:
    """Remove the run's and the user's folders around a copy that is gone, if they are empty."""
    with suppress(OSError):
        copy.parent.rmdir()
        copy.parents[1].rmdir()


def make_private(folder: Path) -> None:
    """Make a folder for this user alone; UserError where something else stands there, perhaps planted by another user.

    Otherwise another user's files could be read as labels, or a link of theirs be written through.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    except OSError as error:
        raise UserError(
            f"labels.copy_to: labels cannot be copied to {folder}: {error.strerror}. Mend that, or leave it out."
        ) from None
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022:
        raise UserError(
            f"labels.copy_to: {folder} is not a folder that belongs to you and only you can write to; remove it, or "
            "name another folder."
        )


def _copy_all(
    folder: Path, copy: Path, entries: Sequence[LabelShard | ItemShard], tell: Callable[[int, int], None]
) -> list[str]:
    """Copy the files; a sentence for each that does not have the index's checksum, whose copy is removed."""
    total, copied, problems = sum(entry.bytes for entry in entries), 0, []
    for entry in entries:
        digest = hashlib.sha256()
        with (
            atomic_path(copy / entry.file, entry.bytes) as temporary,
            open(folder / entry.file, "rb") as source,
            open(temporary, "wb") as target,
        ):
            while block := source.read(BLOCK_BYTES):
                target.write(block)
                digest.update(block)
                copied += len(block)
                tell(copied, total)
        if digest.hexdigest() != entry.sha256:
            (copy / entry.file).unlink()
            problems.append(f"{entry.file} has another checksum than the index says: its bytes were changed.")
    return problems
