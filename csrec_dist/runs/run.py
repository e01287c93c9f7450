"""One run: a folder with its config, the records of its stages, its models and metrics. Reading it imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from csrec_dist.config import Config, is_resolved, load_config, require_own_hash
from csrec_dist.data.dataset import Dataset
from csrec_dist.errors import UserError
from csrec_dist.files import fingerprint, has_checksum, link, read_json, write_record
from csrec_dist.labels.contents import info
from csrec_dist.teachers import METHODS
from csrec_dist.training.defaults import resolve
from csrec_dist.training.options import ResolvedTraining

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Record:
    """A finished stage: what went in, what came out, what it took on each rank, and what its bits depend on besides."""

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    usage: list[dict[str, float]]
    environment: dict[str, Any] = field(default_factory=dict)


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


@dataclass(frozen=True)
class ResultRow:
    """One trained model, or the teacher ensemble: its name in the run, its title, and what its evaluation found.

    `test` is empty before the run is evaluated; `valid` is then that of the model's best epoch. The teacher ensemble
    has no `valid`. `groups`, `lists` and `calibration` are as in metrics.json, empty where they were not asked for.
    """

    name: str
    title: str
    valid: dict[str, float]
    test: dict[str, float]
    groups: dict[str, dict[str, dict[str, Any]]]
    lists: dict[str, float]
    calibration: dict[str, Any]


class Run:
    """A run on disk, finished or not, or one that has yet to begin: nothing is read before it is asked for."""

    def __init__(self, folder: Path | str, config: Config | None = None) -> None:
        """`config` where it is known; else that of the folder is read."""
        self.folder = Path(folder)
        if config is not None:
            self.config = config

    @classmethod
    def of(cls, config: Config) -> Self:
        """The run of a config, which lies in <output>/<name>."""
        return cls(Path(config.output) / config.name, config)

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """The run in a folder; UserError when there is none, or its config is not of this version."""
        run = cls(folder)
        if not is_resolved(run.folder / "config.yaml"):
            raise UserError(
                f"{run.folder} is not the folder of a run: it has no config.yaml written by a run. Give a folder that "
                "`csrec-dist run` created, such as runs/demo."
            )
        require_own_hash(run.folder / "config.yaml")
        run.config = load_config(run.folder / "config.yaml")
        return run

    @cached_property
    def config(self) -> Config:
        """The run's config, as it stands in its folder."""
        return self.open(self.folder).config

    @property
    def resolved(self) -> Config:
        """The config with what it leaves to the size of the log, once the dataset is there; before, as it is."""
        if self.config.training.is_resolved or not (self.dataset_folder / "dataset.json").exists():
            return self.config
        train = Dataset(self.dataset_folder).splits["train"]
        return self.config.model_copy(update={"training": resolve(self.config.training, train)})

    @property
    def training(self) -> ResolvedTraining:
        """The section `training` of a run whose dataset is there."""
        return ResolvedTraining.model_validate(self.resolved.training.model_dump())

    @property
    def dataset_folder(self) -> Path:
        """The run's own dataset, or the shared one of `dataset.path`."""
        path = self.config.dataset.path
        return Path(path) if path else self.folder / "dataset"

    @cached_property
    def dataset(self) -> Dataset:
        """The prepared dataset; UserError when there is none."""
        path = self.dataset_folder
        if self.config.dataset.path and self.record("prepare") and not (path / "dataset.json").exists():
            raise UserError(
                f"The dataset of {self.folder} was in {path}, where there is none now. If it was moved, give the run "
                f"its new place, and nothing is trained again: CSRec.load({str(self.folder)!r}).fit(Dataset(…)) in "
                "Python, or `csrec-dist run` with the run's config and --set dataset.path=…."
            )
        return Dataset(path)

    def record_file(self, stage: str) -> Path:
        """Where a stage's record is kept."""
        return self.folder / f"{stage}.done.json"

    def record(self, stage: str) -> Record | None:
        """What a finished stage left, or None."""
        path = self.record_file(stage)
        if not path.exists():
            return None
        saved = read_json(path)
        if not isinstance(saved, dict) or not saved.keys() >= {"inputs", "outputs", "usage"}:
            raise UserError(f"{path} is damaged; remove it to do the stage again.")
        return Record(saved["inputs"], saved["outputs"], saved["usage"], saved.get("environment", {}))

    def require(self, stage: str) -> Record:
        """A finished stage's record; UserError that says which command makes it."""
        record = self.record(stage)
        if record is None:
            raise UserError(
                f"Stage {stage} of {self.folder} is not done yet; run `csrec-dist {stage}` (or `run`) first."
            )
        return record

    def require_sound_ranks(self, path: Path) -> None:
        """UserError unless a file of ranks/ is the one that the evaluation wrote."""
        record = self.record("evaluate")
        expected = record.outputs.get("ranks", {}).get(path.name) if record else None
        if expected is not None and not has_checksum(path, expected):
            raise UserError(
                f"{path} is damaged: it has another checksum than the run's evaluation wrote. Evaluate again with "
                "--restart evaluate."
            )

    def finish(self, stage: str, record: Record) -> None:
        """Note that a stage is done."""
        head = {"stage": stage, "fingerprint": fingerprint(record.inputs)}
        write_record(self.record_file(stage), {**head, **asdict(record)})

    def adopt(self, stage: str, donor: "Run", leaves: Sequence[str]) -> bool:
        """Take a finished stage of another run as this run's: its record is copied, what it left is linked to.

        False, and nothing is taken, where this run has begun to make it itself, which it then ends.
        """
        record = donor.require(stage)
        links = [(self.folder / name, donor.folder / name) for name in leaves]
        if any(path.exists() and path.resolve() != target.resolve() for path, target in links):
            return False
        for path, target in links:
            link(path, target)
        self.finish(stage, record)
        return True

    @cached_property
    def stages(self) -> list[StageRow]:
        """The finished stages, in their order."""
        rows = []
        for stage in stage_names(self.config):
            if record := self.record(stage):
                memory = tuple(usage["peak_memory_mib"] for usage in record.usage)
                rows.append(StageRow(stage, max(usage["seconds"] for usage in record.usage), memory))
        return rows

    @property
    def missing(self) -> list[str]:
        """The method's stages that are not done."""
        done = {row.stage for row in self.stages}
        return [stage for stage in stage_names(self.config) if stage not in done]

    @cached_property
    def trainings(self) -> dict[str, dict[str, Any]]:
        """metrics.json of each trained model that the config has, by its name: base, student, then the members."""
        members = sorted(self.config.member_names, key=lambda name: (len(name), name))
        names = [*(["base"] if self.config.baseline else []), "student", *(f"teachers/{name}" for name in members)]
        folders = [self.folder / name for name in names]
        return {path.name: read_json(path / "metrics.json") for path in folders if (path / "metrics.json").exists()}

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """metrics.json; empty before the run is evaluated, and while it is of models that were replaced since."""
        if self.record("evaluate") is None:
            return {}
        path = self.folder / "metrics.json"
        metrics = read_json(path)
        if not (isinstance(metrics, dict) and isinstance(metrics.get("models"), dict)):
            raise UserError(f"{path} is not what an evaluation writes; evaluate again with --restart evaluate.")
        return metrics

    @cached_property
    def results(self) -> list[ResultRow]:
        """What was found about each trained model, in the order of `trainings`, then about the teacher ensemble."""
        evaluated = self.metrics.get("models", {})
        names = [*self.trainings, *(["teachers"] if "teachers" in evaluated else [])]
        rows = []
        for name in names:
            metrics = evaluated.get(name, {})
            valid = metrics.get("valid") or best_epoch(self.trainings.get(name, {})).get("valid", {})
            parts = [metrics.get(part, {}) for part in ("test", "groups", "lists", "calibration")]
            rows.append(ResultRow(name, self.title(name), valid, *parts))
        return rows

    def title(self, name: str) -> str:
        """A model's name for readers: the student is named after its method."""
        if name == "student":
            method = self.config.method
            return f"{'Base' if method == 'base' else METHODS[method].title} student"
        return {"base": "Base", "teachers": "teacher ensemble"}.get(name, name)

    @property
    def hidden_targets(self) -> str:
        """What the evaluation did to targets that their own history has; empty where it hid none."""
        return hidden_targets(self.metrics.get("groups", {}), self.config.evaluation.exclude_seen)

    @cached_property
    def labels(self) -> dict[str, Any] | None:
        """The soft-label cache in figures, if the method has one and it is made."""
        return info(self.folder / "labels") if self.config.num_members and self.record("label") else None


