"""The rows of a study's finished runs: settings, metrics, costs, ranks of test targets, environments."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch

from csrec_dist.config import Config
from csrec_dist.environment import NAMES
from csrec_dist.errors import UserError
from csrec_dist.evaluation.groups import rating_group
from csrec_dist.experiments.study.spec import Entry
from csrec_dist.files import fingerprint, read_json
from csrec_dist.report.paired import Evaluated
from csrec_dist.runs.inputs import settings
from csrec_dist.runs.run import Run

TRAINING_STAGES = {"teach": "teachers/*", "label": "", "distill": "student"}
"""The stages whose time is a method's cost, and where the models lie that they train."""
TEACHER_MODEL = "teacher_model"
TEACHER = "teacher/"
SETTINGS = "settings"
PROTOCOL = "protocol"
RANKS = "ranks"
ENVIRONMENT = "environment/"
RATING_GROUPS = "rating_groups"


def collect(entries: Sequence[Entry]) -> pl.DataFrame:
    """One row for each finished run: its cell, seed and folder, what its training took, and its figures.

    The student's test metrics have their own names, others a path: `valid/ndcg@10`, `popularity/rest_80%/ndcg@10`,
    `lists/gini@10`, `calibration/ece`, `diversity/jensen_shannon`; under `teacher/` stands the same of the teacher
    module, that is of the model `teacher_model` in the run. `ranks` are those of the targets in the order of the test
    rows, `rating_groups` the rows' places among those of `rating_group` (null without ratings): what paired tests need.
    `protocol` names what was evaluated and how, `settings` all that decides the run but its data's place, and
    `environment/…` what the bits of its student depend on besides.
    """
    rows = [_row(entry) for entry in entries if is_finished(entry.config)]
    return pl.concat([pl.DataFrame(row) for row in rows], how="diagonal_relaxed") if rows else pl.DataFrame()


def is_finished(config: Config) -> bool:
    """Whether the run has been evaluated."""
    return Run.of(config).record("evaluate") is not None


def check_settings(entries: Sequence[Entry]) -> None:
    """Raises UserError if a finished run has other settings than its study gives it now: it would pass for that run."""
    finished = [entry.run for entry in entries if is_finished(entry.config)]
    others = [run for run in finished if settings_key(Run.open(run.folder).config) != settings_key(run.config)]
    if others:
        raise UserError(
            f"{len(others)} finished runs in {others[0].folder.parent} have other settings than the study has now: "
            f"{', '.join(run.config.name for run in others)}. Move their folders away, or give another --output."
        )


def settings_key(config: Config) -> str:
    """Names all that decides a run: its config but for names, where its data lie, and which processes do it."""
    return fingerprint(settings(config))


def _row(entry: Entry) -> dict[str, Any]:
    folder = entry.run.folder
    found = read_json(folder / "metrics.json")
    teacher = teacher_model(entry.config, found["models"])
    figures = _numbers(_sections(found) | {"valid": found["valid"], "diversity": found.get("diversity", {})})
    taught = _numbers(_sections(found["models"][teacher]), TEACHER) if teacher else {}
    origin = {"seed": entry.seed, "run": folder.name, SETTINGS: settings_key(entry.config), TEACHER_MODEL: teacher}
    flat = {**entry.cell, **origin, **environments(folder), **training_cost(folder), **figures, **taught}
    return {key: [value] for key, value in flat.items()} | _tested(folder, teacher)


def environments(folder: Path) -> dict[str, str]:
    """What a run's student was trained in, by name; where starts differed, one after the other."""
    trained = read_json(folder / "student/metrics.json").get("environments", [])
    values = {name: dict.fromkeys(str(each[name]) for each in trained) for name in NAMES}
    return {f"{ENVIRONMENT}{name}": ", then ".join(texts) for name, texts in values.items() if texts}


def _tested(folder: Path, teacher: str | None) -> dict[str, list[Any]]:
    """What paired tests need of a run's student and of the model that teaches it; nothing of one without ranks."""
    run = Run.open(folder)
    found: dict[str, list[Any]] = {}
    for prefix, model in (("", "student"), (TEACHER, teacher)):
        evaluated = Evaluated(run, model or "")
        if not evaluated.path.exists():
            continue
        ranks = evaluated.ranks
        found[f"{prefix}{RANKS}"] = [ranks["rank"].cast(pl.UInt32)]
        ratings = torch.from_numpy(ranks["rating"].cast(pl.Float32).fill_null(math.nan).to_numpy().copy())
        groups = rating_group(ratings, run.config.evaluation.min_rating)
        found[RATING_GROUPS] = [None if ratings.isnan().all() else pl.Series(groups.numpy()).cast(pl.Int8)]
        found[PROTOCOL] = [fingerprint(evaluated.protocol)]
    return found


def teacher_model(config: Config, models: dict[str, Any]) -> str | None:
    """The model that makes a run's soft labels; of Base, beside which Table 5 puts teachers, the student itself."""
    if config.method == "base":
        return "student"
    return "teachers" if "teachers" in models else next(iter(config.module.labelling), None)


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
    another run trained, as the records only knows what the last process took; and where it kept no CPU seconds.
    """
    run, total = Run(folder), {"seconds": 0.0, "cpu_seconds": 0.0}
    unknown: dict[str, float | None] = dict.fromkeys(total)
    if any(member.is_symlink() for member in folder.glob("teachers/*")):
        return unknown
    for stage, models in TRAINING_STAGES.items():
        record = run.record(stage)
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
