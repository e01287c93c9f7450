"""One safetensors file at a time: written row by row, its header read and checked, its rows memory-mapped.

The layout is that of the safetensors format: the header's length (8 bytes, little endian), the header
as JSON, then the tensors' bytes. It is written here because the library needs a whole tensor in memory,
and puts metadata of several keys in an order that changes from process to process.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed.layout import LabelColumn
from csrec_dist.errors import UserError
from csrec_dist.files import atomic_path
from csrec_dist.labels.format import FORMAT_VERSION, LabelSource
from csrec_dist.tensor_files import SAFETENSORS_TYPES, TensorSpec, read_header, safetensors_header

ARRAYS = {"float32": "<f4", "float16": "<f2", "bfloat16": "<i2", "int32": "<i4"}
"""How numpy sees the bytes of a type; of bfloat16, which it does not know, as integers."""


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
                assert (part.dtype, part.shape[1:]) == (getattr(torch, spec.dtype), spec.shape[1:])
                file.seek(begins[name] + num_rows * spec.num_bytes // max(spec.shape[0], 1))
                file.write(_number_bytes(part))
            num_rows += len(part)

        yield append
        assert {num_rows} == {spec.shape[0] for spec in specs.values()}, f"{num_rows} rows were written, not {specs}"


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors atomically. Equal tensors and metadata give equal bytes."""
    specs = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(safetensors_header(specs, metadata))
        for tensor in tensors.values():
            file.write(_number_bytes(tensor))


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
    return np.asarray(mapped)  # rows of a plain array are read with less ado than those of a memmap


def as_tensor(array: np.ndarray, dtype: str) -> Tensor:
    """What was copied from such a map, as a tensor of its type; the memory is shared."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def _offsets(specs: Mapping[str, TensorSpec]) -> dict[str, tuple[int, int]]:
    """Where each tensor's bytes begin and end after the header."""
    found, start = {}, 0
    for name, spec in specs.items():
        found[name] = start, start + spec.num_bytes
        start += spec.num_bytes
    return found


def _number_bytes(tensor: Tensor) -> memoryview:
    plain = tensor.cpu().contiguous()
    plain = plain.view(torch.int16) if tensor.dtype == torch.bfloat16 else plain
    return np.ascontiguousarray(plain.numpy(), ARRAYS[TensorSpec.of(tensor).dtype]).data


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
