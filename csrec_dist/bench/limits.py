"""What the machines can do with one thing at a time: a large product, a file, an all-reduce, labels from a cold disk.

All ranks do each at once, as they do in a run: they share cores, memory, disk and network there too.
"""

import gc
import os
import secrets
import statistics
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from csrec_dist.data.batches import to_batch
from csrec_dist.distributed import Runtime
from csrec_dist.labels import LabelCache
from csrec_dist.process_state import matmul_precision
from csrec_dist.runs.stages.active import ActiveRun
from csrec_dist.training.options import TrainingOptions

PRODUCT_SIZE = {"cpu": 2048, "cpu, bf16": 512, "cuda": 8192}
REPEATS = 5
BLOCK = 1 << 24
MOST_DISK_BYTES = 1 << 30
"""Of a rank's file: a larger label cache says no more about the disk."""


class Disk(NamedTuple):
    """Bytes of all ranks' files, and the seconds of the slowest rank to write and sync its own, and to read it."""

    bytes: int
    write_seconds: float
    read_seconds: float


def _product_size(device: torch.device, options: TrainingOptions) -> int:
    """Rows and columns of the product. A CPU without instructions for bf16 takes forty times as long for it."""
    return PRODUCT_SIZE["cpu, bf16" if device.type == "cpu" and options.precision == "bf16" else device.type]


def described_product(device: torch.device, options: TrainingOptions) -> str:
    """The product whose speed is taken for a device's peak, in a few words."""
    size = _product_size(device, options)
    kind = "bf16" if options.precision == "bf16" else f"fp32 ({options.matmul_precision})"
    return f"{size} × {size} × {size}, {kind}"


def product_teraflops(runtime: Runtime, options: TrainingOptions) -> float:
    """TFLOP/s of this rank in the fastest of several products of large matrices, in the precision of the encoder."""
    device, size = runtime.device, _product_size(runtime.device, options)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    with matmul_precision(options.matmul_precision):
        seconds = _times(runtime, lambda: torch.mm(left, right, out=out))
    return 2 * size**3 / min(seconds) / 1e12


def all_reduce_seconds(runtime: Runtime, num_bytes: int) -> float:
    """The median time of a sum of so many bytes over all ranks."""
    tensor = torch.zeros(max(num_bytes // 4, 1), device=runtime.device)
    return statistics.median(_times(runtime, lambda: runtime.world.all_reduce_sum(tensor)))


def _times(runtime: Runtime, work: Callable[[], object]) -> list[float]:
    """Seconds of each repetition of some work; the first is not counted."""
    seconds = []
    for _ in range(1 + REPEATS):
        runtime.world.barrier()
        begin = time.perf_counter()
        work()
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def disk_seconds(runtime: Runtime, folder: Path, num_bytes: int) -> Disk:
    """Write a file of this rank's share of so many bytes, and read it again from the disk, not from the page cache."""
    size = min(max(num_bytes // runtime.world_size, 1), MOST_DISK_BYTES)
    path, block = folder / f"disk-{runtime.rank}", memoryview(secrets.token_bytes(min(size, BLOCK)))
    runtime.world.barrier()
    begin = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for first in range(0, size, len(block)):
            file.write(block[: size - first])
        os.fsync(file.fileno())
    write_seconds = time.perf_counter() - begin
    drop_from_page_cache(path)
    runtime.world.barrier()
    begin = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.read(BLOCK):
            pass
    read_seconds = time.perf_counter() - begin
    path.unlink()
    slowest = [max(seconds) for seconds in zip(*runtime.gather([write_seconds, read_seconds]), strict=True)]
    return Disk(size * runtime.world_size, *slowest)


def drop_from_page_cache(path: Path) -> None:
    """Tell Linux that a file will not be read soon, so that the next read comes from the disk."""
    if sys.platform != "linux":
        return
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def label_reads(run: ActiveRun, num_steps: int) -> tuple[int, float]:
    """Bytes of the labels that this rank reads for the first steps of an epoch, and the seconds that it takes.

    They are read in the order of training; on Linux from the disk, as at the first epoch of a large cache.
    """
    runtime, training = run.runtime, run.config.training
    gc.collect()  # pages that are still mapped would stay in the page cache
    runtime.world.barrier()
    if runtime.rank == runtime.node:  # the first rank of this machine
        for path in (run.folder / "labels").glob("labels-*"):
            drop_from_page_cache(path)
    labels = LabelCache(run.folder / "labels", run.dataset, run.layout.catalog)
    stream = run.dataset.stream(
        "train",
        batch_size=training.batch_size,
        epoch=0,
        seed=run.config.seed,
        rank=runtime.rank,
        world_size=runtime.world_size,
    )
    num_bytes, seconds = 0, 0.0
    runtime.world.barrier()
    for element in islice(stream, num_steps):
        ids = to_batch(element).example_ids
        begin = time.perf_counter()
        fields = labels.fields(ids)
        seconds += time.perf_counter() - begin
        num_bytes += sum(field.nbytes for field in fields.values())
    return num_bytes, seconds
