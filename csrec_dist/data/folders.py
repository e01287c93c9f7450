"""Folders that appear whole or not at all."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from csrec_dist.files import make_folder


def remove_leftovers(folder: Path) -> None:
    """Remove the hidden siblings that `new_folder` made for `folder` in processes that are no more."""
    if not folder.parent.is_dir():
        return
    for sibling in folder.parent.iterdir():
        found = re.fullmatch(rf"\.{re.escape(folder.name)}\.(\d+)\.tmp", sibling.name)
        if found and not psutil.pid_exists(int(found[1])):
            shutil.rmtree(sibling, ignore_errors=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a hidden sibling that becomes `folder` at the end; it is removed if anything fails."""
    new = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(new, ignore_errors=True)
    make_folder(folder.parent)
    new.mkdir()
    try:
        yield new
        for file in [*new.rglob("*"), new]:
            _sync(file)
        os.replace(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
