"""How long the start of a job of many processes takes, part by part, and what grows with their number.

N processes of one thread each start on this machine (torchrun, gloo) and go through what every run does before its
first stage: the imports, the rendezvous, the groups of a layout with catalog_parallel 2 and of the members that are
taught side by side, the dataset's index, and a barrier. Reported are the medians over the ranks of the seconds by the
wall clock and on the processor, and the longest by the wall clock. With more processes than cores the wall clock shows
how they share them; the seconds on the processor show what each of them has to do.
The last line is one JSON object. Run: python benchmarks/joining.py [--processes 2 8 32]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from statistics import median

PARTS = ("import", "rendezvous", "groups of 2", "groups of members", "dataset", "barrier")
NUM_MEMBERS, NUM_SHARDS = 4, 64


def work(folder: str) -> None:
    """One process; rank 0 prints the seconds of each part on all ranks."""
    seconds: dict[str, tuple[float, float]] = {}

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        begin, cpu = time.perf_counter(), time.process_time()
        yield
        seconds[part] = time.perf_counter() - begin, time.process_time() - cpu

    with timed("import"):
        import csrec_dist.runs.pipeline  # noqa: F401
        from csrec_dist.data.dataset import Dataset
        from csrec_dist.distributed import Runtime
        from csrec_dist.distributed.layout import teaching_rounds
    with timed("rendezvous"):
        runtime = Runtime.start()
    with timed("groups of 2"):
        runtime.layout([runtime.world.ranks], 2)
    with timed("groups of members"):
        members = min(NUM_MEMBERS, runtime.world_size // 2)
        (slots,) = teaching_rounds(list(range(members)), runtime.world_size, 2)
        runtime.layout([slot.ranks for slot in slots], 2)
    with timed("dataset"):
        dataset = Dataset(folder)
        assert len(dataset.file_names) > NUM_SHARDS
    with timed("barrier"):
        runtime.world.barrier()
    everywhere = runtime.gather(seconds)
    if runtime.is_main:
        print("FOUND " + json.dumps(everywhere), flush=True)
    runtime.close()


def measure(folder: str, num_processes: int) -> dict[str, dict[str, float]]:
    """Seconds of each part: medians over the ranks, and the longest."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*command, __file__, "--worker", folder], env=environment, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if done.returncode or not found:
        raise SystemExit(f"{num_processes} processes failed:\n{done.stderr[-4000:]}")
    ranks = json.loads(found[-1].removeprefix("FOUND "))
    return {
        part: {
            "wall": median(rank[part][0] for rank in ranks),
            "cpu": median(rank[part][1] for rank in ranks),
            "longest": max(rank[part][0] for rank in ranks),
        }
        for part in PARTS
    }


def main() -> None:
    """Measure, print a table, and one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 8, 32], help="(default %(default)s)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker)
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        from csrec_dist.api import Dataset
        from csrec_dist.bench.settings import write_log

        log, folder = Path(temporary) / "log.parquet", Path(temporary) / "data"
        write_log(log, num_users=2_000, num_items=1_000, length=20)
        Dataset.prepare(log, folder, min_interactions=1, window=20, windows="last", num_shards=NUM_SHARDS)
        for num_processes in args.processes:
            begin = time.perf_counter()
            parts = measure(str(folder), num_processes)
            rows.append({"processes": num_processes, "seconds": time.perf_counter() - begin, "parts": parts})
            shown = "  ".join(
                f"{name} {part['wall']:.2f} ({part['cpu']:.2f} cpu, at most {part['longest']:.2f})"
                for name, part in parts.items()
            )
            print(f"{num_processes:3} processes, {rows[-1]['seconds']:.1f} s in all: {shown}", flush=True)
    print(json.dumps({"rows": rows, "date": date.today().isoformat(), "machine": platform.machine()}))


if __name__ == "__main__":
    main()
