"""Safetensors files: written whole or not at all, block by block where they are large, opened checked, and mapped.

A type of numbers is its name here ("float32"), so that headers are read and checked without torch. The library needs a
whole tensor in memory to write it, and puts metadata of several keys in an order that changes from process to process;
so files whose bytes must be equal are written here: the header's length (8 bytes, little endian), the header as JSON,
then the tensors' bytes.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from csrec_dist.errors import UserError
from csrec_dist.files import atomic_path, has_checksum, parse_json

if TYPE_CHECKING:
    import torch
    from safetensors import safe_open

MAX_HEADER_BYTES = 100_000_000
SAFETENSORS_TYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
}
"""What the format calls a type of numbers; its last digits are the bits of one."""
ARRAYS = {"float32": "<f4", "float16": "<f2", "bfloat16": "<i2", "int32": "<i4"}
"""How numpy sees the bytes of a type; of bfloat16, which it does not know, as integers."""
CHECKSUM = "sha256"
"""Names, in a file's metadata, the SHA-256 of the file with zeros in its place."""
NO_CHECKSUM = "0" * 64
BLOCK_BYTES = 1 << 20
BLOCK_NUMBERS = 1 << 22
"""Of a tensor that are copied from a GPU, or made contiguous, at a time."""


class TensorSpec(NamedTuple):
    """The type and shape of a tensor in a file."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: "torch.Tensor | StreamedTensor") -> Self:
        """Those of a tensor at hand."""
        return cls(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return int(SAFETENSORS_TYPES[self.dtype].lstrip("BFI")) // 8

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class StreamedTensor:
    """A tensor that is written block by block of its rows, which in order make up `shape`."""

    dtype: "torch.dtype"
    shape: tuple[int, ...]
    blocks: "Iterable[torch.Tensor]"

    @classmethod
    def of(cls, tensor: "torch.Tensor") -> Self:
        """A tensor that is at hand, in blocks of its numbers, so that one on a GPU is copied a block at a time."""
        blocks = tensor.detach().flatten().split(BLOCK_NUMBERS) if tensor.is_contiguous() else [tensor.detach()]
        return cls(tensor.dtype, tuple(tensor.shape), blocks)


def stream_tensors(path: Path | str | None, tensors: Mapping[str, StreamedTensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically, one block in memory at a time; for None, go through the blocks alone.

    So that processes which make the blocks together go through them in one order, and one of them writes. The file's
    metadata holds its checksum, which `checksum_problem` compares.
    """
    import torch

    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    blocks = chain.from_iterable(tensor.blocks for tensor in ordered.values())
    if path is None:
        deque(blocks, maxlen=0)
        return
    specs = {name: TensorSpec.of(tensor) for name, tensor in ordered.items()}
    num_bytes = sum(spec.num_bytes for spec in specs.values())
    with atomic_path(path, num_bytes) as temporary, open(temporary, "wb") as file:
        header = safetensors_header(specs, {**metadata, CHECKSUM: NO_CHECKSUM})
        digest = hashlib.sha256(header)
        file.write(header)
        for block in blocks:
            numbers = block.cpu().contiguous().flatten().view(torch.uint8).numpy().data
            file.write(numbers)
            digest.update(numbers)
        file.seek(header.index(NO_CHECKSUM.encode()))
        file.write(digest.hexdigest().encode())