@dataclass(frozen=True)
class Evaluated:
    """One evaluated model of one run."""

    run: Run
    model: str

    @property
    def name(self) -> str:
        """The run's name, and the model's unless it is the student."""
        return self.run.config.name + ("" if self.model == "student" else f":{self.model}")

    @property
    def path(self) -> Path:
        """The file of its ranks, which may not exist."""
        return self.run.folder / "ranks" / f"{self.model}-test.parquet"

    @property
    def ranks(self) -> "pl.DataFrame":
        """The ranks of its test targets, by row."""
        if not self.path.exists():
            raise UserError(
                f"{self.path} is missing: either the run has no model {self.model}, or an earlier version evaluated "
                "it. In that case evaluate again with --restart evaluate."
            )
        import polars as pl

        self.run.require_sound_ranks(self.path)
        return pl.read_parquet(self.path)


def stage_names(config: Config) -> list[str]:
    """The stages that the config's method needs, in order."""
    teaching = ["teach", "label"] if config.num_members else []
    return ["prepare", *teaching, "distill", *(["baseline"] if config.baseline else []), "evaluate"]


def best_epoch(training: dict[str, Any]) -> dict[str, Any]:
    """The epoch whose weights were kept; empty for a model that was trained elsewhere."""
    epochs = training.get("epochs", [])
    return epochs[training["best_epoch"]] if epochs else {}


def hidden_targets(groups: Mapping[str, Mapping[str, Mapping[str, Any]]], exclude_seen: bool) -> str:
    """What `evaluation.exclude_seen` does to targets that their own history has, in a sentence; empty where it is off
    or there is none.

    Args:
        groups: those of metrics.json, of any model.
    """
    if not exclude_seen or "repeat" not in groups:
        return ""
    repeated, new = (groups["repeat"][name]["count"] or 0 for name in ("repeated", "new"))
    return (
        f"{repeated:,} of {repeated + new:,} test targets are in their own history, which evaluation.exclude_seen "
        "keeps out of the ranking: they rank last and count as missed."
    )
