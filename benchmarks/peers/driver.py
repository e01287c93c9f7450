"""What the drivers share: settings from a JSON file that is named first, one JSON object with what was measured last.

A driver runs in its library's environment, so it imports nothing of this project but this file. The windows are a table
`windows.csv` (user, item, time): each window is a user of its own, whose last item is left to a test that nobody reads,
and whose last but one is predicted for NDCG@10.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def start() -> dict[str, Any]:
    """The settings, with torch on as many threads as they say."""
    with open(sys.argv[1]) as file:
        settings: dict[str, Any] = json.load(file)
    torch.set_num_threads(settings["threads"])
    return settings


class Measured:
    """Seconds by name, in the order they were taken, by the clock and on the processor; and NDCG@10 by epoch."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._on_gpu = settings["device"] == "cuda"
        self.seconds: dict[str, list[tuple[float, float]]] = {}
        self.ndcg: list[float] = []
        self._began: dict[str, tuple[float, float]] = {}

    def begin(self, name: str) -> None:
        """Begin to time `name`."""
        self._began[name] = self._now()

    def end(self, name: str) -> None:
        """Note the seconds since `begin`."""
        began, now = self._began.pop(name), self._now()
        self.seconds.setdefault(name, []).append((now[0] - began[0], now[1] - began[1]))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note the seconds of the block."""
        self.begin(name)
        yield
        self.end(name)

    def report(self, examples: int, versions: dict[str, str], **more: Any) -> None:
        """Print the line that benchmarks/peers.py reads; `examples` are the prefixes of an epoch."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found = {"examples": examples, "peak_mib": round(peak), "ndcg@10": self.ndcg, "versions": versions}
        if self._on_gpu:
            found["gpu_peak_mib"] = torch.cuda.max_memory_allocated() // 2**20
        print(json.dumps({"seconds": self.seconds, **found, **more}))

    def _now(self) -> tuple[float, float]:
        if self._on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()
