"""Milliseconds of a training step of every model, and what the sizes of tiles and blocks are worth on a device.

- models: one-hot steps (cross-entropy, Adam) on `--windows` random windows of 20 items, half of them of 14, by the
  engine that runs use; as is, with algorithms that add up in the same order every time
  (`distributed.deterministic`), and on a GPU replayed from a CUDA graph (`training.cuda_graph`) too. With two trainings
  of 20 steps it says whether all weights are equal bit by bit: of two equal ones, or of one with and one without graph.
- loops: a training loop with the labels of two members and a thread that prepares batches, with and without graphs.
- tiles: the student's loss on factored labels of two members, forward and backward, for several sizes of a tile.
- blocks: ranks of targets and lists of 20, for several sizes of a block of logits.

`host` is the time until the last operation was begun: where it is all of the time, the device waits for the host.
The last line is one JSON object. Run: python benchmarks/steps.py [--device cuda] [--items 20000] …
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import torch

from csrec_dist import models
from csrec_dist.data.batches import Batch, Prefetcher
from csrec_dist.distributed import Runtime
from csrec_dist.distributed.catalog import PlainTable
from csrec_dist.distributed.engines import DataParallel
from csrec_dist.evaluation import logits, ranking
from csrec_dist.losses import FactoredLabels, distillation, tiles
from csrec_dist.memory import set_allocator
from csrec_dist.models import MODELS
from csrec_dist.process_state import deterministic
from csrec_dist.training import TrainStep
from csrec_dist.training.options import LoopOptions, TrainingOptions
from csrec_dist.training.step import MicroBatch, one_hot, student_loss
from csrec_dist.training.stepping import Stepper
from csrec_dist.training.stopping import Requests, StopSignals

MIB = 2**20
LENGTH, SHORT, WIDTH = 20, 14, 64


def timed(work: Callable[[int], Any], device: torch.device, repeats: int, warm: int = 3) -> dict[str, float]:
    """Mean milliseconds of a call, and those of the host alone."""
    for number in range(warm):
        work(number)
    wait_for(device)
    begin = time.perf_counter()
    for number in range(repeats):
        work(number)
    host = time.perf_counter() - begin
    wait_for(device)
    return {"ms": 1e3 * (time.perf_counter() - begin) / repeats, "host_ms": 1e3 * host / repeats}


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def windows(num: int, num_items: int, seed: int = 0) -> Batch:
    """Random windows of 20 items; the second half ends after 14."""
    items = torch.randint(1, num_items + 1, (num, LENGTH), generator=torch.Generator().manual_seed(seed))
    items[num // 2 :, SHORT:] = 0
    rows = torch.arange(num)
    return Batch(items, (items != 0).sum(1), torch.ones(num), rows, rows, rows * (LENGTH - 1))


class TwoMembers:
    """A label reader whose rows, of two members of width 64, lie on the device, as those of a cache that fits there."""

    def __init__(self, num_examples: int, num_items: int, device: torch.device) -> None:
        self._rows = torch.randn(num_examples, 2 * WIDTH, device=device).half()
        self._table = 0.2 * torch.randn(num_items, 2 * WIDTH, device=device)

    def fields(self, example_ids: Any) -> dict[str, torch.Tensor]:
        """Which rows are the examples'."""
        return {"rows": torch.as_tensor(example_ids)}

    def labels(self, fields: Any, device: torch.device) -> FactoredLabels:
        """The labels of what `fields` gave."""
        return FactoredLabels(self._rows[fields["rows"].to(device, non_blocking=True)].float(), self._table)


