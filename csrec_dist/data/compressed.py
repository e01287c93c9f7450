"""Files of a log as plain bytes, whether they are plain, compressed (gz, bz2, xz, zst), or members of a zip archive.

A member of an archive has a path like a file in a folder: ml-1m.zip/ml-1m/ratings.dat. A small compressed file may hold
any number of rows: `Expansion` counts them, and refuses what this machine cannot take.
"""

import bz2
import gzip
import io
import lzma
import math
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import psutil

from csrec_dist.errors import UserError, listed
from csrec_dist.storage import GIB, size

MAGIC = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ\x00", "zstd": b"\x28\xb5\x2f\xfd"}
ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")  # of an archive with files, and of an empty one
BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # after the level of compression: of a first block, or of an empty file
PARSED_AS_THEY_ARE = (None, "gzip", "zstd")  # polars decompresses these itself, piece by piece
NUM_PEEKED = 16
TAR_MAGIC_AT = 257
BYTES_OF_ROW = 150
"""Of memory at the peak of `prepare`, at least (180 were measured, of rows like 4711,815,1234567)."""
SHARE_OF_ROOM = 0.9
"""Of a disk's free bytes, that unpacked files may take: the temporary folder is everybody's."""


def on_disk(path: Path) -> Path | None:
    """The file itself, or the archive that a path leads into; None if neither is there."""
    place = next((place for place in (path, *path.parents) if place.is_file()), None)
    return place if place is None or place == path or is_archive(place) else None


def is_archive(path: Path) -> bool:
    """Whether the file is a zip archive."""
    with open(path, "rb") as file:
        return file.read(len(ZIP_MAGIC[0])) in ZIP_MAGIC


def members(archive: Path) -> list[Path]:
    """The paths of the files in a zip archive. Raises UserError if it is damaged."""
    with _undamaged(archive, "zip"), zipfile.ZipFile(archive) as zipped:
        return [archive / info.filename for info in zipped.infolist() if not info.is_dir()]


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file or a member of an archive for reading its bytes, decompressed.

    Raises UserError if it is damaged, or a tar archive.
    """
    with ExitStack() as stack:
        raw = _raw(path, stack)
        with _undamaged(path, "zip"):  # reading ahead checks a small member as a whole
            kind = _kind(raw.peek(NUM_PEEKED)[:NUM_PEEKED])
        stack.enter_context(_undamaged(path, kind or "zip"))
        file = raw if kind is None else stack.enter_context(io.BufferedReader(OPENERS[kind](raw)))
        beginning = file.peek(512)
        if beginning[TAR_MAGIC_AT : TAR_MAGIC_AT + 5] == b"ustar":
            raise UserError(f"{path} is a tar archive: unpack it, and give one of its files.")
        if beginning.startswith(ZIP_MAGIC):
            raise UserError(f"{path} is a zip archive within another file: unpack it, and give one of its files.")
        yield file


class Expansion:
    """What the compressed files of a log expand to, counted piece by piece."""

    def __init__(self, max_gib: float | None, folder: Path) -> None:
        """`max_gib` is allowed in all; if None, what the memory and the disk of `folder` have room for now."""
        self._max_bytes = math.inf if max_gib is None else max_gib * GIB
        self._memory = psutil.virtual_memory().available if max_gib is None else math.inf
        self._room = SHARE_OF_ROOM * shutil.disk_usage(folder).free if max_gib is None else math.inf
        self._num_bytes = self._num_stored = self._num_rows = self._line = self._longest_line = 0

    def add(self, piece: bytes, path: Path, *, is_stored: bool) -> None:
        """Count the next bytes of a file; `is_stored`: they are written to the disk. UserError if it is too much."""
        self._num_bytes += len(piece)
        self._num_stored += len(piece) if is_stored else 0
        self._num_rows += piece.count(b"\n")
        end = piece.rfind(b"\n")
        self._line = len(piece) - end - 1 if end >= 0 else self._line + len(piece)
        self._longest_line = max(self._longest_line, self._line)
        if problem := self._problem():
            raise UserError(
                f"{path} expands to {size(self._num_bytes)} and {self._num_rows:,} lines, if not more: {problem}. Give "
                "a part of it, or if it is meant to be so large, set dataset.max_unpacked_gib to what it may expand to."
            )

    def _problem(self) -> str:
        needed = self._num_rows * BYTES_OF_ROW + self._longest_line
        if self._num_bytes > self._max_bytes:
            return f"dataset.max_unpacked_gib allows {size(int(self._max_bytes))}"
        if needed > self._memory:
            return f"they take {size(needed)} of memory, of which {size(int(self._memory))} are free"
        if self._num_stored > self._room:
            return f"the temporary folder has room for {size(int(self._room))}"
        return ""


def compression(path: Path) -> str | None:
    """How the file on disk is compressed: gzip, bzip2, xz, zstd, zip (a member of an archive), or None."""
    if not path.is_file():
        return "zip"
    with open(path, "rb") as file:
        return _kind(file.read(NUM_PEEKED))


def _raw(path: Path, stack: ExitStack) -> io.BufferedReader:
    """The bytes of the file on disk, or of the member."""
    place = on_disk(path)
    if place is None or place == path:
        return stack.enter_context(open(path, "rb"))
    name = path.relative_to(place).as_posix()
    with _undamaged(place, "zip"):
        archive = stack.enter_context(zipfile.ZipFile(place))
        if name not in archive.namelist():
            raise UserError(f"{place} has no file {name}; it has {listed(archive.namelist())}.")
        try:
            return io.BufferedReader(stack.enter_context(archive.open(name)))  # type: ignore[arg-type]
        except RuntimeError as error:  # it needs a password, or is compressed in an unknown way
            raise UserError(f"{path} cannot be read ({error}): unpack the archive, and give the file.") from None


def _kind(beginning: bytes) -> str | None:
    kind = next((kind for kind, magic in MAGIC.items() if beginning.startswith(magic)), None)
    return None if kind == "bzip2" and beginning[4:10] not in BZIP2_BLOCKS else kind


def _zstd(raw: IO[bytes]) -> Any:
    import pyarrow as pa  # Python has a decompressor of its own from 3.14 on

    return pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")


OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    "gzip": lambda raw: gzip.GzipFile(fileobj=raw),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zstd": _zstd,
}


@contextmanager
def _undamaged(path: Path, kind: str) -> Iterator[None]:
    """What decompressors say of a damaged file as a UserError."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the file system
            raise
        raise UserError(f"{path} is a damaged {kind} file ({error}): get it again.") from None
