"""A copy of a part of a label cache on a node's own disk, which reads as the whole cache does."""

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from csrec_dist.errors import UserError
from csrec_dist.files import atomic_path
from csrec_dist.labels.contents import file_problem
from csrec_dist.labels.format import INDEX_NAME, ItemShard, LabelShard, read_index

BLOCK_BYTES = 1 << 24
GIB = 1 << 30


def staged_folder(folder: Path, disk: Path | str, run: str) -> Path:
    """Where on `disk` a copy of the labels in `folder` of a run of that name stands; other labels stand elsewhere.

    All that a user has there is in one folder, which nobody else can write to: the disk may be everybody's.
    """
    return Path(disk) / f"csrec-{os.getuid()}" / run / f"labels-{read_index(folder).fingerprint}"


def stage_labels(folder: Path, staged: Path, shards: Iterable[int], tell: Callable[[int, int], None]) -> list[str]:
    """Copy the shards of `shards` and the item tables from `folder`; for the rest `staged` has links to it.

    All copies are held to the index's checksums, also those that are there already, which are kept if they are whole.
    `tell` is called after each block with the bytes copied so far and in all. What is damaged in `folder` is
    returned, in a sentence each. One process of a node calls this.

    Raises:
        UserError: the disk is too small, cannot be written to, or the user's folder there is somebody else's.
    """
    index, wanted = read_index(folder), set(shards)
    chosen = [index.shards[shard] for shard in sorted(wanted)] + list(index.item_shards)
    try:
        make_private(staged.parents[1])
        staged.mkdir(parents=True, exist_ok=True)
        missing = [
            entry
            for entry in chosen
            if (path := staged / entry.file).is_symlink() or file_problem(path, entry, index, deep=True)
        ]
        _check_room(staged, sum(entry.bytes for entry in missing))
        problems = _copy_all(folder, staged, missing, tell)
        for entry in index.files:
            with suppress(FileExistsError):
                (staged / entry.file).symlink_to((folder / entry.file).resolve())
        with atomic_path(staged / INDEX_NAME) as temporary:
            shutil.copyfile(folder / INDEX_NAME, temporary)
    except OSError as error:
        raise UserError(
            f"labels.stage_to: labels cannot be copied to {staged}: {error.strerror}. Mend that, or leave it out."
        ) from None
    return problems


def remove_staged(staged: Path) -> None:
    """Remove a copy, and the run's and the user's folders around it when they are empty then."""
    shutil.rmtree(staged, ignore_errors=True)
    with suppress(OSError):
        staged.parent.rmdir()
        staged.parents[1].rmdir()


def make_private(folder: Path) -> None:
    """Make a folder for this user alone; UserError where something else stands there, perhaps planted by another user.

    What another user had put there would be read as labels, or a link of theirs be written through.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022:
        raise UserError(
            f"labels.stage_to: {folder} is not a folder that belongs to you and only you can write to; remove it, or "
            "name another folder."
        )


def _check_room(staged: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(staged).free
    if num_bytes > free:
        raise UserError(
            f"labels.stage_to: {staged} has {free / GIB:.1f} GiB free, and the labels that this node reads take "
            f"{num_bytes / GIB:.1f} GiB. Give a larger disk, more nodes, or leave it out."
        )


def _copy_all(
    folder: Path, staged: Path, entries: Sequence[LabelShard | ItemShard], tell: Callable[[int, int], None]
) -> list[str]:
    """Copy the files; a sentence for each that does not have the index's checksum, which is not kept."""
    total, copied, problems = sum(entry.bytes for entry in entries), 0, []
    for entry in entries:
        digest = hashlib.sha256()
        with (
            atomic_path(staged / entry.file) as temporary,
            open(folder / entry.file, "rb") as source,
            open(temporary, "wb") as target,
        ):
            while block := source.read(BLOCK_BYTES):
                target.write(block)
                digest.update(block)
                copied += len(block)
                tell(copied, total)
        if digest.hexdigest() != entry.sha256:
            (staged / entry.file).unlink()
            problems.append(f"{entry.file} has another checksum than the index says: its bytes were changed.")
    return problems
