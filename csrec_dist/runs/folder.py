"""A run's folder as its readers see it: finished or not, from its files alone."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from csrec_dist.config import Config, is_resolved, load_config
from csrec_dist.data.dataset import Dataset
from csrec_dist.errors import UserError
from csrec_dist.evaluation.groups import hidden_targets
from csrec_dist.files import read_json
from csrec_dist.labels import info
from csrec_dist.labels.format import INDEX_NAME
from csrec_dist.runs.pipeline import stages_of
from csrec_dist.runs.records import StageRecords
from csrec_dist.teachers import METHODS


@dataclass(frozen=True)
class ResultRow:
    """One trained model, or the teacher ensemble: its name in the run, its title, and what its evaluation found.

    `test` is empty before the run is evaluated; `valid` is then that of the model's best epoch. The teacher ensemble
    have no `valid`. `groups`, `lists` and `calibration` are as in metrics.json, empty where they were not asked for.
    """

    name: str
    title: str
    valid: dict[str, float]
    test: dict[str, float]
    groups: dict[str, dict[str, dict[str, Any]]]
    lists: dict[str, float]
    calibration: dict[str, Any]


@dataclass(frozen=True)
class StageRow:
    """What a finished stage took: seconds of the slowest rank, and the peak memory of each rank in MiB."""

    stage: str
    seconds: float
    peak_memory_mib: tuple[float, ...]

    @property
    def num_ranks(self) -> int:
        """Ranks that did the stage."""
        return len(self.peak_memory_mib)

    @property
    def memory(self) -> str:
        """Peak memory of each rank, or its range where there are many ranks."""
        sizes = [f"{size:,.0f}" for size in self.peak_memory_mib]
        if len(sizes) <= 4:
            return ", ".join(sizes)
        return f"{min(self.peak_memory_mib):,.0f} to {max(self.peak_memory_mib):,.0f}"


class RunFolder:
    """A run on disk. Raises UserError when the folder is not one, or its config is not of this version."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not is_resolved(self.folder / "config.yaml"):
            raise UserError(
                f"{self.folder} is not the folder of a run: it has no config.yaml that a run wrote. Give a folder that "
                "`csrec-dist run` made, e.g. runs/demo."
            )
        self.config: Config = load_config(self.folder / "config.yaml")
        self._book = StageRecords(self.folder)

    @property
    def dataset_folder(self) -> Path:
        """The run's own dataset, or the shared one of `dataset.path`."""
        path = self.config.dataset.path
        return Path(path) if path else self.folder / "dataset"

    @cached_property
    def dataset(self) -> Dataset | None:
        """The prepared dataset, if it is there."""
        return Dataset(self.dataset_folder) if (self.dataset_folder / "dataset.json").exists() else None

    @cached_property
    def stages(self) -> list[StageRow]:
        """The finished stages, in their order."""
        rows = []
        for stage in stages_of(self.config):
            record = self._book.record(stage.name)
            if record is not None:
                memory = tuple(usage["peak_memory_mib"] for usage in record.usage)
                rows.append(StageRow(stage.name, max(usage["seconds"] for usage in record.usage), memory))
        return rows

    @property
    def missing(self) -> list[str]:
        """The method's stages that are not done."""
        done = {row.stage for row in self.stages}
        return [stage.name for stage in stages_of(self.config) if stage.name not in done]

    @cached_property
    def trainings(self) -> dict[str, dict[str, Any]]:
        """metrics.json of each trained model by its name: base, student, then the members."""
        folders = [self.folder / "base", self.folder / "student", *sorted(self.folder.glob("teachers/*"), key=_order)]
        return {path.name: read_json(path / "metrics.json") for path in folders if (path / "metrics.json").exists()}

    @cached_property
    def results(self) -> list[ResultRow]:
        """What was found about each trained model, in the order of `trainings`, then about the teacher ensemble."""
        evaluated = self.metrics.get("models", {})
        names = [*self.trainings, *(["teachers"] if "teachers" in evaluated else [])]
        return [self._result(name, evaluated.get(name, {})) for name in names]

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """metrics.json; empty before the run is evaluated, and while it is of models that were replaced since."""
        path = self.folder / "metrics.json"
        return read_json(path) if path.exists() and self._book.record("evaluate") else {}

    @property
    def hidden_targets(self) -> str:
        """What the evaluation did to targets that their own history has; empty where it hid none."""
        return hidden_targets(self.metrics.get("groups", {}), self.config.evaluation.exclude_seen)

    def _result(self, name: str, found: dict[str, Any]) -> ResultRow:
        valid = found.get("valid") or best_epoch(self.trainings.get(name, {})).get("valid", {})
        more = [found.get(part, {}) for part in ("test", "groups", "lists", "calibration")]
        return ResultRow(name, self.title(name), valid, *more)

    def title(self, name: str) -> str:
        """A model's name for readers: the student is named after its method."""
        if name == "student":
            method = self.config.method
            return f"{'Base' if method == 'base' else METHODS[method].title} student"
        return {"base": "Base", "teachers": "teacher ensemble"}.get(name, name)

    @cached_property
    def labels(self) -> dict[str, Any] | None:
        """The soft-label cache in figures, if it is there."""
        folder = self.folder / "labels"
        return info(folder) if (folder / INDEX_NAME).exists() else None


def best_epoch(training: dict[str, Any]) -> dict[str, Any]:
    """The epoch whose weights were kept; empty for a model that was trained elsewhere."""
    epochs = training.get("epochs", [])
    return epochs[training["best_epoch"]] if epochs else {}


def _order(path: Path) -> tuple[int, str]:
    """Members by number, teacher-10 after teacher-9."""
    return len(path.name), path.name
