"""Files that are whole or absent: atomic writes, checksums, fingerprints."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from safetensors.torch import save_file

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
    """Yield a temporary path beside `path`; on success its content is synced and renamed to `path`.

    A reader therefore sees the old file, the new file or none, never a part of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def save_tensors(
    path: Path | str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically. Equal tensors give equal bytes while there is at most one metadata key."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata=dict(metadata) if metadata else None)


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
    """Write the very bytes of `save_tensors`, one block in memory at a time; for None, go through the blocks alone.

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
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
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
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.unlink(missing_ok=True)
        path.symlink_to(os.path.relpath(target.resolve(), path.parent.resolve()))
