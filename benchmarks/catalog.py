"""Memory and time of training steps on a large catalog, its item table whole or split over the ranks.

A GRU4Rec is trained for a few steps on random windows, one-hot, with Adam, by the engine that runs use: on `--ranks`
ranks of one thread each, for each number of `--catalog-parallel` in turn. Reported are the peak resident size of the
ranks (all of it: Python, torch and the exchange of gradients too) and the seconds of a step. `--limit MIB` bounds the
memory that a rank may have for its data (RLIMIT_DATA); who needs more fails, which is reported too. `--form plain`
takes plain PyTorch's logits of all examples × items in place of the tiled loss. `--windows` may name several
sizes: whether memory grows with examples × items shows. With `--device cuda` each rank has a GPU, memory is what its
allocator gave out at most, and the limit is one of that.
The last line is one JSON object. Run: python benchmarks/catalog.py [--items 2000000] [--catalog-parallel 1 2] …
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import date
from typing import Any

MIB = 2**20
OUT_OF_MEMORY = ("allocate memory", "MemoryError", "CUDA out of memory")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2_000_000, help="V (default %(default)s)")
    parser.add_argument("--width", type=int, default=64, help="d (default %(default)s)")
    parser.add_argument("--ranks", type=int, default=2, help="processes (default %(default)s)")
    parser.add_argument("--catalog-parallel", type=int, nargs="+", default=[1, 2], help="ranks that share a table")
    parser.add_argument("--windows", type=int, nargs="+", default=[4], help="windows of a rank in a step")
    parser.add_argument("--length", type=int, default=20, help="items of a window (default %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="steps (default %(default)s)")
    parser.add_argument("--limit", type=int, help="MiB of data that a rank may have")
    parser.add_argument("--form", choices=("tiled", "plain"), default="tiled", help="loss (default %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def work(args: argparse.Namespace) -> None:
    """One rank: train, and on rank 0 print what all ranks took."""
    import torch

    from csrec_dist import models
    from csrec_dist.data.batches import Batch
    from csrec_dist.distributed import Runtime
    from csrec_dist.distributed.engines import DataParallel
    from csrec_dist.memory import set_allocator
    from csrec_dist.training import TrainStep
    from csrec_dist.training.step import one_hot

    torch.set_num_threads(1)
    set_allocator(gives_back=args.catalog_parallel[0] > 1)  # as the command line does
    runtime = Runtime.start()
    on_gpu = runtime.device.type == "cuda"
    if args.limit and on_gpu:
        torch.cuda.set_per_process_memory_fraction(args.limit * MIB / torch.cuda.mem_get_info()[1])
    elif args.limit:
        resource.setrlimit(resource.RLIMIT_DATA, (args.limit * MIB, args.limit * MIB))
    layout = runtime.layout([runtime.world.ranks], args.catalog_parallel[0])
    config = models.config_class("gru4rec").model_validate({"width": args.width})
    model = models.build(config, args.items, args.length - 1, 0, layout.catalog)
    loss_function = one_hot if args.form == "tiled" else plain
    engine = DataParallel(TrainStep(model, loss_function, layout.group).to(runtime.device), layout, runtime.device)
    generator = torch.Generator().manual_seed(runtime.rank)
    seconds, loss_sum = [], 0.0
    for step in range(args.steps):
        begin = time.perf_counter()
        items = torch.randint(1, args.items + 1, (args.windows[0], args.length), generator=generator)
        rows, ones = torch.arange(len(items)), torch.ones(len(items))
        batch = Batch(items, ones.long() * args.length, ones, rows, rows, rows * (args.length - 1))
        loss = engine.forward(model.inputs(batch, step).to(runtime.device), None)
        engine.backward(loss.sum / loss.count)
        engine.step(1e-3)
        loss_sum = float(loss.sum.detach() / loss.count)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    peak = torch.cuda.max_memory_allocated() / MIB if on_gpu else peak
    found = runtime.world.gather_objects([peak, min(seconds), loss_sum])
    if runtime.is_main:
        peaks, times, losses = zip(*found, strict=True)
        print(json.dumps({"peak_mib": [round(p) for p in peaks], "step_seconds": max(times), "loss": losses[0]}))
    runtime.close()


def plain(states: Any, table: Any, targets: Any, labels: Any, weights: Any, precision: Any) -> Any:
    """Cross-entropy with all logits at once."""
    import torch

    from csrec_dist.losses import Loss

    total = torch.nn.functional.cross_entropy(table.logits(states), targets - 1, reduction="sum")
    return Loss(total, torch.tensor(float(len(states))), total.detach(), torch.zeros(()))


def measure(args: argparse.Namespace, catalog_parallel: int, windows: int) -> dict[str, Any]:
    """One setting, in processes of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(args.ranks)]
    settings = {"items": args.items, "width": args.width, "length": args.length, "steps": args.steps}
    settings |= {"catalog-parallel": catalog_parallel, "windows": windows, "form": args.form, "device": args.device}
    options = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    options += ["--limit", str(args.limit)] if args.limit else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""} if args.device == "cpu" else {}
    ended = subprocess.run(
        [*command, __file__, "--worker", *options], capture_output=True, text=True, env=environment, check=False
    )
    setting = {"catalog_parallel": catalog_parallel, "windows": windows, "examples": windows * (args.length - 1)}
    if ended.returncode == 0:
        return setting | json.loads(ended.stdout.strip().splitlines()[-1])
    signs = [line for line in ended.stderr.splitlines() if any(sign in line for sign in OUT_OF_MEMORY)]
    return setting | {"failed": signs[-1].strip()[:300] if signs else ended.stderr[-500:]}


def main() -> None:
    """Measure all settings in turn and print them."""
    args = parse()
    if args.worker:
        work(args)
        return
    results = []
    for windows in args.windows:
        for catalog_parallel in args.catalog_parallel:
            results.append(measure(args, catalog_parallel, windows))
            print(results[-1], flush=True)
    import torch

    first = max(results[0].get("peak_mib", [0]))
    for result in results[1:]:
        if first and "peak_mib" in result:
            print(f"peak {max(result['peak_mib']) / first:.2f} of the first setting's: {result}")
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    machine |= {"gpu": torch.cuda.get_device_name()} if args.device == "cuda" else {}
    settings = {key: value for key, value in vars(args).items() if key != "worker"}
    print(json.dumps({"date": str(date.today()), **machine, "settings": settings, "results": results}))


if __name__ == "__main__":
    main()
