"""The processes of a call from Python: one alone, or those of a launcher, which all make the same calls."""

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager

from csrec_dist import distributed
from csrec_dist.distributed.alone import Processes, SoleProcess


@contextmanager
def processes(
    timeout_minutes: float = 30, engine: str = "ddp", precision: str = "fp32", *, computes: bool = False
) -> Iterator[Processes]:
    """The processes of this launch, for the block; those of a block that `computes` are a `Runtime`.

    A process that is alone and computes nothing imports no torch. Under a launcher the first block joins the ranks, as
    torch's process group; they stay together until the process ends, because a group that was left cannot be joined
    again at the same address.

    Raises UserError as `Runtime.start` does.
    """
    if not computes and os.environ.get("WORLD_SIZE", "1") == "1":
        yield SoleProcess(engine, precision)
        return
    import torch.distributed as dist

    was_joined = dist.is_initialized()
    runtime = distributed.Runtime.start(timeout_minutes, engine, precision)
    if dist.is_initialized() and not was_joined:
        atexit.register(_leave_for_good)
    try:
        yield runtime
    finally:
        runtime.leave()


def _leave_for_good() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