class Training:
    """A model of width 64 with its own defaults, and the steps that a run makes with it: one-hot, or with labels."""

    def __init__(
        self, name: str, num_items: int, runtime: Runtime, *, graphs: bool, labels: TwoMembers | None = None
    ) -> None:
        config = models.config_class(name).model_validate({"name": name, "width": WIDTH})
        layout = runtime.layout([runtime.world.ranks], 1)
        loss_function = one_hot if labels is None else student_loss(TrainingOptions())
        model = models.build(config, num_items, LENGTH - 1, 0)
        step = TrainStep(model, loss_function, layout.group).to(runtime.device)
        self.engine = DataParallel(step.train(), layout, runtime.device)
        options = LoopOptions(cuda_graph="on" if graphs else "off")
        self._stepper = Stepper(self.engine, options, labels, 0, LENGTH, print)
        self._requests = Requests(layout.group, StopSignals(), 60, runtime.device)

    def prepared(self, batch: Batch, number: int) -> list[MicroBatch]:
        """What the reading thread makes of a batch."""
        return self._stepper.prepare(batch, number, len(batch.rows))

    def train(self, micro_batches: list[MicroBatch], number: int) -> None:
        """One step of that number."""
        self._stepper.train(micro_batches, number, 1e-3, self._requests)
        self._requests.agreed()


WAYS = {"as is": (False, False), "deterministic": (True, False), "deterministic, graph": (True, True)}
"""Name → (`distributed.deterministic`, a CUDA graph)."""


def time_models(args: argparse.Namespace, runtime: Runtime) -> dict[str, Any]:
    """Every model, in every way; what the reading thread makes of a batch is timed apart, without reading files."""
    batch, few = windows(args.windows, args.items), windows(args.windows, 200)
    found: dict[str, Any] = {}
    for name in args.models:
        found[name] = {}
        for way, (wanted, graphs) in WAYS.items():
            if graphs and runtime.device.type == "cpu":
                continue
            with deterministic(wanted):
                training = Training(name, args.items, runtime, graphs=graphs)
                begin = time.perf_counter()
                ready = [training.prepared(batch, number) for number in range(max(args.repeats, 3))]
                reading_ms = 1e3 * (time.perf_counter() - begin) / len(ready)
                one = timed(
                    lambda number, t=training, r=ready: t.train(r[number], number), runtime.device, args.repeats
                )
                alike = trains_alike(name, few, runtime, graphs=graphs)
                found[name][way] = one | {"reading_ms": reading_ms, "equal bits": alike}
        print(name, found[name], flush=True)
    return found


def trains_alike(name: str, batch: Batch, runtime: Runtime, *, graphs: bool) -> bool:
    """Whether two trainings of 20 steps on 200 items end with the same bits; of them one without a CUDA graph."""
    ends = []
    for with_graphs in (graphs, False):
        training = Training(name, 200, runtime, graphs=with_graphs)
        for number in range(20):
            training.train(training.prepared(batch, number), number)
        ends.append([parameter.detach().clone() for parameter in training.engine.module.parameters()])
    return all(torch.equal(*pair) for pair in zip(*ends, strict=True))


def time_loops(args: argparse.Namespace, runtime: Runtime) -> dict[str, Any]:
    """Examples a second of the loop, with a thread that prepares batches and the labels of two members."""
    found: dict[str, Any] = {}
    batches, num_steps = [windows(args.windows, args.items, seed) for seed in range(8)], 10 * args.repeats
    labels = TwoMembers(args.windows * (LENGTH - 1), args.items, runtime.device)
    for name, graphs in itertools.product(("gru4rec", "sasrec"), (False, True)):
        if graphs and runtime.device.type == "cpu":
            continue
        with deterministic(True):
            training = Training(name, args.items, runtime, graphs=graphs, labels=labels)
            for number in range(8):
                training.train(training.prepared(batches[number], number), number)
            wait_for(runtime.device)
            begin, examples = time.perf_counter(), 0
            numbered = enumerate(itertools.islice(itertools.cycle(batches), num_steps))
            reader = Prefetcher(numbered, lambda pair, t=training: t.prepared(pair[1], pair[0]))
            for number, micro_batches in enumerate(reader):
                training.train(micro_batches, number)
                examples += sum(inputs.num_states for inputs, _ in micro_batches)
            wait_for(runtime.device)
            rate = examples / (time.perf_counter() - begin)
        found[f"{name}{', graph' * graphs}"] = {"examples_per_second": rate, "waited_s": reader.wait_seconds}
        print(name, "graph" * graphs, found[f"{name}{', graph' * graphs}"], flush=True)
    return found


