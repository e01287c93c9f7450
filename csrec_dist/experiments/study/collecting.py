"""The rows of a study's finished runs: settings, metrics, costs, ranks of test targets, environments."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from csrec_dist.config import Config
from csrec_dist.environment import NAMES
from csrec_dist.errors import UserError
from csrec_dist.evaluation.per_row import rating_group
from csrec_dist.experiments.study.spec import Entry
from csrec_dist.files import fingerprint, read_json
from csrec_dist.runs.inputs import protocol, settings
from csrec_dist.runs.run import Evaluated, Run

TRAINING_STAGES = {"teach": "teachers/*", "label": "", "distill": "student"}
"""The stages whose time is the cost of a method, and the folders of the models they train."""
TEACHER_MODEL = "teacher_model"
TEACHER = "teacher/"
SETTINGS = "settings"
PROTOCOL = "protocol"
RANKS, TRUE_RANKS = "ranks", "true_ranks"
ENVIRONMENT = "environment/"
RATING_GROUPS = "rating_groups"
USERS = "users"


def collect(entries: Sequence[Entry]) -> pl.DataFrame:
    """One row for each finished run: its cell, seed and folder, the cost of its training, and its metrics.

    The student's test metrics have their own names, others a path: `valid/ndcg@10`, `popularity/rest_80%/ndcg@10`,
    `lists/gini@10`, `calibration/ece`, `diversity/jensen_shannon`; `teacher/` has the same for the teacher ensemble,
    the model `teacher_model` of the run. Paired tests need `ranks`, of the targets in the order of the test rows
    (`true_ranks`, of simulated logs, are of the items truly preferred, 0 for one that is no item), `users`, whose the
    rows are, and `rating_groups`, as `rating_group` numbers them (null without ratings). `protocol` is a fingerprint of
    what was evaluated and how, `settings` of everything that decides the run except where its data are, and
    `environment/…` is what the bits of its student depend on otherwise.
    """
    rows = [_row(entry) for entry in entries if is_finished(entry.config)]
    return pl.concat([pl.DataFrame(row) for row in rows], how="diagonal_relaxed") if rows else pl.DataFrame()


def is_finished(config: Config) -> bool:
    """Whether the run has been evaluated."""
    return Run.of(config).record("evaluate") is not None


def check_settings(entries: Sequence[Entry], say: Callable[[str], None]) -> None:
    """UserError if a finished run has other settings than its study has now: it would count as the present run.

    Where its log lay may have changed, and is said: the log may have been moved, or be another one.
    """
    finished = [entry.run for entry in entries if is_finished(entry.config)]
    configs = [Run.open(run.folder).config for run in finished]
    others = [
        run for run, one in zip(finished, configs, strict=True) if settings_key(one) != settings_key(run.resolved)
    ]
    if others:
        raise UserError(
            f"{len(others)} finished runs in {others[0].folder.parent} have other settings than the study has now: "
            f"{', '.join(run.config.name for run in others)}. Move their folders away, or give another --output."
        )
    places = [tuple(map(_place, (one, run.config))) for run, one in zip(finished, configs, strict=True)]
    for (before, now), count in Counter(each for each in places if each[0] != each[1]).items():
        say(f"{count} finished runs were made from {before}, which is {now} now; they are taken as runs of one log")


def _place(config: Config) -> str | None:
    """Where a run's data are."""
    return config.dataset.source or config.dataset.path


def settings_key(config: Config) -> str:
    """A fingerprint of everything that decides a run: its config except names, data paths and layout of processes."""
    return fingerprint(settings(config))


def _row(entry: Entry) -> dict[str, Any]:
    folder = entry.run.folder
    metrics = read_json(folder / "metrics.json")
    teacher = teacher_model(entry.config, metrics["models"])
    of_student = _numbers(_sections(metrics) | {"valid": metrics["valid"], "diversity": metrics.get("diversity", {})})
    of_teacher = _numbers(_sections(metrics["models"][teacher]), TEACHER) if teacher else {}
    origin = {"seed": entry.seed, "run": folder.name, SETTINGS: settings_key(entry.config), TEACHER_MODEL: teacher}
    flat = {**entry.cell, **origin, **environments(folder), **training_cost(folder), **of_student, **of_teacher}
    return {key: [value] for key, value in flat.items()} | _tested(folder, teacher)


def environments(folder: Path) -> dict[str, str]:
    """The environments a run's student was trained in, by name; in sequence if starts differed."""
    trained = read_json(folder / "student/metrics.json").get("environments", [])
    values = {name: dict.fromkeys(str(each[name]) for each in trained) for name in NAMES}
    return {f"{ENVIRONMENT}{name}": ", then ".join(texts) for name, texts in values.items() if texts}


def _tested(folder: Path, teacher: str | None) -> dict[str, list[Any]]:
    """What paired tests need of a run's student and its teacher model; nothing for a model without ranks."""
    run = Run.open(folder)
    columns: dict[str, list[Any]] = {}
    for prefix, model in (("", "student"), (TEACHER, teacher)):
        evaluated = Evaluated(run, model or "")
        if not evaluated.path.exists():
            continue
        ranks, evaluated_as = evaluated.ranks, protocol(run)
        columns[f"{prefix}{RANKS}"] = [ranks["rank"].cast(pl.UInt32)]
        if "true_rank" in ranks.columns:
            columns[f"{prefix}{TRUE_RANKS}"] = [ranks["true_rank"].cast(pl.UInt32)]
        ratings = ranks["rating"].cast(pl.Float32).fill_null(math.nan).to_numpy()
        groups = rating_group(ratings, evaluated_as["evaluation.min_rating"])
        columns[RATING_GROUPS] = [None if np.isnan(ratings).all() else pl.Series(groups).cast(pl.Int8)]
        columns[USERS] = [ranks["user"]]
        columns[PROTOCOL] = [fingerprint(evaluated_as)]
    return columns


def teacher_model(config: Config, models: dict[str, Any]) -> str | None:
    """The model that makes a run's soft labels; for Base, which Table 5 compares with teachers, the student itself."""
    if config.method == "base":
        return "student"
    return "teachers" if "teachers" in models else next(iter(config.module.labelling), None)


def _sections(metrics: dict[str, Any]) -> dict[str, Any]:
    """A model's metrics on test, then by group, of its lists and of its calibration."""
    others = {name: metrics[name] for name in ("lists", "calibration") if name in metrics}
    return {**metrics["test"], **metrics.get("groups", {}), **others}


def _numbers(value: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested sections by their path, without lists and missing values."""
    flat: dict[str, float] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= _numbers(item, f"{prefix}{key}/")
        elif isinstance(item, int | float):
            flat[f"{prefix}{key}"] = item
    return flat


def training_cost(folder: Path) -> dict[str, float | None]:
    """The cost of a run's teachers, labels and student: `seconds` of the slowest rank, `cpu_seconds` of all ranks.

    Teachers shared with other runs count in full. The cost is None if a training was interrupted or took models that
    another run trained, because the records only cover the last process, and if CPU seconds were not recorded.
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
        trained = [read_json(path) for path in folder.glob(f"{models}/metrics.json")] if models else []
        if sum(each.get("seconds", 0.0) for each in trained) > seconds * len(record.usage):
            return unknown  # the models' epochs took longer than the last process, so there was one before it
        if any("cpu_seconds" not in each for each in record.usage):
            return unknown
        total["seconds"] += seconds
        total["cpu_seconds"] += sum(each["cpu_seconds"] for each in record.usage)
    return {**total}
