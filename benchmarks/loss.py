"""Time and memory of the student's loss: the tiled loss against plain PyTorch, forward and backward.

Physical limit: five products of N·V·d multiplications and additions for M = 2 (student 1, labels M, two for the
gradients), (3 + M)·2·N·V·d operations at the rate measured for one large matrix product. Both forms are timed in
turns in one process; memory is the peak resident size above the inputs, each form in a process of its own. With
`--device cuda` all of it is on the GPU, and memory is what its allocator gave out at most.
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
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

import torch
from torch import Tensor
from torch.nn.functional import softmax

from csrec_dist.losses import FactoredLabels, distillation

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


def tiled(x: Inputs, kl: str) -> Tensor:
    """The loss of this package."""
    total, count = distillation(x.states, x.item_weight, x.targets, x.labels, temperature=TEMPERATURE, beta=BETA, kl=kl)
    return total / count


FORMS: dict[str, Callable[[Inputs, str], Tensor]] = {"tiled": tiled, "plain": plain}


def run(form: str, x: Inputs, kl: str) -> tuple[float, Tensor, Tensor]:
    """One forward and backward pass: loss and gradients."""
    loss = FORMS[form](x, kl)
    of_states, of_weight = torch.autograd.grad(loss, [x.states, x.item_weight])
    return loss.item(), of_states, of_weight


def check_agreement(x: Inputs, kl: str) -> dict[str, float]:
    """Largest relative errors of the tiled form against the plain one; raises SystemExit above 1e-4."""
    expected, got = run("plain", x, kl), run("tiled", x, kl)
    errors = {"loss": abs(got[0] - expected[0]) / abs(expected[0])}
    for name, a, b in zip(("states", "item_weight"), got[1:], expected[1:], strict=True):
        errors[name] = ((a - b).abs().max() / b.abs().max()).item()
    if not max(errors.values()) < 1e-4:
        raise SystemExit(f"the forms disagree: {errors}")
    return errors


def time_forms(x: Inputs, kl: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of each pass of each form, the forms taking turns."""
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    device = x.states.device.type
    for _ in range(repeats):
        for form in FORMS:
            started = time.perf_counter()
            run(form, x, kl)
            wait_for(device)
            seconds[form].append(time.perf_counter() - started)
    return seconds


def gemm_rate(device: str) -> float:
    """Operations a second of a 2048³ product (on a GPU 8192³), the best of seven."""
    size = 8192 if device == "cuda" else 2048
    left, right = torch.randn(2, size, size, device=device).unbind()
    best = math.inf
    for _ in range(7):
        wait_for(device)
        started = time.perf_counter()
        left @ right
        wait_for(device)
        best = min(best, time.perf_counter() - started)
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
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(args.only, x, args.kl)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at the current size
    before = resident_mib("VmRSS")
    run(args.only, x, args.kl)
    return resident_mib("VmHWM") - before


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
    parser.add_argument("--only", choices=tuple(FORMS), help="print the peak extra MiB of one form and stop")
    return parser.parse_args()


def main() -> None:
    """Check, time, measure, print."""
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.only:
        print(extra_memory(args))
        return
    x = make_inputs(args)
    errors = check_agreement(x, args.kl)
    seconds = time_forms(x, args.kl, args.repeats)
    medians = {form: statistics.median(values) for form, values in seconds.items()}
    memory = {form: memory_of(form) for form in FORMS}
    rate = gemm_rate(args.device)
    operations = (3 + args.members) * 2 * args.examples * args.items * args.width
    for form in FORMS:
        print(f"{form:8} median {medians[form]:.4f} s  best {min(seconds[form]):.4f} s  peak +{memory[form]:.0f} MiB")
    print(f"limit    {operations / rate:.4f} s: {operations / 1e9:.1f} GFLOP at {rate / 1e9:.0f} GFLOP/s")
    result = {
        "ratio": medians["plain"] / medians["tiled"],
        "memory_share": memory["tiled"] / memory["plain"],
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
    print(json.dumps(result))


if __name__ == "__main__":
    main()
