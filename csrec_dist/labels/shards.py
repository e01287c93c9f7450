"""One safetensors file at a time: written row by row, its header read and checked, its rows memory-mapped.

The layout is that of the safetensors format: the header's length (8 bytes, little endian), the header
as JSON, then the tensors' bytes. It is written here because the library needs a whole tensor in memory,
and puts metadata of several keys in an order that changes from process to process.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csrec_dist.errors import UserError
from csrec_dist.files import atomic_path

MAX_HEADER_BYTES = 100_000_000
NUMBER = np.dtype("<f4")


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself; `start` is where the tensors' bytes begin."""

    metadata: dict[str, str]
    tensors: dict[str, dict[str, Any]]
    start: int

    @property
    def file_bytes(self) -> int:
        """The size that a whole file with this header has."""
        return self.start + max((tensor["data_offsets"][1] for tensor in self.tensors.values()), default=0)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {name: tuple(tensor["shape"]) for name, tensor in self.tensors.items()}


@contextmanager
def write_rows(
    path: Path | str, name: str, shape: tuple[int, int], metadata: Mapping[str, str]
) -> Iterator[Callable[[Tensor], None]]:
    """Write a float32 tensor called `name` of `shape` [N, C] atomically, in blocks of rows.

    Yields the function that appends rows [n, C]; the blocks must add up to N rows.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(_header_bytes({name: shape}, metadata))
        num_rows = 0

        def append(rows: Tensor) -> None:
            nonlocal num_rows
            assert rows.shape[1:] == shape[1:]
            file.write(_number_bytes(rows))
            num_rows += len(rows)

        yield append
        assert num_rows == shape[0], f"{num_rows} of {shape[0]} rows were written"


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write float32 tensors atomically. Equal tensors and metadata give equal bytes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(_header_bytes(shapes, metadata))
        for tensor in tensors.values():
            file.write(_number_bytes(tensor))


def read_header(path: Path | str) -> Header:
    """The header of a safetensors file; UserError when it is not sound."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        text = file.read(size) if size <= MAX_HEADER_BYTES else b""
    try:
        tensors = json.loads(text) if len(text) == size else None
    except ValueError:
        tensors = None
    if not isinstance(tensors, dict):
        raise UserError(f"{path} is not a whole safetensors file.")
    metadata = tensors.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(map(_is_entry, tensors.values())):
        raise UserError(f"{path} has a damaged header.")
    return Header(metadata, tensors, 8 + size)


def map_tensor(path: Path | str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 tensor `name` of `shape` in a safetensors file as a read-only memory map.

    Raises UserError when the file is not whole or has no such tensor.
    """
    header = read_header(path)
    tensor = header.tensors.get(name, {})
    begin, end = tensor.get("data_offsets", (0, 0))
    fits = tensor.get("dtype") == "F32" and header.shapes()[name] == shape and end - begin == _num_bytes(shape)
    if not fits or Path(path).stat().st_size != header.file_bytes:
        raise UserError(f"{path} is not a whole shard of {name}. Run `labels verify`, and label again.")
    return np.memmap(path, NUMBER, mode="r", offset=header.start + begin, shape=shape)


def _is_entry(tensor: Any) -> bool:
    """Whether a header's value says where a tensor lies, and of which shape it is."""
    if not isinstance(tensor, dict):
        return False
    shape, offsets = tensor.get("shape"), tensor.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    return all(isinstance(number, int) and number >= 0 for number in shape + offsets)


def _header_bytes(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name, shape in shapes.items():
        end = start + _num_bytes(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _num_bytes(shape: tuple[int, ...]) -> int:
    return prod(shape) * NUMBER.itemsize


def _number_bytes(tensor: Tensor) -> memoryview:
    assert tensor.dtype == torch.float32
    return np.ascontiguousarray(tensor.cpu().numpy(), NUMBER).data
