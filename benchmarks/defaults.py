"""Validation NDCG@10 by examples in a batch and learning rate, for one log: what the defaults of `training` rest on.

`python benchmarks/defaults.py LOG --window 200 --examples 1024 4096 --rates 0.001 0.002 --epochs 12`

Trains SASRec on one-hot labels with its defaults, a constant learning rate after `--warmup` steps and seed 0, on one
thread, and asks validation alone. The batch is the power of two windows nearest to so many examples. Each training
prints a JSON line with the NDCG@10 of all its epochs.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from csrec_dist.config import Config, parse_config
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare
from csrec_dist.distributed import Runtime
from csrec_dist.files import read_json
from csrec_dist.runs.stages.active import ActiveRun
from csrec_dist.runs.stages.fitting import Fit, fit
from csrec_dist.training import one_hot
from csrec_dist.training.limits import SELECTION_METRIC


def main() -> None:
    """Prepare the log, and do each training of the grid."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--window", type=int, default=50)
    parser.add_argument("--examples", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.002])
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runtime = Runtime.start()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(DatasetOptions(source=str(options.log), window=options.window, num_shards=8), folder / "dataset")
        train = Dataset(folder / "dataset").splits["train"]
        for examples in options.examples:
            windows = max(1, 2 ** round(math.log2(examples * train.num_rows / train.num_examples)))
            for rate in options.rates:
                training = {"batch_size": windows, "learning_rate": rate, "warmup_steps": options.warmup}
                found = {"log": str(options.log), "windows": train.num_rows, "examples": train.num_examples, **training}
                training |= {"max_epochs": options.epochs, "patience": options.epochs}
                config = parse_config(
                    {
                        "name": f"b{windows}_lr{rate:g}",
                        "output": str(folder),
                        "dataset": {"path": str(folder / "dataset")},
                        "method": "base",
                        "training": training,
                    }
                )
                print(json.dumps(found | train_once(config, runtime)), flush=True)
    runtime.close()


def train_once(config: Config, runtime: Runtime) -> dict[str, Any]:
    """The best NDCG@10, its epoch, and those of all epochs."""
    run = ActiveRun(config, runtime)
    task = Fit("distill", config.model, config.seed, one_hot, run.folder / "student", {"training": config.name})
    with run.log("distill") as log:
        fit(run, task, run.layout, log)
    epochs = read_json(run.folder / "student/metrics.json")["epochs"]
    curve = [round(epoch["valid"][SELECTION_METRIC], 4) for epoch in epochs]
    return {"best": max(curve), "best_epoch": 1 + curve.index(max(curve)), "curve": curve}


if __name__ == "__main__":
    main()