def time_tiles(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """The student's loss with tiles of several sizes."""
    found = []
    states = torch.randn(args.examples, WIDTH, device=device, requires_grad=True)
    weight = (0.3 * torch.randn(args.items, WIDTH, device=device)).requires_grad_()
    targets = torch.randint(1, args.items + 1, (args.examples,), device=device)
    factors = torch.randn(args.examples, 2 * WIDTH, device=device), torch.randn(args.items, 2 * WIDTH, device=device)
    labels = FactoredLabels(factors[0], 0.2 * factors[1])

    def solve(_: int) -> None:
        total, count = distillation(states, weight, targets, labels, temperature=3.0, beta=0.5)
        torch.autograd.grad(total / count, [states, weight])

    for mebibytes in args.tiles:
        tiles.TILE_BYTES[device.type] = mebibytes * MIB
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        one: dict[str, Any] = {"tile_mib": mebibytes, **timed(solve, device, args.repeats, 1)}
        if device.type == "cuda":
            one["peak_mib"] = torch.cuda.max_memory_allocated() // MIB
        found.append(one)
        print(one, flush=True)
    return found


def time_blocks(args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Ranks and lists with blocks of several sizes."""
    found = []
    states, weight = torch.randn(args.examples, WIDTH, device=device), torch.randn(args.items, WIDTH, device=device)
    table = PlainTable.whole(weight)
    targets = torch.randint(1, args.items + 1, (args.examples,), device=device)
    seen = torch.randint(0, args.items + 1, (args.examples, LENGTH), device=device)
    for mebibytes in args.blocks:
        logits.TILE_BYTES[device.type] = logits.TILE_BYTES["kernel"] = mebibytes * MIB
        of_ranks = timed(lambda _: ranking.target_ranks(states, table, targets, seen=seen), device, args.repeats, 1)
        of_lists = timed(lambda _: ranking.top_items(states, table, 20, seen=seen), device, args.repeats, 1)
        found.append({"block_mib": mebibytes, "ranks": of_ranks, "lists": of_lists})
        print(found[-1], flush=True)
    return found


def main() -> None:
    """Time what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--models", nargs="*", default=sorted(MODELS), metavar="MODEL", help="default: all")
    parser.add_argument("--windows", type=int, default=256, help="windows in a step (default %(default)s)")
    parser.add_argument("--items", type=int, default=20_000, help="V (default %(default)s)")
    parser.add_argument("--examples", type=int, default=4096, help="N of tiles and blocks (default %(default)s)")
    parser.add_argument("--tiles", type=int, nargs="*", default=[8, 16, 32, 64, 256], metavar="MIB")
    parser.add_argument("--blocks", type=int, nargs="*", default=[8, 32, 128, 512], metavar="MIB")
    parser.add_argument("--repeats", type=int, default=10, help="calls that are timed (default %(default)s)")
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    set_allocator()
    with deterministic(True):  # cuBLAS reads its setting when it starts
        runtime = Runtime.start()
        result = {"models": time_models(args, runtime), "loops": time_loops(args, runtime)}
    device = runtime.device
    result |= {"tiles": time_tiles(args, device), "blocks": time_blocks(args, device)}
    about = {"benchmark": "steps", "date": str(date.today()), "torch": torch.__version__, "cores": os.cpu_count()}
    about |= {"gpu": torch.cuda.get_device_name()} if device.type == "cuda" else {}
    print(json.dumps(about | {"settings": vars(args)} | result))


if __name__ == "__main__":
    main()
