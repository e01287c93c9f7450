"""Safetensors files: written whole or not at all, tensor by tensor where they are large, and opened checked."""

import json
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from safetensors import safe_open

from csrec_dist.errors import UserError
from csrec_dist.files import atomic_path

SAFETENSORS_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}


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
