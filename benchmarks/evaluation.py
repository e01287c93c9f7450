"""How long ranking the whole catalog takes, against its matrix products: `python benchmarks/evaluation.py`.

For each size of the catalog: target ranks, top-20 lists and the log-sum-exp of some rows, made by

- `products`: the matrix products alone, in the same tiles; the physical limit of what has to make every logit,
- `sweep`: one pass over tiles (csrec_dist/evaluation/sweep.py), as evaluation does it where there is no kernel,
- `kernel`, on a GPU: the same, each tile visited by one Triton kernel (csrec_dist/evaluation/kernels.py),
- `plain`: blocks of whole rows of 8 MiB (128 MiB on a GPU), ranks, lists and log-sum-exp one after the other.

They take turns; times are medians. The results of `sweep` and `plain` are compared: ranks may differ where logits
differ by less than 1e-5, which is counted, lists in items of such logits. On a GPU the peak memory beyond the
arguments is measured, too. The last line is one JSON object.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from datetime import date
from statistics import median
from typing import Any

import torch
from torch import Tensor

from csrec_dist.distributed.catalog import PlainTable
from csrec_dist.evaluation import logits as tiling
from csrec_dist.evaluation import visit
from csrec_dist.evaluation.logits import Logits
from csrec_dist.evaluation.sweep import SweepRequest, SweepResult, sweep
from csrec_dist.evaluation.visit import LANES
from csrec_dist.process_state import matmul_precision

TOP_N = 20
NEAR = 1e-5
PLAIN_BYTES = {"cpu": 8 << 20, "cuda": 128 << 20}

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def products(states: Tensor, table: PlainTable) -> None:
    """Every logit, made and thrown away."""
    logits = Logits([states], [table])
    for rows in logits.block_rows(TOP_N):
        num_rows = rows.stop - rows.start
        tiles = logits.tile_items(num_rows, TOP_N, LANES)
        buffer = states.new_empty(num_rows * (tiles[0].stop - tiles[0].start))
        for items in tiles:
            width = items.stop - items.start
            logits.write(rows, items, buffer[: num_rows * width].view(num_rows, width))


def plain(states: Tensor, table: PlainTable, targets: Tensor, seen: Tensor | None) -> tuple[Tensor, ...]:
    """Ranks [N], lists [N, n] and their scores, log-sum-exps [N], from blocks of whole rows."""
    found = []
    size = max(1, PLAIN_BYTES[states.device.type] // (4 * len(table.weight)))
    for start in range(0, len(states), size):
        rows = slice(start, start + size)
        logits = states[rows] @ table.weight.T
        sums = logits.logsumexp(1)
        if seen is not None:
            hidden = torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)
            logits = hidden.scatter_(1, seen[rows], -torch.inf)[:, 1:]
        own = logits.gather(1, targets[rows].unsqueeze(1) - 1)
        ranks = len(table.weight) - (logits < own).sum(1)
        scores, columns = logits.topk(TOP_N, dim=1)
        found.append((ranks, columns + 1, scores, sums))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def sweep_by(kernel: bool, states: Tensor, table: PlainTable, request: SweepRequest) -> SweepResult:
    """The sweep with or without the kernel, which there is on GPUs alone."""
    before, visit.KERNELS_ARE_ON = visit.KERNELS_ARE_ON, kernel
    try:
        return sweep(Logits([states], [table]), request)
    finally:
        visit.KERNELS_ARE_ON = before


def differing(
    one: SweepResult, other: tuple[Tensor, ...], states: Tensor, table: PlainTable, targets: Tensor
) -> dict[str, int]:
    """How many ranks and places of lists differ, all of them by items of nearly equal logits; else AssertionError."""
    ranks, items, scores, sums = other
    off = (one.ranks[:, 0] != ranks).nonzero().squeeze(1)
    for row in off.tolist():
        exact = table.weight.double() @ states[row].double()
        near = int(((exact - exact[targets[row] - 1]).abs() < NEAR).sum())
        assert abs(int(one.ranks[row, 0] - ranks[row])) <= near, "a rank differs by more than rounding"
    other_lists = one.items != items
    assert bool(((one.scores - scores)[other_lists].abs() < NEAR).all()), "a list differs by more than rounding"
    assert torch.allclose(one.log_sums, sums, rtol=1e-5, atol=1e-5)
    return {"ranks": len(off), "listed": int(other_lists.sum())}


def timed(call: Callable[[], Any], device: torch.device, clock: Callable[[], float]) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


def measure(
    num_rows: int, num_items: int, width: int, repeats: int, device: torch.device, hide: bool, clock: str
) -> dict[str, Any]:
    """Seconds, ratios and differences for one size of the catalog."""
    generator = torch.Generator().manual_seed(num_items)
    states = torch.randn(num_rows, width, generator=generator).to(device)
    table = PlainTable.whole(torch.randn(num_items, width, generator=generator).div_(width**0.5).to(device))
    targets = torch.randint(1, num_items + 1, (num_rows,), generator=generator).to(device)
    seen = torch.randint(0, num_items + 1, (num_rows, 20), generator=generator).to(device) if hide else None
    asked = SweepRequest(targets.unsqueeze(1), top_n=TOP_N, seen=seen, log_sums=True, top=True)
    calls: dict[str, Callable[[], Any]] = {
        "products": lambda: products(states, table),
        "sweep": lambda: sweep_by(False, states, table, asked),
        "plain": lambda: plain(states, table, targets, seen),
    }
    memory = {}
    if device.type == "cuda":
        calls["kernel"] = lambda: sweep_by(True, states, table, asked)
        for name, call in calls.items():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            memory[name] = round((torch.cuda.max_memory_allocated() - before) / 2**20)
    whole = calls["plain"]()
    off = {
        name: differing(calls[name](), whole, states, table, targets) for name in calls if name in ("sweep", "kernel")
    }
    times = [{name: timed(call, device, CLOCKS[clock]) for name, call in calls.items()} for _ in range(repeats)]
    seconds = {name: median(each[name] for each in times) for name in calls}
    found = {
        "items": num_items,
        "rows": num_rows,
        "width": width,
        "hide": hide,
        "clock": clock,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        **{f"{name}/products": round(median(each[name] / each["products"] for each in times), 2) for name in off},
        "plain/products": round(median(each["plain"] / each["products"] for each in times), 2),
        "plain/sweep": round(median(each["plain"] / each["sweep"] for each in times), 2),
        "differing": off,
        **({"peak_mib": memory} if memory else {}),
    }
    print({name: value for name, value in found.items() if name != "width"}, flush=True)
    return found


def main() -> None:
    """Measure all sizes, print a line for each, and one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[3_646, 30_000, 300_000, 1_000_000])
    parser.add_argument("--rows", type=int, default=256, help="rows that are ranked (default 256)")
    parser.add_argument("--width", type=int, default=64, help="width of states and vectors (default 64)")
    parser.add_argument("--repeats", type=int, default=5, help="times that each is measured (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads on a CPU (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--tile-mib", type=int, help="MiB of a tile of logits (default: evaluation's own)")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: what other work takes counts less; for one thread"
    )
    parser.add_argument("--hide", action="store_true", help="leave 20 seen items of each row out of ranks and lists")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.tile_mib:
        tiling.TILE_BYTES[device.type] = tiling.TILE_BYTES["kernel"] = options.tile_mib << 20
    name = torch.cuda.get_device_name() if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    with matmul_precision("highest"):
        results = [
            measure(options.rows, num_items, options.width, options.repeats, device, options.hide, options.clock)
            for num_items in options.items
        ]
    machine = f"{platform.machine()} {name}, {options.threads} threads"
    record = {"benchmark": "evaluation", "date": str(date.today()), "machine": machine, "torch": torch.__version__}
    print(json.dumps(record | {"results": results}))


if __name__ == "__main__":
    main()
