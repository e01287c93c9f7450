"""Runs the parts of `gpu.sh` in the order of their worth and writes what they say into a file named by card and date.

A part is a command with a limit of its own. Of a benchmark the last line is kept, a JSON object, and of the tests what
pytest counts; the output of all goes to a log beside the file. A part that lacks a package says so. Parts that a file
of the same card and date has from before stay in it.
"""

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "numpy", "pyarrow", "pydantic", "safetensors", "accelerate", "datasets", "polars")


@dataclass(frozen=True)
class Part:
    """A command of `python`, the seconds it may take, and the packages that it cannot do without."""

    command: str
    limit: int
    needs: tuple[str, ...] = ()
    environ: tuple[tuple[str, str], ...] = ()


def parts(num_gpus: int) -> dict[str, Part]:
    """All parts by name, the most important first."""
    gpu_tests = (("CSREC_GPU_TESTS", "1"),)
    jobs = f" -n {max(2, (os.cpu_count() or 1) * 3 // 4)} --dist worksteal" if version("pytest-xdist") else ""
    loss = "benchmarks/loss.py --device cuda --examples 4096"
    found = {
        "tests": Part(f"-m pytest tests/test_gpu.py tests/test_gpu_runs.py{jobs}", 180, ("pytest",), gpu_tests),
        "loss": Part(f"{loss} --items 20000 --repeats 20", 40),
        "loss_million": Part(f"{loss} --items 1000000 --repeats 3 --without-plain", 40),
        "steps": Part("benchmarks/steps.py --device cuda --tiles 256 --blocks 128 --repeats 20", 100),
        "evaluation": Part("benchmarks/evaluation.py --device cuda --rows 4096 --items 1000000 --repeats 3", 40),
        "catalog": Part(
            "benchmarks/catalog.py --device cuda --ranks 1 --catalog-parallel 1 --items 5000000 --windows 64 256", 60
        ),
        "loop": Part(
            "benchmarks/scaling.py --device cuda --ranks 1 --repeats 1 --steps 40 "
            "--sizes gru4rec:64:256:20000 sasrec:64:256:20000",
            60,
            ("datasets",),
        ),
    }
    if num_gpus > 1:
        ranks = f"1 {num_gpus}"
        found["ranks"] = Part(f"benchmarks/scaling.py --device cuda --ranks {ranks} --repeats 1", 120, ("datasets",))
        found["slices"] = Part(
            f"benchmarks/catalog.py --device cuda --ranks {num_gpus} --catalog-parallel 1 {num_gpus} --items 5000000",
            90,
        )
    return found


def run(part: Part, log: Any) -> dict[str, Any]:
    """Run a part: its status, seconds, and what it says."""
    missing = [name for name in part.needs if version(name) is None]
    if missing:
        return {"status": f"left out: {', '.join(missing)} is not installed"}
    command, begin = [sys.executable, *part.command.split()], time.perf_counter()
    log.write(f"\n$ python {part.command}\n")
    environ = os.environ | dict(part.environ)
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=part.limit, check=False,
        )  # fmt: skip
        status, output = "done" if done.returncode == 0 else f"failed ({done.returncode})", done.stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        status, output = f"cut off after {part.limit} s", output.decode() if isinstance(output, bytes) else output
    log.write(output)
    about: dict[str, Any] = {"command": f"python {part.command}", "status": status}
    about["seconds"] = round(time.perf_counter() - begin, 1)
    return about | said(output)


def said(output: str) -> dict[str, Any]:
    """The JSON object of the last line, or what pytest counts and which tests failed."""
    lines = output.strip().splitlines() or [""]
    with suppress(json.JSONDecodeError):  # of a part that was cut off any line may be the last
        if lines[-1].startswith("{"):
            return {"result": json.loads(lines[-1])}
    failed = [line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR ")) and len(line.split()) > 1]
    counts = re.findall(r"(\d+) (passed|failed|skipped|errors?)", " ".join(lines[-3:]))
    return {"tests": {kind: int(number) for number, kind in counts}, "failed": failed, "last_line": lines[-1]}


def version(name: str) -> str | None:
    """A package's version, or None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Run the parts and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = parts(torch.cuda.device_count())
    parser.add_argument("--parts", nargs="+", choices=list(everything), default=list(everything), metavar="PART")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", metavar="FOLDER")
    parser.add_argument("--list", action="store_true", help="print the parts and stop")
    args = parser.parse_args()
    if args.list:
        for name, part in everything.items():
            print(f"{name:14} {part.limit:4} s  python {part.command}")
        return
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device here")
    properties = torch.cuda.get_device_properties(0)
    about: dict[str, Any] = {
        "gpu": properties.name, "num_gpus": torch.cuda.device_count(), "memory_gib": properties.total_memory >> 30,
        "date": str(date.today()), "python": sys.version.split()[0], "cores": os.cpu_count(),
        "packages": {name: version(name) for name in PACKAGES}, "parts": {},
    }  # fmt: skip
    card = re.sub(r"[^a-z0-9]+", "_", properties.name.lower()).strip("_")
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / f"gpu_{card}_{about['date']}.json"
    if path.exists():
        about["parts"] = json.loads(path.read_text())["parts"]
    with path.with_suffix(".log").open("a") as log:
        for name in args.parts:
            about["parts"][name] = run(everything[name], log)
            path.write_text(json.dumps(about, indent=1) + "\n")
            brief = {key: value for key, value in about["parts"][name].items() if key not in ("command", "result")}
            print(name, brief, flush=True)
    print(path)


if __name__ == "__main__":
    main()
