"""What the finished runs of a study found, as one row each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from csrec_dist.config import Config
from csrec_dist.files import read_json
from csrec_dist.stagebook import StageBook
from csrec_dist.study.spec import Entry

TRAINING_STAGES = {"teach": "teachers/*", "label": "", "distill": "student"}
"""The stages whose time is a method's cost, and where the models lie that they train."""
TEACHER_MODEL = "teacher_model"
TEACHER = "teacher/"


def collect(entries: Sequence[Entry]) -> pl.DataFrame:
    """One row for each finished run: its cell, seed and folder, what its training took, and its figures.

    The student's test metrics have their own names, others a path: `valid/ndcg@10`, `popularity/rest_80%/ndcg@10`,
    `lists/gini@10`, `calibration/ece`, `diversity/jensen_shannon`; under `teacher/` stands the same of the teacher
    module, that is of the model `teacher_model` in the run.
    """
    rows = [_row(entry) for entry in entries if (entry.config.folder / "metrics.json").exists()]
    return pl.DataFrame(rows, infer_schema_length=None)


def _row(entry: Entry) -> dict[str, Any]:
    folder = entry.config.folder
    found = read_json(folder / "metrics.json")
    teacher = teacher_model(entry.config, found["models"])
    figures = _numbers(_sections(found) | {"valid": found["valid"], "diversity": found.get("diversity", {})})
    taught = _numbers(_sections(found["models"][teacher]), TEACHER) if teacher else {}
    origin = {"seed": entry.seed, "run": str(folder), TEACHER_MODEL: teacher}
    return {**entry.cell, **origin, **training_cost(folder), **figures, **taught}


def teacher_model(config: Config, models: dict[str, Any]) -> str | None:
    """The model that makes a run's soft labels; of Base, beside which Table 5 puts teachers, the student itself."""
    if config.method == "base":
        return "student"
    return "teachers" if "teachers" in models else next(iter(config.strategy.labelling), None)


def _sections(found: dict[str, Any]) -> dict[str, Any]:
    """A model's test metrics, then by group, of its lists and of its probabilities."""
    others = {name: found[name] for name in ("lists", "calibration") if name in found}
    return {**found["test"], **found.get("groups", {}), **others}


def _numbers(value: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested sections by their path; lists and what is missing are left out."""
    flat: dict[str, float] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= _numbers(item, f"{prefix}{key}/")
        elif isinstance(item, int | float):
            flat[f"{prefix}{key}"] = item
    return flat


def training_cost(folder: Path) -> dict[str, float | None]:
    """What a run's teachers, labels and student took: `seconds` of the slowest rank, `cpu_seconds` of all ranks.

    Teachers shared with other runs count in full. None where a training was cut off and went on, or took models that
    another run trained, as the book only knows what the last process took; and where it kept no CPU seconds.
    """
    book, total = StageBook(folder), {"seconds": 0.0, "cpu_seconds": 0.0}
    unknown: dict[str, float | None] = dict.fromkeys(total)
    if any(member.is_symlink() for member in folder.glob("teachers/*")):
        return unknown
    for stage, models in TRAINING_STAGES.items():
        record = book.record(stage)
        if record is None:
            continue
        seconds = max((each["seconds"] for each in record.usage), default=0.0)
        if models and trained_seconds(folder, models) > seconds * len(record.usage):
            return unknown
        if any("cpu_seconds" not in each for each in record.usage):
            return unknown
        total["seconds"] += seconds
        total["cpu_seconds"] += sum(each["cpu_seconds"] for each in record.usage)
    return {**total}


def trained_seconds(folder: Path, models: str) -> float:
    """Seconds in the epochs of a stage's models, those before an interruption included."""
    return sum(read_json(path).get("seconds", 0.0) for path in folder.glob(f"{models}/metrics.json"))
