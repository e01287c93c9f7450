"""A run's folder as its readers see it: finished or not, from its files alone."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from csrec_dist.config import Config, load_config
from csrec_dist.data.stored import Dataset
from csrec_dist.errors import UserError
from csrec_dist.files import read_json
from csrec_dist.labels import info
from csrec_dist.labels.index import INDEX_NAME
from csrec_dist.pipeline import stages_of
from csrec_dist.stagebook import StageBook
from csrec_dist.teachers import STRATEGIES


@dataclass(frozen=True)
class ResultRow:
    """One trained model: its name in the run, its title, and its metrics by split.

    `test` is empty before the run is evaluated; `valid` is then that of the model's best epoch.
    """

    name: str
    title: str
    valid: dict[str, float]
    test: dict[str, float]


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
        if not (self.folder / "config.yaml").is_file():
            raise UserError(
                f"{self.folder} is not the folder of a run: it has no config.yaml. Give a folder that `csrec-dist run` "
                "made, e.g. runs/demo."
            )
        self.config: Config = load_config(self.folder / "config.yaml")
        self._book = StageBook(self.folder)

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
        """Metrics of each trained model, in the order of `trainings`."""
        path = self.folder / "metrics.json"
        evaluated = read_json(path)["models"] if path.exists() else {}
        return [
            ResultRow(
                name,
                self.title(name),
                evaluated.get(name, {}).get("valid") or best_epoch(training).get("valid", {}),
                evaluated.get(name, {}).get("test", {}),
            )
            for name, training in self.trainings.items()
        ]

    def title(self, name: str) -> str:
        """A model's name for readers: the student is named after its method."""
        if name == "student":
            method = self.config.method
            return f"{'Base' if method == 'base' else STRATEGIES[method].title} student"
        return "Base" if name == "base" else name

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
