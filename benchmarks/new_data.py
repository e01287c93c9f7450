"""What is saved when data grow: a run on old and new data from nothing, and one that keeps teachers and weights.

The first 80 % of a log by time are prepared (temporal split), and CSRec-M is trained on them. The rest is appended. On
the new dataset one run starts from nothing, another takes the old run's teachers and starts from its student. Reported
are the seconds of the stages and the student's validation NDCG@10 after each epoch; the last line is one JSON object.
Run: python benchmarks/new_data.py interactions.parquet FOLDER [--epochs 4]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import polars as pl

from csrec_dist import CSRec, Dataset
from csrec_dist.files import read_json

OLD_SHARE = 0.8


def figures(run: CSRec) -> dict[str, Any]:
    """Seconds of the stages, validation by epoch, and the test metrics."""
    records = {stage: read_json(run.folder / f"{stage}.done.json") for stage in ("teach", "label", "distill")}
    epochs = read_json(run.folder / "student/metrics.json")["epochs"]
    return {
        "seconds": {stage: round(record["usage"][0]["seconds"], 1) for stage, record in records.items()},
        "valid_ndcg@10": [round(epoch["valid"]["ndcg@10"], 4) for epoch in epochs],
        "test_ndcg@10": round(run.metrics["test"]["ndcg@10"], 4),
    }


def main() -> None:
    """Prepare, train and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="a Parquet file with a column timestamp")
    parser.add_argument("folder", type=Path, help="a new folder for datasets and runs")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    log = pl.read_parquet(options.log).sort("timestamp", maintain_order=True)
    cut = int(OLD_SHARE * len(log))
    old = Dataset.prepare(log[:cut], options.folder / "old", window=50, split="temporal")
    new = old.append(log[cut:], options.folder / "new")
    training = {"batch_size": 32, "learning_rate": 0.002, "max_epochs": options.epochs, "patience": options.epochs}
    keys = {"training": training, "output": options.folder / "runs"}
    trained = CSRec("old", **keys).fit(old)
    teachers = {"pretrained": [str(trained.folder / "teachers" / name) for name in trained.config.member_names]}
    scratch = CSRec("scratch", **keys).fit(new)
    kept = CSRec("kept", teachers=teachers, **keys).fit(new, resume_from=trained)
    sizes = {name: [data.num_users, data.num_items] for name, data in (("old", old), ("new", new))}
    print(json.dumps({"users_and_items": sizes, "scratch": figures(scratch), "kept": figures(kept)}))


if __name__ == "__main__":
    main()
