"""Results of benchmarks: of small ones that are run, and made-up ones."""

from pathlib import Path
from typing import Any

from csrec_dist.bench.measuring import measure
from csrec_dist.bench.result import Result
from csrec_dist.bench.settings import Settings, Sizes
from csrec_dist.distributed import Runtime

SMALL = ["--items", "150", "--batch-size", "16", "--width", "8", "--window", "9", "--steps", "4", "--warmup", "2"]
SMALL_SIZES: dict[str, Any] = {"items": 150, "batch_size": 16, "width": 8, "window": 9}


def measure_as_rank(rank: int, world_size: int, output: str, sizes: dict[str, Any], overrides: list[str]) -> Any:
    """The values of a small benchmark's result on this rank; see `tests.helpers.ranks.run_ranks`."""
    settings = Settings(steps=4, warmup=2, sizes=Sizes(**SMALL_SIZES | sizes), overrides=overrides)
    runtime = Runtime.start(1)
    try:
        return measure(settings, runtime, Path(output), lambda text: None, keep_threads=False).model_dump(mode="json")
    finally:
        runtime.close()


def made_up(**changes: Any) -> Result:
    """A result with one stage, on two ranks; `changes` are fields of it."""
    stage = {
        "seconds": 10.0,
        "examples": [600, 400],
        "examples_per_second": [60.0, 40.0],
        "steps": {"num": 8, "p50": 1.0, "p90": 2.0, "p99": 3.0, "largest": 4.0},
        "data_wait": [0.1, 0.3],
        "rank_wait": [0.0, 0.0],
        "teraflops": [0.5, 0.25],
        "peak_memory_mib": [100.0, 200.0],
        "labels_gb_per_second": None,
        "one_rank_examples_per_second": 80.0,
    }
    limits = {
        "product": "8 × 8 × 8, fp32",
        "peak_teraflops": [1.0, 2.0],
        "disk_bytes": 10,
        "disk_write_gb_per_second": 1.0,
        "disk_read_gb_per_second": 2.0,
        "all_reduce": {"bytes": 4_000_000, "milliseconds": 2.0},
    }
    values: dict[str, Any] = {
        "date": "2026-11-26T12:00:00+00:00",
        "machines": [{"name": "node0", "processor": "a CPU", "cpus": 2, "memory_gib": 8.0, "ranks": [0, 1]}],
        "threads": [1, 1],
        "versions": {"torch": "2.13.0"},
        "warmup_steps": 2,
        "log": {"users": 9, "items": 9, "window": 9, "windows": 9, "examples": 1000, "label_bytes": 0},
        "settings": {"model.width": 8},
        "limits": limits,
        "stages": {"distill": stage},
    }
    return Result.model_validate(values | changes)
