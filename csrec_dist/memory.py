"""What to do where memory does not suffice, said in a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

from csrec_dist.errors import UserError

SIGNS = ("can't allocate memory", "not enough memory", "out of memory")
"""What torch says when there is none: on the CPU its allocator's RuntimeError, on a GPU an OutOfMemoryError."""
NUMBERS_PER_WEIGHT = 4
"""A trained weight, its gradient, and Adam's two moments."""


def item_table_bytes(num_items: int, width: int, catalog_parallel: int = 1) -> int:
    """Bytes that each rank needs for its rows of an fp32 item table in training."""
    return -(-num_items // catalog_parallel) * width * 4 * NUMBERS_PER_WEIGHT


@contextmanager
def explained(stage: str, num_items: int, width: int, catalog_parallel: int) -> Iterator[None]:
    """Turn running out of memory into a UserError that says what would need less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in SIGNS):
            raise
        mebibytes = item_table_bytes(num_items, width, catalog_parallel) / 2**20
        raise UserError(
            f"Stage {stage} ran out of memory. The item table of {num_items:,} items, its gradient and Adam's moments "
            f"take {mebibytes:,.0f} MiB on each rank with distributed.catalog_parallel {catalog_parallel}; split them "
            f"over more ranks with distributed.catalog_parallel: {2 * catalog_parallel}, or lower training.batch_size."
        ) from error
