"""What each rank of a job of up to 4,096 has to do for its batches, simulated in one process.

    python benchmarks/ranks.py --output benchmarks/results/ranks

For each world size, as far as there are shards, it goes through steps of an epoch as every rank would, checks that the
ranks' rows are together those of one rank in the same order, and counts for each rank the rows of a batch, the files
and bytes of its shards, and the time that the order's arithmetic takes. It writes OUTPUT.json and OUTPUT.png and prints
the JSON line last.
"""

import argparse
import json
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.stream import make_dataset
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.order import EpochOrder, owned_shards
from csrec_dist.environment import processor

WORLD_SIZES = (1, 8, 64, 512, 4096)


def main() -> None:
    """Simulate each world size and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, default=5_000_000)
    parser.add_argument("--shards", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=16_384, help="windows in a global batch")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True, help="path of the results, without a suffix")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset(make_dataset(Path(folder) / "log", options.interactions, options.shards))
        order = EpochOrder(dataset.splits["train"].shard_rows, options.batch_size, seed=0, epoch=0)
        sizes = [dataset.shard_file("train", shard).stat().st_size for shard in range(dataset.num_shards)]
        steps = np.linspace(0, order.num_steps - 1, options.steps).astype(int).tolist()
        results = [
            simulate(order, world_size, steps, sizes) for world_size in WORLD_SIZES if world_size <= options.shards
        ]
    for line in results:
        print(line)
    found = {"benchmark": "ranks", "date": str(date.today()), "processor": processor()}
    found |= {key: getattr(options, key) for key in ("interactions", "shards", "batch_size", "steps")}
    found |= {"rows": sum(order.shard_rows), "results": results}
    options.output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    draw(results, options.output.with_suffix(".png"))
    print(json.dumps(found))


def simulate(order: EpochOrder, world_size: int, steps: list[int], sizes: list[int]) -> dict[str, float]:
    """What the ranks of a job find at some steps; `sizes` are the bytes of the shards."""
    shards = [owned_shards(order.num_shards, rank, world_size) for rank in range(world_size)]
    slots = [order.slots(owned) for owned in shards]
    all_slots = np.arange(order.num_shards)
    milliseconds, rows = [], []
    order.batch(steps[0], slots[0])  # what is computed once
    for step in steps:
        whole = np.stack(order.batch(step, all_slots))
        parts = []
        for rank in range(world_size):
            begin = time.perf_counter()
            parts.append(np.stack(order.batch(step, slots[rank])))
            milliseconds.append(1e3 * (time.perf_counter() - begin))
        for rank, part in enumerate(parts[:: max(1, world_size // 8)]):
            owner = rank * max(1, world_size // 8)
            assert np.array_equal(part, whole[:, whole[0] % world_size == owner]), "the order is not that of one rank"
        together = np.concatenate(parts, axis=1)
        assert np.array_equal(together[:, np.lexsort(together)], whole[:, np.lexsort(whole)]), "rows differ"
        rows += [part.shape[1] for part in parts]
    of_rank = [sum(sizes[shard] for shard in owned) for owned in shards]
    return {
        "ranks": world_size,
        "milliseconds_median": round(float(np.median(milliseconds)), 4),
        "milliseconds_p99": round(float(np.percentile(milliseconds, 99)), 4),
        "rows_least": min(rows),
        "rows_most": max(rows),
        "files_most": max(map(len, shards)),
        "bytes_least": min(of_rank),
        "bytes_most": max(of_rank),
    }


def draw(results: list[dict[str, float]], path: Path) -> None:
    """Time, rows and bytes of a rank over the number of ranks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ranks = [line["ranks"] for line in results]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    series = (
        ("milliseconds_median", "order of a step (ms)"),
        ("rows_most", "rows of a batch"),
        ("bytes_most", "bytes of the shards"),
    )
    for axis, (key, label) in zip(axes, series, strict=True):
        axis.loglog(ranks, [line[key] for line in results], marker="o")
        axis.set(xlabel="ranks", ylabel=f"{label}, of a rank")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