def save_tensors(
    path: Path | str, tensors: "Mapping[str, torch.Tensor]", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically. Equal tensors and metadata give equal bytes.

    The library's own `save_file` gives its files mode 0600, whatever the umask.
    """
    stream_tensors(path, {name: StreamedTensor.of(tensor) for name, tensor in tensors.items()}, metadata or {})


@contextmanager
def write_rows(
    path: Path | str, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]
) -> "Iterator[Callable[[Mapping[str, torch.Tensor]], None]]":
    """Write tensors of N rows each atomically, in blocks of rows; equal tensors and metadata give equal bytes.

    Yields the function that appends some rows of every tensor; the blocks must add up to N rows.
    """
    header = safetensors_header(specs, metadata)
    begins, end = {}, len(header)
    for name, spec in specs.items():
        begins[name], end = end, end + spec.num_bytes
    with atomic_path(path, end) as temporary, open(temporary, "wb") as file:
        file.write(header)
        num_rows = 0

        def append(rows: "Mapping[str, torch.Tensor]") -> None:
            nonlocal num_rows
            assert rows.keys() == specs.keys()
            assert len({len(part) for part in rows.values()}) == 1
            for name, part in rows.items():
                spec, of_part = specs[name], TensorSpec.of(part)
                assert (of_part.dtype, of_part.shape[1:]) == (spec.dtype, spec.shape[1:])
                # All tensors grow together, each at its place: what is between them is filled by later blocks.
                file.seek(begins[name] + num_rows * spec.num_bytes // max(spec.shape[0], 1))
                file.write(_number_bytes(part))
            num_rows += len(part)

        yield append
        assert {num_rows} == {spec.shape[0] for spec in specs.values()}, f"{num_rows} rows were written, not {specs}"


def _number_bytes(tensor: "torch.Tensor") -> memoryview:
    import torch

    plain = tensor.cpu().contiguous()
    plain = plain.view(torch.int16) if tensor.dtype == torch.bfloat16 else plain
    return np.ascontiguousarray(plain.numpy(), ARRAYS[TensorSpec.of(tensor).dtype]).data


def map_tensor(path: Path | str, name: str, spec: TensorSpec) -> np.ndarray:
    """The tensor `name` of a safetensors file as a read-only memory map, which `as_tensor` understands.

    Raises UserError when the file is not whole or has no such tensor.
    """
    header = read_header(path)
    tensor = header.tensors.get(name, {})
    begin, end = tensor.get("data_offsets", (0, 0))
    fits = tensor.get("dtype") == SAFETENSORS_TYPES[spec.dtype] and tuple(tensor["shape"]) == spec.shape
    if not fits or end - begin != spec.num_bytes or Path(path).stat().st_size != header.file_bytes:
        raise UserError(f"{path} is not a whole shard of {name}. Run `labels verify`, and label again.")
    mapped = np.memmap(path, ARRAYS[spec.dtype], mode="r", offset=header.start + begin, shape=spec.shape)
    return np.asarray(mapped)  # a memmap would make another memmap of every row that is read, which takes longer


def as_tensor(array: np.ndarray, dtype: str) -> "torch.Tensor":
    """What was copied from such a map, as a tensor of its type; the memory is shared."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def open_tensors(path: Path) -> "safe_open":
    """A safetensors file, opened for reading.

    Raises:
        FileNotFoundError: it is absent.
        SafetensorError: it is no whole safetensors file.
        UserError: it cannot be read for another reason, of which safetensors would say that it is absent.
    """
    from safetensors import safe_open

    try:
        with open(path, "rb"):
            return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def stored_checksum(path: Path | str) -> str | None:
    """The checksum that a safetensors file gives itself, without reading its tensors; None for another tool's."""
    return read_header(path).metadata.get(CHECKSUM)


def checksum_problem(path: Path | str) -> str | None:
    """What is wrong with a safetensors file by its own checksum, in a sentence; None where it is sound or has none.

    A process that asks again reads only a file that was changed meanwhile.

    Raises:
        FileNotFoundError: it is absent.
    """
    try:
        stored = stored_checksum(path)
    except UserError as error:
        return str(error)
    if stored is None or has_checksum(path, stored, _own_checksum):
        return None
    return f"{path} is damaged: its bytes do not have the checksum that it was written with."


def _own_checksum(path: Path | str) -> str:
    """The SHA-256 of a file whose metadata holds one, with zeros in the place of that."""
    header = read_header(path)
    with open(path, "rb") as file:
        begin = file.read(header.start)
        digest = hashlib.sha256(begin.replace(header.metadata[CHECKSUM].encode(), NO_CHECKSUM.encode(), 1))
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def safetensors_header(tensors: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """What a safetensors file of these tensors, in this order, begins with.

    The header's length (8 bytes, little endian), and the header: JSON, filled up to a multiple of 8 bytes.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.num_bytes
        header[name] = {
            "dtype": SAFETENSORS_TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


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

    def holds(self, specs: Mapping[str, TensorSpec]) -> bool:
        """Whether the tensors are exactly these."""
        shapes = {name: (tensor["dtype"], tuple(tensor["shape"])) for name, tensor in self.tensors.items()}
        return shapes == {name: (SAFETENSORS_TYPES[spec.dtype], spec.shape) for name, spec in specs.items()}


def read_header(path: Path | str) -> Header:
    """The header of a safetensors file; UserError when it is not sound."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        text = file.read(size) if size <= MAX_HEADER_BYTES else b""
    try:
        tensors = parse_json(text) if len(text) == size else None
    except ValueError:
        tensors = None
    if not isinstance(tensors, dict):
        raise UserError(f"{path} is not a whole safetensors file.")
    metadata = tensors.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(map(_is_entry, tensors.values())):
        raise UserError(f"{path} has a damaged header.")
    return Header(metadata, tensors, 8 + size)


def _is_entry(tensor: Any) -> bool:
    """Whether a header's value says where a tensor lies, and of which shape it is."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("dtype"), str):
        return False
    shape, offsets = tensor.get("shape"), tensor.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    return all(isinstance(number, int) and number >= 0 for number in shape + offsets)
