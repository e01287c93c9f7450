"""What checksums take of each stage: `python -m benchmarks.checksums --config FILE [--set KEY=VALUE …]`.

Does the stages of a run one after the other, each in a process of its own, and adds up the seconds in SHA-256, reading
included, in all threads: of what is written and of what is compared before it is used. The share is of the stage's
seconds by the wall clock, although checkpoints are written beside the training. The limit is the speed of SHA-256 on
this processor, which is measured too. The last line is one JSON object.
"""

import argparse
import hashlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import date
from multiprocessing import get_context
from typing import Any
from unittest import mock

from csrec_dist.config import load_config
from csrec_dist.distributed import Runtime
from csrec_dist.runs.pipeline import execute, stages_of

MIB = 1 << 20


class TimedSha256:
    """SHA-256 that adds what it takes to `seconds`, and what it is given to `num_bytes`."""

    seconds, num_bytes, real = 0.0, 0, staticmethod(hashlib.sha256)

    def __init__(self, data: Any = b"", **options: Any) -> None:
        self._inner = self.real(**options)
        self.update(data)

    def update(self, data: Any) -> None:
        begin = time.perf_counter()
        self._inner.update(data)
        TimedSha256.seconds += time.perf_counter() - begin
        TimedSha256.num_bytes += memoryview(data).nbytes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def timed_file_digest(real: Callable[..., Any]) -> Callable[..., Any]:
    def digest(file: Any, kind: str) -> Any:
        begin = time.perf_counter()
        found = real(file, kind)
        TimedSha256.seconds += time.perf_counter() - begin
        TimedSha256.num_bytes += file.tell()
        return found

    return digest


@contextmanager
def timed() -> Iterator[None]:
    file_digest = timed_file_digest(hashlib.file_digest)
    with mock.patch.object(hashlib, "sha256", TimedSha256), mock.patch.object(hashlib, "file_digest", file_digest):
        yield


def speed() -> float:
    """MiB per second of SHA-256 on bytes in memory."""
    block, begin = bytes(64 * MIB), time.perf_counter()
    hashlib.sha256(block).hexdigest()
    return 64 / (time.perf_counter() - begin)


def measure(config: str, overrides: list[str], stage: str) -> dict[str, float]:
    """Seconds of a stage and of its checksums."""
    begin = time.perf_counter()
    with timed():
        execute(load_config(config, overrides), Runtime.start(), [stage])
    seconds, spent = time.perf_counter() - begin, TimedSha256.seconds
    return {
        "seconds": round(seconds, 2),
        "checksum_seconds": round(spent, 4),
        "percent": round(100 * spent / seconds, 3),
        "mib": round(TimedSha256.num_bytes / MIB, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*args.set, f"output={folder}"]
        for stage in stages_of(load_config(args.config, overrides)):
            # A process for each: what one has compared, it does not compare again.
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                rows[stage.name] = pool.submit(measure, args.config, overrides, stage.name).result()
            print(f"{stage.name:10}", rows[stage.name], flush=True)
    machine = {"date": date.today().isoformat(), "machine": platform.platform(), "sha256_mib_s": round(speed())}
    print(json.dumps({"stages": rows, "config": args.config, "set": args.set, **machine}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
