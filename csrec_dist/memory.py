"""The host's memory: what is kept between steps, and what to do where it does not suffice, said in a sentence."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from csrec_dist.errors import UserError

SIGNS = ("can't allocate memory", "not enough memory", "out of memory")
"""What torch says when there is none: on the CPU its allocator's RuntimeError, on a GPU an OutOfMemoryError."""
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""glibc's names of its options, which take bytes."""
KEPT = {TRIM_THRESHOLD: 1 << 30, TOP_PAD: 16 << 20, MMAP_THRESHOLD: 16 << 20}
"""Larger pieces, of which a step has few, such as buckets of gradients, would hold more than they save."""
GIVEN_BACK = {TRIM_THRESHOLD: 128 << 10, MMAP_THRESHOLD: 128 << 10}
"""What glibc begins with, and raises where larger pieces are freed unless it is set."""
OWN_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_")
NUMBERS_PER_WEIGHT = 4
"""A trained weight, its gradient, and Adam's two moments."""


def set_allocator(*, gives_back: bool = False) -> bool:
    """Have glibc keep what tensors of up to 16 MiB free, up to 1 GiB, for those of the next step; whether it does.

    By default it hands much of that back to the system, which then zeroes the same pages for every step again. But
    pieces that are kept do not fit what is wanted next, so that more is held than is used: with `gives_back`, for
    ranks that share out a model because memory is what they lack, pieces of 128 KiB or more go back when they are
    freed. Other C libraries are left as they are, and so is glibc where the user has set it.
    """
    if sys.platform != "linux" or any(name in os.environ for name in OWN_SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    values = GIVEN_BACK if gives_back else KEPT
    return mallopt is not None and all(mallopt(key, value) for key, value in values.items())


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
