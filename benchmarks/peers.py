"""Training, evaluation, preparation and memory beside RecBole, RecTools, RePlay and the loss in plain PyTorch.

Everybody reads the same windows, each a user of its own (last item test, last but one validation), trains the same
model (width, layers, heads, dropout, Adam, learning rate, seed) with the full softmax for as many epochs, in batches of
as many prefixes, and ranks the whole catalog for the validation rows after each epoch, with recall, NDCG and MRR at 5,
10 and 20. Nobody looks at test rows. `encoding` is the encoder's own part of an evaluation: its pass over these rows
again, without ranking (here and in RecBole).

- `csrec_dist` trains by its Python API and keeps freed memory as its command line does.
- `recbole`: RecBole without autograd's anomaly mode, which it switches on for all sequential models;
  `recbole_released`: with it, as it is released.
- `rectools`, `replay`: SASRec alone, as they have no other model here with a full softmax.
- `plain`: the student of CSRec-M on RecBole's model and loop, with the authors' form of the loss: whole logits, and
  the teachers in the loop. `csrec_dist_m` is the same training here: the paper's loss, labels from a cache.

Each library lives in an environment of its own under `benchmarks/.peers`, which is made at the first use, with the same
torch. The systems take turns, `--rounds` times, each time in a new process; ratios are of one round. An epoch is what a
library's own loop takes for it without validation; the first is left out where there are more. `_cpu_s` are seconds on
the processor, of all threads: on a busy machine they tell more than those of the clock.
Every measurement is a JSON line, appended to `--output`; what could not be installed or run is one with its message.

Run on an idle machine: python benchmarks/peers.py --source LOG [--models sasrec …] [--device cuda] [--output FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import venv
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl

from csrec_dist import Dataset
from csrec_dist.environment import processor
from csrec_dist.models import config_class

ROOT = Path(__file__).resolve().parents[1]
DRIVERS = ROOT / "benchmarks/peers"
TORCH = "torch==2.13.0"
RECBOLE = [TORCH, "recbole==1.2.1", "numpy<2", "pandas<3", "scipy<1.14"]
REQUIREMENTS = {
    "recbole": RECBOLE,
    "rectools": [TORCH, "rectools[torch]==0.19.0"],
    "replay": [TORCH, "replay-rec[torch]==0.22.0"],
}
"""What is installed into each environment; RecBole 1.2.1 needs older releases of the last three."""
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "csrec_dist": ("csrec_dist", {}),
    "recbole": ("recbole", {}),
    "recbole_released": ("recbole", {"anomaly": True}),
    "rectools": ("rectools", {}),
    "replay": ("replay", {}),
    "csrec_dist_m": ("csrec_dist", {"teachers": 2}),
    "plain": ("recbole", {"teachers": 2}),
}
"""System → (its environment and driver, settings of its own)."""
ONLY_SASREC = {"rectools", "replay"}
BASES = {"csrec_dist_m": "plain"}
"""What is compared with what; else with csrec_dist."""


def environment(name: str, cache: Path) -> Path:
    """The interpreter of an environment, which is made if it is not there; CalledProcessError with pip's own words."""
    if name == "csrec_dist":
        return Path(sys.executable)
    folder = cache / name
    python = folder / "bin/python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        for requirements in ([TORCH], REQUIREMENTS[name]):
            command = [python, "-m", "pip", "install", "--quiet", *requirements]
            subprocess.run(command, check=True, capture_output=True, text=True)
        (folder / "complete").write_text("\n".join(REQUIREMENTS[name]))
    return python


