"""Time and memory of the student's loss: the tiled loss against plain PyTorch, forward and backward.

On a GPU also the Triton kernels, at each `training.matmul_precision`, and on a CPU the tiles in bf16 (`medium`). Ratios
are medians over the turns. `--without-plain` is for catalogs whose logits no
memory holds: errors are then those against the tiled loss, and otherwise those against plain PyTorch in float64.
Physical limit: five products of N·V·d multiplications and additions for M = 2 (student 1, labels M, two for the
gradients), (3 + M)·2·N·V·d operations at the rate measured for one large matrix product. Both forms are timed in
turns in one process; memory is the peak resident size above the inputs, each form in a process of its own. With
`--device cuda` all of it is on the GPU, and memory is what its allocator gave out at most; the two gradients are in it.
The threads are told to sleep at barriers rather than spin (OMP_WAIT_POLICY=passive, unless it is set), for both
forms alike: on a machine that others use too, a spinning thread keeps the one it waits for from running.
The last line is one JSON object. Run: python benchmarks/loss.py [--threads 2] [--kl forward] …
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from operator import truediv
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

import torch
from torch import Tensor
from torch.nn.functional import softmax

from csrec_dist.losses import FactoredLabels, distillation, fused
from csrec_dist.options import MatmulPrecision

TEMPERATURE, BETA = 3.0, 0.5


def wait_for(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


class Inputs(NamedTuple):
    """What both forms read."""

    states: Tensor
    item_weight: Tensor
    targets: Tensor
    labels: FactoredLabels


def make_inputs(args: argparse.Namespace) -> Inputs:
    """Random states and tables whose logits have a standard deviation of about 2.5."""
    g = torch.Generator().manual_seed(0)
    width = args.width * args.members
    states = torch.randn(args.examples, args.width, generator=g)
    label_states = torch.randn(args.examples, width, generator=g)
    weight = torch.randn(args.items, args.width, generator=g) * (2.5 / args.width**0.5)
    label_weight = torch.randn(args.items, width, generator=g) * (2.5 / width**0.5)
    targets = torch.randint(1, args.items + 1, (args.examples,), generator=g)
    labels = FactoredLabels(label_states, label_weight).to(args.device)
    states, weight, targets = (each.to(args.device) for each in (states, weight, targets))
    return Inputs(states.requires_grad_(), weight.requires_grad_(), targets, labels)


def plain(x: Inputs, kl: str) -> Tensor:
    """Mean loss with every N × V tensor materialised, gradients by autograd."""
    logits = x.states @ x.item_weight.T
    index = (x.targets - 1).unsqueeze(1)
    with torch.no_grad():
        mixture = softmax(x.labels.states @ x.labels.item_weight.T / TEMPERATURE, 1)
        mixture.mul_(0.5).scatter_add_(1, index, torch.full_like(index, 0.5, dtype=mixture.dtype))
        log_mixture = mixture.log_()
    log_p = logits.log_softmax(1)
    hard = -log_p.gather(1, index).sum()
    first, second = (log_p, log_mixture) if kl == "reverse" else (log_mixture, log_p)
    soft = (first.exp() * (first - second)).sum()
    return ((1 - BETA) * hard + BETA * soft) / len(x.states)


def student_loss(x: Inputs, kl: str, precision: MatmulPrecision) -> Tensor:
    """The loss of this package."""
    options = {"temperature": TEMPERATURE, "beta": BETA, "kl": kl}
    total, count = distillation(x.states, x.item_weight, x.targets, x.labels, **options, precision=precision)
    return total / count


def tiled(x: Inputs, kl: str) -> Tensor:
    """The loss of this package, without kernels on a GPU too."""
    with patch.object(fused, "takes", lambda problem: False):
        return student_loss(x, kl, "highest")


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
FORMS: dict[str, Callable[[Inputs, str], Tensor]] = {"tiled": tiled, "plain": plain}
KERNELS = {precision: partial(student_loss, precision=precision) for precision in ("highest", "high", "medium")}
TOLERANCE = {"tiled": 1e-4, "plain": 1e-4, "highest": 1e-4, "high": 2e-2, "medium": 1e-1}


def run(form: str, x: Inputs, kl: str) -> tuple[Tensor, Tensor, Tensor]:
    """One forward and backward pass: loss and gradients."""
    loss = (FORMS | KERNELS)[form](x, kl)
    return loss.detach(), *torch.autograd.grad(loss, [x.states, x.item_weight])


def relative_errors(forms: list[str], x: Inputs, kl: str) -> dict[str, dict[str, float]]:
    """Largest relative errors of every form; raises SystemExit above its tolerance."""
    if "plain" in forms:
        labels = FactoredLabels(x.labels.states.double(), x.labels.item_weight.double())
        weight, states = (each.detach().double().requires_grad_() for each in (x.item_weight, x.states))
        expected = run("plain", Inputs(states, weight, x.targets, labels), kl)
    else:
        expected = run("tiled", x, kl)
    errors = {}
    for form in forms:
        found = zip(("loss", "states", "item_weight"), run(form, x, kl), expected, strict=True)
        errors[form] = {name: ((a - b).abs().max() / b.abs().max()).item() for name, a, b in found}
        if not max(errors[form].values()) < TOLERANCE[form]:
            raise SystemExit(f"{form} is wrong: {errors}")
    return errors


def time_forms(
    forms: list[str], x: Inputs, kl: str, repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each pass of each form, the forms taking turns."""
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    device = x.states.device.type
    for _ in range(repeats):
        for form in forms:
            wait_for(device)
            started = clock()
            run(form, x, kl)
            wait_for(device)
            seconds[form].append(clock() - started)
    return seconds


