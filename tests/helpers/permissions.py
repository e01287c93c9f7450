"""What somebody else meets who may not read a file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def as_a_colleague(path: Path) -> Iterator[None]:
    """Without permission to read the file or enter the folder; root, who may do all, is somebody else meanwhile."""
    before = path.stat().st_mode
    folders = [folder for folder in path.parents if folder.stat().st_mode & 0o055 != 0o055]
    modes = [folder.stat().st_mode for folder in folders]
    path.chmod(0o600 if os.geteuid() == 0 else 0)
    for folder in folders:
        folder.chmod(0o755)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        path.chmod(before)
        for folder, mode in zip(folders, modes, strict=True):
            folder.chmod(mode)
