"""The number of threads that a run computes with, written into its folder: the bits of sums depend on it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from csrec_dist.distributed import Runtime
from csrec_dist.files import read_json, write_record
from csrec_dist.runs.starting import THREADS as FILE
from csrec_dist.threads import crowding_named, wait_policy


@contextmanager
def threads_of_run(folder: Path, runtime: Runtime, say: Callable[[str], None], keep: bool) -> Iterator[None]:
    """Within the block each rank computes with the threads that the run began with, on as many ranks.

    Without `keep`, which is for processes whose number of threads nobody has set, each rank goes on with the number
    that it has. Threads and wait policy of all ranks go into threads.json. Every rank calls this.
    """
    before = torch.get_num_threads()
    recorded = runtime.on_main(lambda: read_json(folder / FILE)["threads"] if (folder / FILE).exists() else [])
    began_with = recorded[runtime.rank] if len(recorded) == runtime.world_size else before
    if began_with != before:
        if keep:
            torch.set_num_threads(began_with)
            say(f"resumes with {began_with} threads, as the run began; to use {before}, set OMP_NUM_THREADS={before}")
        else:
            say(
                f"the run began with {began_with} threads and resumes with {before}: the last bits of its weights may "
                "differ"
            )
    try:
        ranks: list[tuple[int, str]] = runtime.world.gather_objects((torch.get_num_threads(), wait_policy()))
        threads, policies = zip(*ranks, strict=True)
        runtime.on_main(lambda: write_record(folder / FILE, {"threads": threads, "wait_policy": policies}))
        on_cpu = runtime.device.type == "cpu"
        with crowding_named(torch.get_num_threads(), say) if on_cpu else nullcontext():
            yield
    finally:
        torch.set_num_threads(before)