def replayed(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call that is replayed from a CUDA graph, as a training step is: without the host's time."""
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    seconds = []
    for _ in range(repeats + 1):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(seconds[1:])


def gemm_rate(device: str, clock: Callable[[], float]) -> float:
    """Operations a second of a 2048³ product (on a GPU 8192³), the best of seven."""
    size = 8192 if device == "cuda" else 2048
    left, right = torch.randn(2, size, size, device=device).unbind()
    best = math.inf
    for _ in range(7):
        wait_for(device)
        started = clock()
        left @ right
        wait_for(device)
        best = min(best, clock() - started)
    return 2 * size**3 / best


def resident_mib(field: str) -> float:
    """This process's VmRSS (now) or VmHWM (peak), MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def extra_memory(args: argparse.Namespace) -> float:
    """MiB that one pass of `args.only` adds to the peak; the libraries are warmed on a small problem first."""
    small = argparse.Namespace(**vars(args) | {"examples": 8, "items": 64})
    run(args.only, make_inputs(small), args.kl)
    x = make_inputs(args)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at the current size
    before = resident_mib("VmRSS")
    run(args.only, x, args.kl)
    return resident_mib("VmHWM") - before


def allocated(form: str, x: Inputs, kl: str) -> float:
    """MiB of a GPU that one pass adds to what is allocated."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(form, x, kl)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def memory_of(form: str) -> float:
    """The extra memory of a form, measured in a process of its own."""
    command = [sys.executable, *sys.argv, "--only", form]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def machine(device: str) -> str:
    """The GPU's name, or the processor's and the number of its cores."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} x {name}"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("examples", 2048), ("items", 29351), ("width", 64), ("members", 2), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kl", choices=("reverse", "forward"), default="reverse")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: what other work takes counts less; for one thread"
    )
    parser.add_argument("--without-plain", action="store_true", help="leave plain PyTorch out")
    parser.add_argument("--only", choices=tuple(FORMS | KERNELS), help="print the peak extra MiB of one form and stop")
    return parser.parse_args()


def main() -> None:
    """Check, time, measure, print."""
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.only:
        print(extra_memory(args))
        return
    forms = [*FORMS, *KERNELS] if args.device == "cuda" else [*FORMS, "medium"]
    if args.without_plain:
        forms.remove("plain")
    x = make_inputs(args)
    errors = relative_errors(forms, x, args.kl)
    clock = CLOCKS[args.clock]
    seconds = time_forms(forms, x, args.kl, args.repeats, clock)
    medians = {form: statistics.median(values) for form, values in seconds.items()}
    memory = {form: allocated(form, x, args.kl) if args.device == "cuda" else memory_of(form) for form in forms}
    if args.device == "cuda":
        replays = {form: replayed(partial(run, form, x, args.kl), args.repeats) for form in forms}
    rate = gemm_rate(args.device, clock)
    operations = (3 + args.members) * 2 * args.examples * args.items * args.width
    for form in forms:
        print(
            f"{form:8} median {medians[form]:.5f} s  best {min(seconds[form]):.5f} s  peak +{memory[form]:.0f} MiB  "
            f"error {max(errors[form].values()):.1e}"
        )
    print(f"limit    {operations / rate:.5f} s: {operations / 1e9:.1f} GFLOP at {rate / 1e9:.0f} GFLOP/s")
    reference = seconds[forms[1 - args.without_plain]]
    result: dict[str, Any] = {
        "benchmark": "loss",
        "clock": args.clock,
        "ratios": {form: statistics.median(map(truediv, reference, seconds[form])) for form in forms},
        "median_seconds": medians,
        "best_seconds": {form: min(values) for form, values in seconds.items()},
        "limit_seconds": operations / rate,
        "peak_extra_mib": memory,
        "relative_errors": errors,
        "shape": {k: getattr(args, k) for k in ("examples", "items", "width", "members")},
        "kl": args.kl,
        "threads": args.threads,
        "wait_policy": os.environ["OMP_WAIT_POLICY"],
        "torch": torch.__version__,
        "machine": machine(args.device),
        "date": date.today().isoformat(),
    }
    if args.device == "cuda":
        first = replays[forms[1 - args.without_plain]]
        result |= {"replayed_seconds": replays, "replayed_ratios": {form: first / replays[form] for form in forms}}
        print(
            {form: f"{1e3 * seconds:.3f} ms replayed, ratio {first / seconds:.2f}" for form, seconds in replays.items()}
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
