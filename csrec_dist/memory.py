"""The host's memory: kept between steps, and what to do where it does not suffice, said in a sentence."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from csrec_dist.errors import UserError

SIGNS = ("can't allocate memory", "not enough memory", "out of memory")
"""What torch says when there is none: on the CPU its allocator's RuntimeError, on a GPU an OutOfMemoryError."""
KEPT = {-1: 1 << 30, -2: 16 << 20, -3: 32 << 20}
"""glibc's M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD (its largest value): bytes."""
OWN_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_")
NUMBERS_PER_WEIGHT = 4
"""A trained weight, its gradient, and Adam's two moments."""


def keep_freed_memory() -> bool:
    """Have glibc keep what tensors of up to 32 MiB free, up to 1 GiB, for those of the next step; whether it does.

    By default it hands much of that back to the system, which then zeroes the same pages for every step again. Other C
    libraries are left as they are, and so is glibc where the user has set it.
    """
    if sys.platform != "linux" or any(name in os.environ for name in OWN_SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(key, value) for key, value in KEPT.items())


@contextmanager
def explained(stage: str, num_items: int, width: int, catalog_parallel: int) -> Iterator[None]:
    """Turn running out of memory into a UserError that says what would need less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in SIGNS):
            raise
        num_rows = -(-num_items // catalog_parallel)
        mebibytes = num_rows * width * 4 * NUMBERS_PER_WEIGHT / 2**20
        raise UserError(
            f"Stage {stage} ran out of memory. The item table of {num_items:,} items, its gradient and Adam's moments "
            f"take {mebibytes:,.0f} MiB on each rank with distributed.catalog_parallel {catalog_parallel}; split them "
            f"over more ranks with distributed.catalog_parallel: {2 * catalog_parallel}, or lower training.batch_size."
        ) from error