def write_windows(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write windows.csv (user, item, time) of the log's windows, whole; how many there are, and their prefixes."""
    data = Dataset.prepare(args.source, folder / "dataset", window=args.window, windows=args.windows)
    windows = pl.read_parquet(folder / "dataset/test-*.parquet", columns=["row", "items"]).sort("row")
    table = windows.select(user="row", item="items", time=pl.int_ranges(pl.col("items").list.len())).explode(
        "item", "time"
    )
    table.write_csv(folder / "windows.csv")
    num_windows, num_examples = len(windows), int((windows["items"].list.len() - 3).sum())
    return {"windows": num_windows, "examples": num_examples, "items": data.num_items}


def measure(system: str, settings: dict[str, Any], cache: Path) -> dict[str, Any]:
    """What the driver of a system says of one process, or why it says nothing."""
    name, own = SYSTEMS[system]
    folder = Path(settings["folder"])
    (folder / "settings.json").write_text(json.dumps(settings | own))
    threads = str(settings["threads"])
    environ = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONWARNINGS": "ignore"}
    environ["PYTHONPATH"] = str(ROOT) if name == "csrec_dist" else ""
    if settings["device"] == "cpu":
        environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        python = environment(name, cache)
        command = [python, DRIVERS / f"with_{name}.py", folder / "settings.json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environ, cwd=folder)
    except subprocess.CalledProcessError as error:
        return {"failed": (error.stderr or error.stdout).strip().splitlines()[-5:]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def figures(found: dict[str, Any], num_rows: int) -> dict[str, Any]:
    """The figures of one process; of several epochs the median, without the first, which warms up."""
    if "failed" in found:
        return found
    seconds = {name: values[1:] or values for name, values in found.pop("seconds").items()}
    named = {f"{name}_s": round(median(wall for wall, _ in values), 3) for name, values in seconds.items()}
    named |= {f"{name}_cpu_s": round(median(cpu for _, cpu in values), 3) for name, values in seconds.items()}
    return named | {"prefixes_per_second": round(found["examples"] / named["epoch_s"]), "rows": num_rows, **found}


def systems_for(model: str, wanted: list[str]) -> list[str]:
    """The systems that can train a model."""
    return [name for name in wanted if model == "sasrec" or name not in ONLY_SASREC]


def main() -> None:
    """Measure all models with all systems and print a line of each, then the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="a log")
    parser.add_argument("--window", type=int, default=20, help="items (default %(default)s)")
    parser.add_argument("--windows", default="paper", help="dataset.windows (default %(default)s)")
    parser.add_argument("--models", nargs="+", default=["sasrec"], metavar="MODEL", help="default: sasrec")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="SYSTEM")
    parser.add_argument("--batch-windows", type=int, default=16, help="windows in a batch (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=1, help="default %(default)s")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default %(default)s")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="keys of the model, for all systems")
    parser.add_argument("--cache", type=Path, default=ROOT / "benchmarks/.peers", help="environments and data")
    parser.add_argument("--output", type=Path, help="JSON lines are appended to this file, too")
    args = parser.parse_args()
    folder = args.cache.resolve() / "data" / f"{Path(args.source).resolve().parent.name}-{args.windows}-{args.window}"
    folder.mkdir(parents=True, exist_ok=True)
    sizes = write_windows(args, folder)
    own_keys = {key: json.loads(value) for key, _, value in (each.partition("=") for each in args.set)}
    common = {
        "folder": str(folder),
        "window": args.window,
        "batch_windows": args.batch_windows,
        "batch_examples": round(args.batch_windows * sizes["examples"] / sizes["windows"]),
        "learning_rate": args.learning_rate,
        "epochs": args.epochs,
        "threads": args.threads,
        "device": args.device,
        "seed": 0,
        "temperature": 3.0,
        "beta": 0.5,
    }
    about = {"benchmark": "peers", "date": str(date.today()), "machine": processor()}
    about |= {"cores": os.cpu_count(), "log": folder.name, **sizes}
    for name in args.models:
        model = config_class(name).model_validate({"name": name, **own_keys}).model_dump()
        rounds: list[dict[str, dict[str, Any]]] = []
        for number in range(args.rounds):
            rounds.append({})
            for system in systems_for(name, args.systems):
                found = figures(measure(system, common | {"model": model}, args.cache.resolve()), sizes["windows"])
                rounds[-1][system] = found
                settings = {key: value for key, value in common.items() if key != "folder"}
                line = about | {"model": model, "system": system, "round": number, **settings, **found}
                tell(line, args.output)
        print(name, json.dumps(ratios(rounds)), flush=True)


def tell(line: dict[str, Any], output: Path | None) -> None:
    """Print a line, and append it to the file."""
    text = json.dumps(line)
    print(text, flush=True)
    if output:
        with open(output, "a", encoding="utf-8") as file:
            file.write(text + "\n")


def ratios(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """For each peer the medians, over rounds, of its seconds over those here, and of the last NDCG@10 here over its."""
    found: dict[str, Any] = {}
    for peer in rounds[0]:
        here = next((ours for ours, theirs in BASES.items() if theirs == peer), "csrec_dist")
        pairs = [(each[here], each[peer]) for each in rounds if here in each]
        pairs = [pair for pair in pairs if not any("failed" in found for found in pair)]
        if peer in (here, *BASES) or not pairs:
            continue
        found[peer] = {
            name: round(median(theirs[name] / ours[name] for ours, theirs in pairs), 2)
            for name in ("epoch_s", "epoch_cpu_s", "evaluation_s", "evaluation_cpu_s", "preparing_s")
        }
        found[peer]["ndcg"] = round(median(ours["ndcg@10"][-1] / theirs["ndcg@10"][-1] for ours, theirs in pairs), 3)
    return found


if __name__ == "__main__":
    main()
