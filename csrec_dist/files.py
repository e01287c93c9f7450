"""Files that are whole or absent: atomic writes, checksums, fingerprints."""

import hashlib
import json
import os
import secrets
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from safetensors import safe_open

from csrec_dist.errors import UserError

SAFETENSORS_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield the path of a new empty file beside `path`; on success its content is synced and renamed to `path`.

    A reader therefore sees the old file, the new file or none, never a part of one. The file's mode is what the umask
    leaves; it is opened by nobody else's name or link, since its own name cannot be guessed.

    Raises:
        UserError: what stands at `path` is a folder, a device or another special file, or its parent is no folder.
    """
    path = Path(path)
    require_replaceable(path)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_replaceable(path: Path) -> None:
    """UserError if something stands at `path` that no file may replace: a folder, a device, a pipe."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the file to write, like {path / 'file'}.")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a device or another special file, which is not replaced; name a regular file.")


def make_folder(path: Path) -> None:
    """Make a folder and those around it, unless they are there; UserError where that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be a folder to write into: {error.strerror}. Name another one.") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` atomically (UTF-8)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read JSON; UserError when the file is absent, unreadable or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


@dataclass(frozen=True)
class StreamedTensor:
    """A tensor that is written block by block of its rows, which in order make up `shape`."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Iterable[torch.Tensor]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Self:
        """A tensor that is at hand, as one block."""
        return cls(tensor.dtype, tuple(tensor.shape), [tensor.detach()])


def stream_tensors(path: Path | str | None, tensors: Mapping[str, StreamedTensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically, one block in memory at a time; for None, go through the blocks alone.

    So that processes which make the blocks together go through them in one order, and one of them writes.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    blocks = chain.from_iterable(tensor.blocks for tensor in ordered.values())
    if path is None:
        deque(blocks, maxlen=0)
        return
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(safetensors_header(ordered, metadata))
        for block in blocks:
            file.write(block.cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def save_tensors(
    path: Path | str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically. Equal tensors and metadata give equal bytes.

    The library's own `save_file` gives its files mode 0600, whatever the umask.
    """
    stream_tensors(path, {name: StreamedTensor.of(tensor) for name, tensor in tensors.items()}, metadata or {})


def open_tensors(path: Path) -> safe_open:
    """A safetensors file, opened for reading.

    Raises:
        FileNotFoundError: it is absent.
        SafetensorError: it is no whole safetensors file.
        UserError: it cannot be read for another reason, of which safetensors would say that it is absent.
    """
    try:
        with open(path, "rb"):
            return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


class TensorLike(Protocol):
    """Number type and shape of a tensor."""

    @property
    def dtype(self) -> torch.dtype:
        """Number type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape."""


def safetensors_header(tensors: Mapping[str, TensorLike], metadata: Mapping[str, str]) -> bytes:
    """What a safetensors file of these tensors, in this order, begins with.

    The header's length (8 bytes, little endian), and the header: JSON, filled up to a multiple of 8 bytes.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, tensor in tensors.items():
        end = start + prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {
            "dtype": SAFETENSORS_TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def check_cover(what: str, ranges: Iterable[tuple[int, int]], start: int, count: int) -> None:
    """ValueError unless the ranges (first, number), in this order, make up start … start + count − 1."""
    end = start
    for first, size in ranges:
        if first != end:
            kind = "a gap" if first > end else "an overlap"
            raise ValueError(f"the files' {what} have {kind}: a file starts at {first}, the one before ends at {end}")
        end += size
    if end != start + count:
        raise ValueError(f"the files hold {end - start} {what}, not {count}")


def sha256_file(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """16 hexadecimal digits that depend on a JSON value only, not on the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def link(path: Path, target: Path) -> None:
    """Make `path` a relative link to `target`, unless there is something already; a broken link is replaced."""
    make_folder(path.parent)
    if not path.exists():
        path.unlink(missing_ok=True)
        path.symlink_to(os.path.relpath(target.resolve(), path.parent.resolve()))
