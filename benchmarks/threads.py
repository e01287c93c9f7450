"""Examples a second of a training from the command line, on an idle machine and beside busy processes.

Each figure is of a real `csrec-dist run` (GRU4Rec on one-hot labels, one process), which is stopped some seconds
after its first epoch. Three settings, beside 0, 1 and 3 processes that were busy before it began:

- before: a thread for each core, which spins at barriers as OpenMP does by itself;
- after: what the command line chooses (it writes it into the run's threads.json);
- one: one thread.

With `--quota` the run, and not the busy processes, may use so many CPUs, as in a container: by a control group that is
made for it (version 2, or 1 where that has the CPUs), which takes root.

The last line is one JSON object. Run on an idle machine: python benchmarks/threads.py [--source LOG] …
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from csrec_dist.processes import PARENT

ROOT = Path(__file__).resolve().parents[1]
LIBGOMP_SPINS = "300000"
"""GOMP_SPINCOUNT where neither it nor OMP_WAIT_POLICY is set; giving it keeps the command line from choosing."""
PERIOD_US = 100_000
"""Over which Linux counts a quota by itself."""
CONFIG = """
dataset: {{source: '{source}', window: 20}}
model: {{name: gru4rec}}
method: base
training: {{batch_size: {windows}, max_epochs: 1000000, patience: 1000000}}
"""


def settings() -> dict[str, dict[str, str]]:
    """The environment variables of each setting."""
    cores = str(len(os.sched_getaffinity(0)))
    return {
        "before": {"OMP_NUM_THREADS": cores, "GOMP_SPINCOUNT": LIBGOMP_SPINS},
        "after": {},
        "one": {"OMP_NUM_THREADS": "1"},
    }


@contextmanager
def busy(num: int) -> Iterator[None]:
    """Within the block so many other processes compute."""
    code = "print(flush=True)\nwhile True: pass"
    others = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(num)]
    try:
        for other in others:
            assert other.stdout is not None
            other.stdout.readline()
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@contextmanager
def limited(quota: float | None) -> Iterator[Callable[[], None] | None]:
    """Within the block, what puts the calling process into a group that may use `quota` CPUs; None without a quota."""
    if quota is None:
        yield None
        return
    root = Path("/sys/fs/cgroup")
    controllers = root / "cgroup.controllers"
    is_unified = controllers.exists() and "cpu" in controllers.read_text().split()
    group = (root if is_unified else root / "cpu") / f"csrec-threads-{os.getpid()}"
    group.mkdir()
    limit = str(round(quota * PERIOD_US))
    if is_unified:
        (group / "cpu.max").write_text(f"{limit} {PERIOD_US}")
    else:
        (group / "cpu.cfs_quota_us").write_text(limit)

    def join() -> None:
        (group / "cgroup.procs").write_text("0")

    try:
        yield join
    finally:
        group.rmdir()


def command(what: str, folder: Path, name: str) -> list[str]:
    """A command for the run called `name`, on the dataset that the run "data" has prepared."""
    shared = (
        [] if what == "prepare" else ["--set", "dataset.source=null", "--set", f"dataset.path={folder}/data/dataset"]
    )
    keys = ["--set", f"output={folder}", "--set", f"name={name}", *shared]
    return [sys.executable, "-m", "csrec_dist", what, "--config", str(folder / "config.yaml"), *keys]


def measure(
    folder: Path, name: str, variables: dict[str, str], seconds: float, limit: Callable[[], None] | None
) -> dict[str, Any]:
    """Examples a second after the first epoch, and the threads that computed."""
    environ = without_openmp() | variables | {PARENT: str(os.getpid())}
    with open(folder / f"{name}.log", "w") as log:
        run = subprocess.Popen(command("run", folder, name), env=environ, stdout=log, stderr=log, preexec_fn=limit)
        while not list((folder / name).glob("checkpoints/distill/step-*")):
            assert run.poll() is None, (folder / f"{name}.log").read_text()
            time.sleep(0.05)
        time.sleep(seconds)
        run.send_signal(signal.SIGTERM)
        run.wait()
    state = json.loads(max((folder / name).glob("checkpoints/distill/step-*/state.json")).read_text())
    epochs = [
        (each["num_examples"], each["num_examples"] / each["examples_per_second"]) for each in state["epochs"][1:]
    ]
    if (begun := state["so_far"])["seconds"]:
        epochs.append((begun["total"][0] + begun["window"][0], begun["seconds"]))
    count, passed = map(sum, zip(*epochs, strict=True))
    return {"examples_per_second": round(count / passed), **json.loads((folder / name / "threads.json").read_text())}


def without_openmp() -> dict[str, str]:
    """The environment with this checkout's package, and no choice made."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    return kept | {"PYTHONPATH": str(ROOT)}


def main() -> None:
    """Measure all settings beside all loads and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("CSREC_TEST_DATA", "data")
    parser.add_argument("--source", default=f"{data}/lastfm_csrec/interactions.parquet", help="default: %(default)s")
    parser.add_argument("--windows", type=int, default=256, help="windows in a step (default %(default)s)")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 3], help="other processes (default 0 1 3)")
    parser.add_argument("--quota", type=float, help="CPUs that the run may use (default: all)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (default %(default)s)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "config.yaml").write_text(CONFIG.format(source=args.source, windows=args.windows))
        subprocess.run(command("prepare", folder, "data"), env=without_openmp(), check=True, stdout=subprocess.DEVNULL)
        for num in args.busy:
            with busy(num), limited(args.quota) as limit:
                found = {n: measure(folder, f"{n}-{num}", v, args.seconds, limit) for n, v in settings().items()}
            rows.append({"busy": num, **found})
            print(rows[-1], flush=True)
    about = {"benchmark": "threads", "date": str(date.today()), "machine": platform.machine(), "cores": os.cpu_count()}
    print(json.dumps(about | {"settings": vars(args)} | {"rows": rows}))


if __name__ == "__main__":
    main()
