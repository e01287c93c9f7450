"""Small run folders with real datasets, models and labels but made-up metrics, for tests of what reads them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from csrec_dist import models
from csrec_dist.config import Config, parse_config
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.prepare import prepare
from csrec_dist.distributed.layout import LabelRanks
from csrec_dist.files import read_json, write_json, write_text
from csrec_dist.labels import LabelMember, write_labels
from csrec_dist.labels.options import LabelOptions
from csrec_dist.runs.run import Record, Run

CPU = torch.device("cpu")
EXACT = LabelOptions(dtype="float32")


def write_log(path: Path, num_users: int = 30, num_items: int = 12, seed: int = 0) -> Path:
    """A CSV log with text ids; users differ in length, and some stop early in time."""
    random = np.random.default_rng(seed)
    lines = ["user,item,timestamp"]
    for user in range(num_users):
        start = int(random.integers(0, 60))
        items = random.integers(num_items, size=int(random.integers(5, 25))).tolist()
        lines += [f"u{user:03d},item {item:02d},{start + step}" for step, item in enumerate(items)]
    path.write_text("\n".join(lines) + "\n")
    return path


def make_config(folder: Path, **changes: Any) -> Config:
    """The config of a run in `folder` on a small log beside it."""
    log = folder / "log.csv"
    if not log.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_log(log)
    values: dict[str, Any] = {
        "name": "small",
        "output": str(folder / "runs"),
        "dataset": {"source": str(log), "window": 8, "num_shards": 3, "min_interactions": 2},
        "model": {"name": "sasrec", "width": 8, "inner_width": 8},
        "baseline": changes.get("method", "model_level") != "base",
    }
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(values.get(key), dict) and key != "model" else value
    return parse_config(values)


def make_run(folder: Path, shift: float = 0.0, **changes: Any) -> Path:
    """A finished run's folder; its made-up metrics grow with `shift`."""
    config = make_config(folder, **changes)
    run = Run.of(config).folder
    prepare(config.dataset, run / "dataset")
    dataset = Dataset(run / "dataset")
    write_text(run / "config.yaml", config.to_yaml())
    names = model_names(config)
    for number, name in enumerate(names):
        _train(run, config, dataset, name, number)
    if config.method != "base":
        _label(run, dataset)
    found = {name: _metrics(number + shift) for number, name in enumerate(names)}
    write_json(run / "metrics.json", {**found["student"], "models": found})
    for number, stage in enumerate(stage_names(config), 1):
        usage = [{"seconds": number + rank / 2, "peak_memory_mib": 100.0 * number + rank} for rank in range(2)]
        Run(run).finish(stage, Record({}, {}, usage))
    return run


def without_checksums(dataset: Path) -> Path:
    """The folder of a dataset whose dataset.json names no checksums any more, as if another tool had written it."""
    path = dataset / "dataset.json"
    write_json(path, {key: value for key, value in read_json(path).items() if key != "files"})
    return dataset


def stage_names(config: Config) -> list[str]:
    """The stages of the config's method."""
    taught = ["teach", "label"] if config.method != "base" else []
    return ["prepare", *taught, "distill", *(["baseline"] if config.baseline else []), "evaluate"]


def model_names(config: Config) -> list[str]:
    """The run's models: base, student, members."""
    members = [] if config.method == "base" else [f"teacher-{k}" for k in range(config.teachers.num)]
    return [*(["base"] if config.baseline else []), "student", *members]


def model_folder(run: Path, name: str) -> Path:
    """Where a model of the run lies."""
    return run / "teachers" / name if name.startswith("teacher") else run / name


def _train(run: Path, config: Config, dataset: Dataset, name: str, seed: int) -> None:
    folder = model_folder(run, name)
    models.build(config.model, dataset.num_items, dataset.window - 1, seed).save_pretrained(folder)
    epochs = [
        {
            "epoch": epoch,
            "step": 10 * (epoch + 1),
            "loss": 3.0 - epoch,
            "cross_entropy": 3.0 - epoch if name != "student" else 4.0 - epoch,
            "divergence": 0.0 if name != "student" else 0.5,
            "examples_per_second": 1000.0,
            "data_wait_share": 0.25,
            "valid": {"recall@10": 0.2, "ndcg@10": 0.1234 if epoch == 1 else 0.05},
        }
        for epoch in range(3)
    ]
    write_json(folder / "metrics.json", {"seed": seed, "best_epoch": 1, "seconds": 9.5, "epochs": epochs})


def _label(run: Path, dataset: Dataset) -> None:
    folders = sorted((run / "teachers").iterdir())
    members = dict(enumerate(models.load(folder) for folder in folders))
    named = [
        LabelMember(name=folder.name, width=members[k].config.width, fingerprint=f"{k}")
        for k, folder in enumerate(folders)
    ]
    write_labels(run / "labels", dataset, members, named, LabelRanks.alone(len(members)), device=CPU, options=EXACT)


def _metrics(value: float) -> dict[str, dict[str, float]]:
    """Made-up metrics that tell models, splits and names apart."""
    names = ("recall@5", "ndcg@5", "mrr@5", "recall@10", "ndcg@10", "mrr@10", "mrr")
    return {
        split: {name: (value + 1) / 100 + k / 1000 + offset for k, name in enumerate(names)}
        for split, offset in (("valid", 0.0), ("test", 0.5))
    }
