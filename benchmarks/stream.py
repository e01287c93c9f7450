"""Memory and speed of the streamed shards: one epoch over logs of growing size, each in a process of its own.

    python benchmarks/stream.py --interactions 500000 5000000

The law it shows: peak memory does not grow with the number of rows. Prints one JSON line last.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl

from csrec_dist.data.batches import Prefetcher, to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare
from csrec_dist.training.telemetry import peak_memory_mib, reset_peak_memory


def main() -> None:
    """Prepare each size, stream it in a child process, print a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, nargs="+", default=[500_000, 5_000_000])
    parser.add_argument("--batch-size", type=int, default=256, help="windows in a global batch")
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--stream", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stream:
        print(json.dumps(stream_epoch(options.stream, options.batch_size)))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.interactions:
            dataset = make_dataset(Path(folder) / str(size), size, options.shards)
            command = [sys.executable, __file__, "--stream", str(dataset), "--batch-size", str(options.batch_size)]
            child = subprocess.run(command, check=True, capture_output=True, text=True)
            results.append({"interactions": size, **json.loads(child.stdout.splitlines()[-1])})
            print(results[-1])
    print(
        json.dumps(
            {"benchmark": "stream", "date": str(date.today()), "python": platform.python_version(), "results": results}
        )
    )


def make_dataset(folder: Path, num_interactions: int, num_shards: int) -> Path:
    """A prepared dataset of users with about 50 interactions each, in windows of 20."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    log = {
        "user": random.integers(num_interactions // 50, size=num_interactions),
        "item": random.integers(20_000, size=num_interactions),
        "timestamp": np.arange(num_interactions),
    }
    pl.DataFrame(log).write_parquet(folder / "log.parquet")
    options = DatasetOptions(source=str(folder / "log.parquet"), window=20, num_shards=num_shards)
    prepare(options, folder / "dataset")
    return folder / "dataset"


def stream_epoch(folder: Path, batch_size: int) -> dict[str, float]:
    """Stream one epoch; rows, rows a second, and how much the process's peak memory grew over it, in MiB."""
    dataset = Dataset(folder)
    stream = dataset.stream("train", batch_size=batch_size, epoch=0)
    reset_peak_memory()
    before, begin, rows, examples = peak_memory_mib(), time.perf_counter(), 0, 0
    for batch in Prefetcher(stream, to_batch):
        rows += int(batch.weights.sum())
        examples += batch.num_examples
    seconds = time.perf_counter() - begin
    split = dataset.splits["train"]
    assert (rows, examples) == (split.num_rows, split.num_examples)
    return {"rows": rows, "rows_per_second": round(rows / seconds), "grown_mib": round(peak_memory_mib() - before, 1)}


if __name__ == "__main__":
    main()
