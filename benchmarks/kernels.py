"""Which tiles are fastest for the kernels of the losses on this GPU: what `losses/configurations.py` is made from.

Each kernel is timed alone, in a CUDA graph, on the student's loss on factored labels (reverse direction); what it
writes is compared with float64. `--tiles` names a file with a tile on each line: kernel (statistics or
coefficients), mode, examples, items, chunk, warps, stages. First all are timed on `--items` items, then the fastest of
each kernel and mode on `--more-items`. Compilation runs in `--jobs` processes before. The last line is one JSON object.
Run: python benchmarks/kernels.py --tiles FILE [--items 200000] …
"""

import argparse
import json
import multiprocessing
import os
import time
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from loss import replayed
from torch import Tensor
from triton.errors import TritonError

from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.losses import FactoredLabels, fused
from csrec_dist.losses.configurations import Blocks, Configuration
from csrec_dist.losses.divergences import Reverse, Statistics
from csrec_dist.losses.problem import Problem
from csrec_dist.losses.soft_labels import Tempered

ROWS = 64
"""Examples whose results are compared."""
TOLERANCE = {"ieee": 1e-4, "tf32x3": 1e-4, "bf16x6": 1e-4, "tf32": 1e-2, "bf16": 5e-2}


def make_problem(num_examples: int, num_items: int, width: int, label_width: int) -> Problem:
    """Random tables and states; logits have a standard deviation of about 2.5."""
    g = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int, size: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=g, device="cuda") * size

    student = FactoredLabels(normal(num_examples, width), normal(num_items, width, size=2.5 / width**0.5))
    labels = normal(num_examples, label_width), normal(num_items, label_width, size=2.5 / label_width**0.5)
    index = torch.randint(0, num_items, (num_examples,), generator=g, device="cuda")
    weights = torch.rand(num_examples, generator=g, device="cuda")
    return Problem(
        CatalogSlice.whole(num_items), student, index, index >= 0, weights, weights,
        Tempered(FactoredLabels(*labels), 1 / 3), Reverse(0.5), None,
    )  # fmt: skip


class Case:
    """A problem with what its kernels should give, in float64."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        student, labels = problem.student, problem.labels.labels  # type: ignore[union-attr]
        z, t = (
            factors.states[:ROWS].double() @ factors.item_weight.double().T * scale
            for factors, scale in ((student, 1.0), (labels, 1 / 3))
        )
        self.log_sums = torch.stack([z.logsumexp(1), t.logsumexp(1)])
        self.difference = (z.softmax(1) * (z - t)).sum(1)
        kernels = fused.Kernels(problem, Configuration(*[Blocks("ieee", 64, 64, 32, 8, 1)] * 2))
        self.shifts, sums = kernels.statistics()
        self.terms = problem.divergence.combine(sums)
        self.columns = kernels.columns(self.shifts, self.terms)
        num = min(len(problem.student.item_weight), fused.PIECE_BYTES // 4 // len(problem.weights))
        self.items = slice(0, num)  # of the piece of coefficients
        scale = (self.terms.scale * problem.weights)[:ROWS].double().unsqueeze(1)
        z, t = (each[:, :num] - self.shifts[side, :ROWS].unsqueeze(1) for side, each in enumerate((z, t)))
        self.coefficients = scale * z.exp() * (z - t + self.terms.ratios[0][:ROWS].double().unsqueeze(1))
        of_target = (self.terms.target * problem.weights)[:ROWS].double().unsqueeze(1)
        is_target = problem.index[:ROWS].unsqueeze(1) == torch.arange(num, device="cuda")
        self.coefficients += of_target * is_target

    def run(self, name: str, blocks: Blocks) -> Any:
        """One call of a kernel with what goes before or comes after it."""
        problem = replace(self.problem, precision="medium" if blocks.mode == "bf16" else "highest")
        kernels = fused.Kernels(problem, Configuration(blocks, blocks))
        if name == "statistics":
            return kernels.statistics()
        dtype = torch.bfloat16 if blocks.mode == "bf16" else torch.float32
        buffer = torch.empty(fused.PIECE_BYTES // 4, dtype=dtype, device="cuda")
        return kernels.piece(slice(0, len(self.problem.weights)), self.items, self.columns, buffer)

    def error(self, name: str, found: Any) -> float:
        """The largest error of what a kernel has given, over the largest number."""
        if name == "coefficients":
            return relative(found[:ROWS].double(), self.coefficients)
        shifts, sums = found
        assert isinstance(sums, Statistics)
        logs = (shifts.double() + sums.sums[:2].double().log())[:, :ROWS]
        difference = sums.sums[2].double() / sums.sums[0].double() + shifts[0] - shifts[1]
        return max(relative(logs, self.log_sums), relative(difference[:ROWS], self.difference))


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest number."""
    return float((found - expected).abs().max() / expected.abs().max())


