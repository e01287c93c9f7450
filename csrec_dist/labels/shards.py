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
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed.layout import LabelColumn
from csrec_dist.errors import UserError
from csrec_dist.files import atomic_path
from csrec_dist.labels.format import FORMAT_VERSION, LabelSource, TensorSpec
from csrec_dist.tensor_files import SAFETENSORS_TYPES, safetensors_header

MAX_HEADER_BYTES = 100_000_000
ARRAYS = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "<i2", torch.int32: "<i4"}
"""How numpy sees the bytes of a type; of bfloat16, which it does not know, as integers."""


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
        found = {name: (tensor["dtype"], tuple(tensor["shape"])) for name, tensor in self.tensors.items()}
        return found == {name: (SAFETENSORS_TYPES[spec.dtype], spec.shape) for name, spec in specs.items()}


@contextmanager
def write_rows(
    path: Path | str, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]
) -> Iterator[Callable[[Mapping[str, Tensor]], None]]:
    """Write tensors of N rows each atomically, in blocks of rows.

    Yields the function that appends some rows of every tensor; the blocks must add up to N rows.
    """
    header = safetensors_header(specs, metadata)
    begins = {name: len(header) + begin for name, (begin, _) in _offsets(specs).items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(header)
        num_rows = 0

        def append(rows: Mapping[str, Tensor]) -> None:
            nonlocal num_rows
            assert rows.keys() == specs.keys()
            assert len({len(part) for part in rows.values()}) == 1
            for name, part in rows.items():
                spec = specs[name]
                assert (part.dtype, part.shape[1:]) == (spec.dtype, spec.shape[1:])
                file.seek(begins[name] + num_rows * _num_bytes(spec) // max(spec.shape[0], 1))
                file.write(_number_bytes(part))
            num_rows += len(part)

        yield append
        assert {num_rows} == {spec.shape[0] for spec in specs.values()}, f"{num_rows} rows were written, not {specs}"


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors atomically. Equal tensors and metadata give equal bytes."""
    specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(safetensors_header(specs, metadata))
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


def map_tensor(path: Path | str, name: str, spec: TensorSpec) -> np.ndarray:
    """The tensor `name` of a safetensors file as a read-only memory map, which `as_tensor` understands.

    Raises UserError when the file is not whole or has no such tensor.
    """
    header = read_header(path)
    tensor = header.tensors.get(name, {})
    begin, end = tensor.get("data_offsets", (0, 0))
    fits = tensor.get("dtype") == SAFETENSORS_TYPES[spec.dtype] and tuple(tensor["shape"]) == spec.shape
    if not fits or end - begin != _num_bytes(spec) or Path(path).stat().st_size != header.file_bytes:
        raise UserError(f"{path} is not a whole shard of {name}. Run `labels verify`, and label again.")
    mapped = np.memmap(path, ARRAYS[spec.dtype], mode="r", offset=header.start + begin, shape=spec.shape)
    return np.asarray(mapped)  # rows of a plain array are read with less ado than those of a memmap


def as_tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """What was copied from such a map, as a tensor of its type; the memory is shared."""
    tensor = torch.from_numpy(array)
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor


def _is_entry(tensor: Any) -> bool:
    """Whether a header's value says where a tensor lies, and of which shape it is."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("dtype"), str):
        return False
    shape, offsets = tensor.get("shape"), tensor.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    return all(isinstance(number, int) and number >= 0 for number in shape + offsets)


def _offsets(specs: Mapping[str, TensorSpec]) -> dict[str, tuple[int, int]]:
    """Where each tensor's bytes begin and end after the header."""
    found, start = {}, 0
    for name, spec in specs.items():
        found[name] = start, start + _num_bytes(spec)
        start += _num_bytes(spec)
    return found


def _num_bytes(spec: TensorSpec) -> int:
    return prod(spec.shape) * spec.dtype.itemsize


def _number_bytes(tensor: Tensor) -> memoryview:
    plain = tensor.cpu().contiguous()
    plain = plain.view(torch.int16) if tensor.dtype == torch.bfloat16 else plain
    return np.ascontiguousarray(plain.numpy(), ARRAYS[tensor.dtype]).data


ITEMS_PER_FILE = 65_536


@dataclass(frozen=True)
class ShardPlan:
    """A file to be: its kind and place among it, its range, and all that its header must say."""

    kind: Literal["labels", "items"]
    number: int
    file: str
    first: int
    count: int
    tensors: dict[str, TensorSpec]
    metadata: dict[str, str]

    def is_whole(self, path: Path) -> bool:
        """Whether `path` is a file of full size with exactly this header."""
        try:
            header = read_header(path)
        except (FileNotFoundError, UserError):
            return False
        whole = path.stat().st_size == header.file_bytes
        return whole and header.holds(self.tensors) and header.metadata == self.metadata


def shard_plans(source: LabelSource, dataset: Dataset, has_bias: bool) -> list[ShardPlan]:
    """All files of the cache but the index: labels by shard, then item tables by rows."""
    split = dataset.splits["train"]
    shards = zip(split.first_examples, split.shard_examples, strict=False)
    plans = [
        _plan(source, "labels", i, dataset.num_shards, first, count, source.label_tensors(count))
        for i, (first, count) in enumerate(shards)
    ]
    num_files = -(-source.num_items // ITEMS_PER_FILE) if source.form == "factored" else 0
    for i in range(num_files):
        count = min(ITEMS_PER_FILE, source.num_items - i * ITEMS_PER_FILE)
        tensors = source.item_tensors(count, has_bias)
        plans.append(_plan(source, "items", i, num_files, i * ITEMS_PER_FILE + 1, count, tensors))
    return plans


def owner(plan: ShardPlan, column: LabelColumn) -> int | None:
    """Position in the column of the rank that writes the file, or None where it is another column's."""
    rank = plan.number % column.world_size
    return column.ranks.index(rank) if rank in column.ranks else None


def _plan(
    source: LabelSource,
    kind: Literal["labels", "items"],
    number: int,
    num_files: int,
    first: int,
    count: int,
    tensors: dict[str, TensorSpec],
) -> ShardPlan:
    metadata = {
        "format": f"csrec_dist.labels.{FORMAT_VERSION}.{kind}",
        "source": source.fingerprint,
        "dataset": source.dataset_fingerprint,
        "first": str(first),
    }
    file = f"{kind}-{number:05d}-of-{num_files:05d}.safetensors"
    return ShardPlan(kind, number, file, first, count, tensors, metadata)
