"""Peak host memory of a rank through a whole run with a large item table, by engine and number of ranks.

A GRU4Rec is trained on one-hot targets, checkpointed, evaluated and used for lists as users do it; the log gives every
item to one of a few users, so that nearly all memory is the item table's; freed memory is treated as the command line
does. Reported for each stage is the largest anonymous memory of any rank (RssAnon: pages of mapped files are not
counted) less that of the same run with `--idle-items` items: the growth above an idle rank, in MiB and in tables of the
items that it has more. From two large numbers of items it is what grows with the table; from a small one the work
memory of tiles comes with it. With `--layers` the model is a SASRec of so many, and the idle one has one layer and
width 64. Ranks have one thread each, over gloo. The last line is one JSON object, with the losses of the epochs, which
no engine may change.
Run: python benchmarks/sharded.py [--items 400000] [--ranks 1 2 4] [--engines ddp fsdp/2 …] [--stages distill]
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20
STAGES = ("distill", "evaluate", "recommend")
NUM_USERS = 64
POLL_SECONDS = 0.002


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=400_000, help="V (default %(default)s)")
    parser.add_argument("--idle-items", type=int, default=1_000, help="V of the run that is idle (default %(default)s)")
    parser.add_argument("--width", type=int, default=64, help="d (default %(default)s)")
    parser.add_argument("--layers", type=int, help="of a SASRec, in place of the GRU4Rec")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="processes (default %(default)s)")
    parser.add_argument("--engines", nargs="+", default=["ddp", "fsdp", "zero1", "zero2", "zero3"])
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES, help="the first makes the others' model")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def anonymous_bytes() -> int:
    """This process's anonymous memory that is resident."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    raise OSError("/proc/self/status has no RssAnon")


@contextmanager
def largest() -> Iterator[list[int]]:
    """The largest anonymous memory in the block, once it has ended."""
    seen, done = [anonymous_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            seen[0] = max(seen[0], anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def models(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The idle model, and the large one."""
    if args.layers is None:
        return ({"name": "gru4rec", "width": args.width, "dropout": 0},) * 2
    large = {
        "name": "sasrec",
        "width": args.width,
        "num_layers": args.layers,
        "inner_width": 4 * args.width,
        "dropout": 0,
    }
    return large | {"width": 64, "num_layers": 1, "inner_width": 256}, large


def settings(model: dict[str, Any], folder: Path, num_items: int, engine: str) -> dict[str, Any]:
    """The config of a run: three steps in one epoch, then a checkpoint and what follows."""
    name, _, parallel = engine.partition("/")
    deepspeed = str(ROOT / f"configs/deepspeed/{name}.json") if name.startswith("zero") else None
    return {
        "name": engine.replace("/", "-"),
        "output": str(folder),
        "dataset": {"path": str(folder / f"data-{num_items}")},
        "model": model,
        "method": "base",
        "training": {"batch_size": 16, "max_steps": 3, "max_epochs": 1, "learning_rate": 0.001},
        "distributed": {
            "engine": "deepspeed" if deepspeed else name,
            "deepspeed": deepspeed,
            "catalog_parallel": int(parallel or 1),
        },
    }


def prepare(folder: Path, num_items: int) -> None:
    """A dataset of so many items, which a few users share out among themselves."""
    import polars as pl

    from csrec_dist.api import Dataset

    items = pl.int_range(num_items, eager=True)
    log = pl.DataFrame({"user": items % NUM_USERS, "item": items, "timestamp": items})
    log.write_parquet(folder / f"log-{num_items}.parquet")
    Dataset.prepare(
        folder / f"log-{num_items}.parquet",
        folder / f"data-{num_items}",
        min_interactions=1,
        window=8,
        windows="last",
        num_shards=4,
    )


def work(values: dict[str, Any], stage: str) -> None:
    """One rank in one stage of a run; rank 0 prints the largest memory of each."""
    import torch

    from csrec_dist.config import parse_config
    from csrec_dist.distributed.joining import processes
    from csrec_dist.memory import set_allocator
    from csrec_dist.recommend import recommend
    from csrec_dist.runs.pipeline import execute

    torch.set_num_threads(1)
    config = parse_config(values)
    set_allocator(gives_back=config.distributed.shares_out_model)
    with processes(engine=config.distributed.engine, computes=True) as runtime, largest() as peak:
        begin = time.perf_counter()
        if stage == "recommend":
            recommend(Path(config.output) / config.name, say=lambda _: None)
        else:
            execute(config, runtime, ["prepare", stage] if stage == "distill" else [stage])
        seconds = time.perf_counter() - begin
        peaks = runtime.gather(peak[0])
        if runtime.is_main:
            print("FOUND " + json.dumps({"peaks": peaks, "seconds": seconds}))


def launch(values: dict[str, Any], stage: str, num_ranks: int) -> dict[str, Any]:
    """What the ranks of a stage found, in processes of their own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, __file__, "--worker", json.dumps([values, stage])], env=environment, capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if done.returncode or not lines:
        said = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        raise SystemExit(f"{stage} of {values['name']} at {num_ranks} ranks failed:\n{said}")
    return json.loads(lines[-1].removeprefix("FOUND "))


def main() -> None:
    """Measure, print a table, and one JSON object last."""
    args = parse()
    if args.worker:
        work(*args.worker)
        return
    rows = []
    table = (args.items - args.idle_items) * args.width * 4
    with tempfile.TemporaryDirectory() as temporary:
        for num_items in (args.idle_items, args.items):
            prepare(Path(temporary), num_items)
        for engine in args.engines:
            for num_ranks in args.ranks:
                if num_ranks % int(engine.partition("/")[2] or 1):
                    continue
                values = []
                for items, model in zip((args.idle_items, args.items), models(args), strict=True):
                    output = Path(temporary) / f"runs-{items}-{num_ranks}"
                    values.append(settings(model, Path(temporary), items, engine) | {"output": str(output)})
                growth, seconds = {}, {}
                for stage in args.stages:
                    idle, full = (launch(each, stage, num_ranks) for each in values)
                    both = zip(full["peaks"], idle["peaks"], strict=True)
                    growth[stage] = [(big - small) / MIB for big, small in both]
                    seconds[stage] = full["seconds"]
                trained = Path(values[1]["output"]) / values[1]["name"] / "student/metrics.json"
                losses = [epoch["loss"] for epoch in json.loads(trained.read_text())["epochs"]]
                row = {"engine": engine, "ranks": num_ranks, "growth_mib": growth, "seconds": seconds, "losses": losses}
                rows.append(row)
                most = {stage: max(sizes) for stage, sizes in growth.items()}
                shown = "  ".join(
                    f"{stage} {size:7,.0f} MiB ({size * MIB / table:5.2f} tables)" for stage, size in most.items()
                )
                print(f"{engine:8} {num_ranks} ranks  {shown}", flush=True)
    sizes = {"items": args.items, "idle_items": args.idle_items, "width": args.width, "table_mib": table / MIB}
    about = sizes | {"rows": rows}
    print(json.dumps(about | {"date": date.today().isoformat(), "machine": platform.processor() or platform.machine()}))


if __name__ == "__main__":
    main()
