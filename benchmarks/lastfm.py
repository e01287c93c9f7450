"""Base against CSRec-M on Last.FM: several students, windows and seeds, each run resumable; a table at the end.

Each seed's Base is trained once. The members of seed s are the Base models of the next two seeds (which never saw
seed s), so that 3 seeds cost 6 trainings for each student and kind of windows instead of 12.

    python benchmarks/lastfm.py --source PATH_OF_LOG --output runs/lastfm --jobs 2
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import polars as pl
import torch

from csrec_dist import models
from csrec_dist.data.stored import Dataset
from csrec_dist.data.stream import Batch, lane_batches
from csrec_dist.evaluation import evaluate

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ["gru4rec_paper", "gru4rec_disjoint", "sasrec_paper", "sasrec_disjoint"]
METRICS = ("recall@10", "ndcg@10")
TITLES = {"base": "Base", "csrec_m": "CSRec-M"}
PAPER = {"gru4rec": {"base": (0.1668, 0.1008), "csrec_m": (0.1816, 0.1067)},
         "sasrec": {"base": (0.2035, 0.1143), "csrec_m": (0.2087, 0.1197)}}  # fmt: skip


def main() -> None:
    """Train what is missing, then print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="the Last.FM log (Parquet or .dat)")
    parser.add_argument("--output", type=Path, default=Path("runs/lastfm"), help="folder of the runs")
    parser.add_argument("--configs", nargs="+", default=CONFIGS, choices=CONFIGS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="at least three")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once, each on one thread")
    options = parser.parse_args()
    run_all(options)
    rows = [row for config in options.configs for row in table_rows(options, config)]
    titles = [
        "student",
        "windows",
        "method",
        "Recall@10 %",
        "NDCG@10 %",
        "both, targets not leaked",
        "both, seen items ranked too",
        "paper",
    ]
    text = "\n".join([f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", *rows])
    (options.output / "table.md").write_text(text + "\n")
    print(text)


def run_all(options: argparse.Namespace) -> None:
    """All trainings; a configuration's students come after the next one's Bases, so that nobody waits for members."""
    with ThreadPoolExecutor(options.jobs) as pool:
        bases: dict[tuple[str, int], Future] = {}
        jobs, waiting = [], []
        for config in options.configs:
            for seed in options.seeds:
                bases[config, seed] = pool.submit(train, options, config, f"base_{seed}", seed, ["method=base"])
            jobs += [pool.submit(distill, options, *task) for task in waiting]
            waiting = [
                (config, seed, members, [bases[config, member] for member in members])
                for seed in options.seeds
                for members in [teachers_of(seed, options.seeds)]
            ]
        jobs += [pool.submit(distill, options, *task) for task in waiting]
        for job in jobs:
            job.result()


def teachers_of(seed: int, seeds: list[int]) -> list[int]:
    """The two seeds that follow, round the list."""
    place = seeds.index(seed)
    return [seeds[(place + 1) % len(seeds)], seeds[(place + 2) % len(seeds)]]


def train(options: argparse.Namespace, config: str, name: str, seed: int, settings: list[str]) -> None:
    """One run in a process of its own; its output goes to a log beside the runs."""
    folder = options.output / config
    folder.mkdir(parents=True, exist_ok=True)
    values = [f"name={name}", f"output={folder}", f"seed={seed}", f"dataset.source={options.source}", *settings]
    command = [
        sys.executable,
        "-m",
        "csrec_dist",
        "run",
        "--config",
        ROOT / f"configs/experiments/lastfm_{config}.yaml",
    ]
    for value in values:
        command += ["--set", value]
    with open(folder / f"{name}.log", "a") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=environment)


def distill(options: argparse.Namespace, config: str, seed: int, members: list[int], needed: list) -> None:
    """CSRec-M of one seed on the Base models of two others."""
    for future in needed:
        future.result()
    folders = [str(options.output / config / f"base_{member}" / "student") for member in members]
    train(options, config, f"csrec_m_{seed}", seed, [f"teachers.pretrained={json.dumps(folders)}"])


def table_rows(options: argparse.Namespace, config: str) -> list[str]:
    """Mean ± standard deviation over seeds in percent (each seed's value), and the paper's figures beside ours."""
    student, windows = config.split("_")
    rows = []
    for method in ("base", "csrec_m"):
        runs = [options.output / config / f"{method}_{seed}" for seed in options.seeds]
        masked = [json.loads((run / "metrics.json").read_text())["test"] for run in runs]
        cells = [spread([each[metric] for each in masked]) for metric in METRICS]
        for view in (unleaked, seen_ranked):
            found = [view(run) for run in runs]
            cells.append(" / ".join(f"{100 * mean(each[metric] for each in found):.2f}" for metric in METRICS))
        cells.append(
            " / ".join(f"{100 * value:.2f}" for value in PAPER[student][method]) if windows == "paper" else "–"
        )
        rows.append(f"| {student} | {windows} | {TITLES[method]} | {' | '.join(cells)} |")
    return rows


def spread(values: list[float]) -> str:
    """Mean ± standard deviation, and the values, in percent."""
    percent = [100 * value for value in values]
    return f"{mean(percent):.2f} ± {stdev(percent):.2f} ({', '.join(f'{value:.2f}' for value in percent)})"


def seen_ranked(run: Path) -> dict[str, float]:
    """Test metrics of a run's student with the items of the history ranked too."""
    return evaluate(models.load(run / "student"), test_rows(run), top_n=[10], exclude_seen=False, reduce=alone)


def unleaked(run: Path) -> dict[str, float]:
    """Test metrics of a run's student on the targets that are no training target of the same user in any window."""
    trained = {
        (user, item)
        for file in (run / "dataset").glob("train-*.parquet")
        for user, items in pl.read_parquet(file, columns=["user", "items"]).rows()
        for item in items[1:]
    }
    batches = (without(batch, trained) for batch in test_rows(run))
    return evaluate(models.load(run / "student"), batches, top_n=[10], exclude_seen=True, reduce=alone)


def test_rows(run: Path) -> Iterator[Batch]:
    """The test rows of a run's dataset."""
    dataset = Dataset(run / "dataset")
    return lane_batches(dataset, "test", range(dataset.num_lanes), 256)


def without(batch: Batch, trained: set[tuple[int, int]]) -> Batch:
    """The batch with weight 0 for rows whose user and target are in `trained`."""
    targets = batch.items.gather(1, batch.lengths.unsqueeze(1) - 1).squeeze(1)
    pairs = zip(batch.users.tolist(), targets.tolist(), strict=True)
    return replace(batch, weights=torch.tensor([float(pair not in trained) for pair in pairs]))


def alone(sums: torch.Tensor) -> torch.Tensor:
    """The sum over one rank."""
    return sums


if __name__ == "__main__":
    main()