def compile_some(tiles: list[tuple[str, Blocks]], width: int, label_width: int) -> None:
    """Compile kernels into Triton's cache, by calls on a small problem; those that cannot be are told of later."""
    case = Case(make_problem(128, 128, width, label_width))
    for name, blocks in tiles:
        try:
            case.run(name, blocks)
        except (TritonError, RuntimeError) as error:
            print(name, blocks, type(error).__name__, flush=True)


def time_all(case: Case, tiles: list[tuple[str, Blocks]], repeats: int, limit: float) -> list[dict[str, Any]]:
    """Error and milliseconds of each tile, or why there are none; what takes long past the limit is left out."""
    found, begin = [], time.perf_counter()
    for name, blocks in tiles:
        if time.perf_counter() - begin > limit:
            break
        about: dict[str, Any] = {"kernel": name, **vars(blocks)}
        try:
            about["error"] = case.error(name, case.run(name, blocks))
            about["ms"] = 1e3 * replayed(partial(case.run, name, blocks), repeats)
            about["right"] = about["error"] < TOLERANCE[blocks.mode]
        except (TritonError, RuntimeError) as error:
            about["failed"] = f"{type(error).__name__}: {str(error)[:100]}"
        found.append(about)
    return found


def fastest(found: list[dict[str, Any]], number: int) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The fastest right tiles by kernel and mode."""
    groups = defaultdict(list)
    for about in found:
        if about.get("right"):
            groups[about["kernel"], about["mode"]].append(about)
    return {key: sorted(group, key=lambda about: about["ms"])[:number] for key, group in groups.items()}


def main() -> None:
    """Compile, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=Path, required=True, metavar="FILE")
    parser.add_argument("--examples", type=int, default=4096, help="N (default %(default)s)")
    parser.add_argument("--items", type=int, default=200_000, help="V (default %(default)s)")
    parser.add_argument("--more-items", type=int, default=0, help="V for the fastest (default %(default)s)")
    parser.add_argument("--width", type=int, default=64, help="d (default %(default)s)")
    parser.add_argument("--label-width", type=int, default=128, help="K (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=14, help="processes that compile (default %(default)s)")
    parser.add_argument("--limit", type=float, default=60, help="seconds of timing (default %(default)s)")
    args = parser.parse_args()
    lines = [line.split() for line in args.tiles.read_text().splitlines() if line.strip()]
    tiles = [(name, Blocks(mode, *map(int, numbers))) for name, mode, *numbers in lines]
    begin = time.perf_counter()
    parts = [(tiles[place :: args.jobs], args.width, args.label_width) for place in range(args.jobs)]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        pool.starmap(compile_some, parts)
    compiled = time.perf_counter() - begin
    print(f"compiled {len(tiles)} in {compiled:.0f} s", flush=True)
    case = Case(make_problem(args.examples, args.items, args.width, args.label_width))
    found = time_all(case, tiles, 5, args.limit)
    best = fastest(found, 3)
    again = [
        (about["kernel"], Blocks(**{k: about[k] for k in Blocks.__annotations__})) for g in best.values() for about in g
    ]
    del case
    large = []
    if args.more_items:
        large = time_all(
            Case(make_problem(args.examples, args.more_items, args.width, args.label_width)), again, 2, args.limit
        )
    for results, items in ((found, args.items), (large, args.more_items)):
        for key, group in fastest(results, 3).items():
            for about in group:
                print(
                    items,
                    *key,
                    {k: about[k] for k in ("examples", "items", "chunk", "warps", "stages")},
                    f"{about['ms']:.3f} ms, error {about['error']:.1e}",
                )
    about = {
        "benchmark": "kernels",
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
    }
    print(json.dumps(about | {"settings": {k: str(v) for k, v in vars(args).items()}, "tiles": found, "more": large}))


if __name__ == "__main__":
    main()
