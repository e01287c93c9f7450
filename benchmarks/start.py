"""How long a command takes before its work begins: `python benchmarks/start.py [--against CHECKOUT]`.

Makes a tiny run in a temporary folder, then starts each command several times, one process after the other, and takes
medians of seconds by the wall clock, and on the processor, which other work on the machine moves less. The commands
are those that end at once (help, mistakes), those that read (labels, report, compare), and `prepare`, with and without
its work. `csrec-dist` starts as its entry point does. With `--against` every command is started in turn from this
checkout and from another one. The limit is the interpreter itself, which is timed too. What each command imports is
found in one more start. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    *("accelerate", "datasets", "deepspeed", "matplotlib", "numpy", "pandas", "polars", "psutil", "pyarrow"),
    *("pydantic", "rich", "safetensors", "scipy", "tensorboard", "torch", "transformers", "yaml"),
}
CONFIG = """
name: small
output: {folder}/runs
dataset: {{source: {folder}/world/log, window: 8, num_shards: 2}}
model: {{name: gru4rec, width: 8, hidden: 8}}
training: {{max_epochs: 1}}
baseline: true
"""
START = "import sys; from csrec_dist.cli import main; sys.exit(main())"
IMPORTED = f"""
import sys
from csrec_dist.cli import main
try:
    sys.exit(main())
finally:
    print("imported", *sorted({HEAVY} & set(sys.modules)), file=sys.stderr)
"""


def commands(folder: Path) -> dict[str, tuple[list[str], int]]:
    """The arguments of each command by what it is, and the exit status that it is to have."""
    run, config = str(folder / "runs/small"), ["--config", str(folder / "config.yaml")]
    elsewhere = [*config, "--set", f"output={folder}/prepared", "--set"]
    return {
        "--help": (["--help"], 0),
        "a wrong command": (["trian"], 2),
        "a config mistake": (["run", *config, "--set", "training.betta=1"], 2),
        "fetch, a missing file": (["fetch", "ml-100k", "--source", str(folder / "none.zip")], 2),
        "labels info": (["labels", "info", run], 0),
        "labels verify": (["labels", "verify", run], 0),
        "report": (["report", run], 0),
        "report of two runs": (["report", run, run], 0),
        "compare": (["compare", run, f"{run}:base"], 0),
        "prepare, a missing log": (["prepare", *elsewhere, "dataset.source=none.csv"], 2),
        "prepare, done already": (["prepare", *config], 0),
        "prepare, 1,000 interactions": (["prepare", *elsewhere, "name=NEW"], 0),
        "simulate, 1,000 interactions": (["simulate", str(folder / "NEW"), *SIMULATED], 0),
    }


SIMULATED = ["--interactions", "1000", "--users", "50", "--items", "60"]


class Starter:
    """Starts commands of one checkout, each from the same folder."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self._folder = folder
        self._environ = {**os.environ, "PYTHONPATH": str(checkout)}
        self._num_new = 0

    def start(self, code: str, arguments: list[str], status: int = 0) -> subprocess.CompletedProcess[str]:
        """Start a command and wait for it; the word NEW among its arguments becomes a name that was not used before."""
        self._num_new += 1
        new = f"new-{os.path.basename(self._environ['PYTHONPATH'])}-{self._num_new}"
        command = [sys.executable, "-c", code, *(each.replace("NEW", new) for each in arguments)]
        done = subprocess.run(command, cwd=self._folder, env=self._environ, capture_output=True, text=True, check=False)
        assert done.returncode == status, f"{arguments} ended with {done.returncode}:\n{done.stderr}"
        return done

    def seconds(self, code: str, arguments: list[str], status: int = 0) -> tuple[float, float]:
        """Seconds of one start by the wall clock, and on the processor."""
        begin, before = time.perf_counter(), os.times()
        self.start(code, arguments, status)
        passed, after = time.perf_counter() - begin, os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        return passed, used

    def imported(self, arguments: list[str], status: int) -> list[str]:
        """The heavy packages that a command has imported when it ends."""
        lines = self.start(IMPORTED, arguments, status).stderr.splitlines()
        return next(line.split()[1:] for line in reversed(lines) if line.startswith("imported"))


def measured(starters: dict[str, Starter], name: str, code: str, arguments: list[str], status: int, runs: int) -> dict:
    """Medians of each checkout's starts, which take turns."""
    times = [
        {which: starter.seconds(code, arguments, status) for which, starter in starters.items()} for _ in range(runs)
    ]
    wall, cpu = ({which: round(median(each[which][k] for each in times), 3) for which in starters} for k in (0, 1))
    print(f"{name:30}", *(f"{which} {wall[which]:7.3f} s, cpu {cpu[which]:6.3f}" for which in starters), flush=True)
    return {"wall": wall, "cpu": cpu}


def main() -> None:
    """Measure, print a line for each command, and one JSON object last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="starts of each command (default 5)")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout, to be started in turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starters = {"here": Starter(ROOT, folder)}
        starters["here"].start(START, ["simulate", str(folder / "world"), *SIMULATED])
        (folder / "config.yaml").write_text(CONFIG.format(folder=folder))
        starters["here"].start(START, ["run", "--config", str(folder / "config.yaml")])
        if options.against:
            starters["there"] = Starter(options.against.resolve(), folder)
        results = {"python -c pass": measured(starters, "python -c pass", "pass", [], 0, options.runs)}
        imports: dict[str, list[str]] = {}
        for command, (arguments, status) in commands(folder).items():
            results[command] = measured(starters, command, START, arguments, status, options.runs)
            imports[command] = starters["here"].imported(arguments, status)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    record = {"benchmark": "start", "date": str(date.today()), "machine": machine, "runs": options.runs}
    print(json.dumps(record | {"seconds": results, "imports": imports}))


if __name__ == "__main__":
    main()
