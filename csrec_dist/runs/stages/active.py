"""A run that is being worked on, with its processes; what a stage of it is, and what several stages check."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from csrec_dist import distributed
from csrec_dist.config import Config
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.order import refuse_idle_ranks
from csrec_dist.data.prepare import identify
from csrec_dist.distributed import engines
from csrec_dist.errors import SharedUserError, UserError, shared_errors
from csrec_dist.files import make_folder, sha256_file
from csrec_dist.labels.format import INDEX_NAME
from csrec_dist.runs.inputs import weights_fingerprint
from csrec_dist.runs.restarts import Restarts
from csrec_dist.runs.run import Run
from csrec_dist.training.limits import AfterEpoch
from csrec_dist.training.options import ResolvedTraining, TrainingOptions
from csrec_dist.training.telemetry import StageLog

MOST_PROBLEMS = 3
"""Damaged files that a message names."""


class ActiveRun(Run):
    """A run and the processes that work on it.

    Its `config` is resolved as soon as the dataset is there. `beside` names what the stage at work makes beside its old
    result, which it is to replace. `after_epoch` follows its trainings.
    """

    def __init__(self, config: Config, processes: distributed.Processes) -> None:
        super().__init__(Run.of(config).folder, config)
        self.processes = processes
        self._given = config
        self.restarts = Restarts(self)
        self.beside: tuple[str, ...] = ()
        self.after_epoch: AfterEpoch | None = None

    @property
    def runtime(self) -> "distributed.Runtime":
        """The processes with their groups and device, as the stages that compute need them; naming it imports torch."""
        assert isinstance(self.processes, distributed.Runtime)
        return self.processes

    def resolve(self) -> dict[str, Any]:
        """Choose what the config leaves to the size of the log, if its dataset is there, and return it, by key.

        Every rank calls this.
        """
        given = Run.of(self._given)
        values = self.processes.on_main(lambda: given.resolved.training.model_dump(mode="json"))
        self.config = self._given.model_copy(update={"training": TrainingOptions(**values)})
        before = self._given.training.model_dump(mode="json")
        return {key: value for key, value in values.items() if value != before[key]}

    @cached_property
    def dataset(self) -> Dataset:
        """The prepared dataset; UserError when it has too few shards or rows for the ranks."""
        dataset = Dataset(self.dataset_folder)
        with shared_errors():
            refuse_idle_ranks(dataset.num_shards, dataset.splits["train"].num_rows, self.processes.world_size)
        return dataset

    @cached_property
    def log_identity(self) -> dict[str, Any]:
        """Reader, size and checksum of the raw log, which is read once for it, and its dataset's fingerprint."""
        return {key: value for key, value in identify(self.config.dataset).items() if key != "name"}

    @cached_property
    def layout(self) -> "distributed.Layout":
        """All ranks, as they train the student."""
        ranks = self.runtime.world.ranks
        return self.runtime.layout([ranks], self.config.distributed.catalog_parallel)

    @cached_property
    def tables(self) -> "distributed.Group":
        """The ranks that read the item tables of trained models together, a slice each; perhaps this one alone.

        A catalog group does, and under an engine that keeps no table whole on a rank all do.
        """
        options = self.config.distributed
        if options.catalog_parallel > 1 or engines.keeps_tables_whole(options):
            return self.layout.catalog
        return self.runtime.world

    def path(self, name: str) -> Path:
        """Where something of the run is read and written now: what is made beside its old version lies in restart/."""
        is_beside = any(name == leaf or name.startswith(f"{leaf}/") for leaf in self.beside)
        return (self.restarts.folder if is_beside else self.folder) / name

    def member_folder(self, name: str) -> Path:
        """Where a trained member is stored."""
        return self.path(f"teachers/{name}")

    def log(self, stage: str, group: "distributed.Group | None" = None) -> StageLog:
        """The log of a stage; with a group, its leader writes the TensorBoard folder."""
        leads = self.processes.is_main if group is None else group.is_leader
        events = self.path(f"tensorboard/{stage}") if leads else None
        return StageLog(stage, events, show=self.processes.is_main, file=self._log_file)

    @cached_property
    def _log_file(self) -> Path | None:
        """The file of what this rank says, if there is one."""
        folder = self.config.distributed.log_dir
        if folder is None:
            return None
        make_folder(Path(folder))
        return Path(folder) / f"rank-{self.processes.rank:05}.log"


Inputs = dict[str, Any]


class TrainingFiles(Protocol):
    """A training as its files tell of it: see stages/fitting.py."""

    def is_ended(self, options: ResolvedTraining) -> bool:
        """Whether the model is trained to the end that these limits set."""

    def require_checkpoint(self) -> None:
        """UserError unless the checkpoint is there from which an ended training goes on."""


@dataclass(frozen=True)
class Stage:
    """A stage: the stages it needs, what decides its result (JSON values), its work, and what it leaves in the run.

    `check`, which every rank calls before anything is written, raises UserError for what the stage cannot read.
    `trainings` are those that end in the stage, with their folders under a root. Where only inputs called `free`
    differ, the stage is simply done again.
    """

    name: str
    needs: tuple[str, ...]
    inputs: Callable[[ActiveRun], Inputs]
    work: Callable[[ActiveRun, Inputs], dict[str, Any]]
    leaves: tuple[str, ...]
    check: Callable[[ActiveRun, Inputs], None] = lambda run, inputs: None
    trainings: Callable[[ActiveRun, Inputs, Path], list[TrainingFiles]] = lambda run, inputs, root: []
    free: str | None = None

    @property
    def all_leaves(self) -> tuple[str, ...]:
        """All that the stage writes into the run's folder, but for its record."""
        return (*self.leaves, f"checkpoints/{self.name}", f"tensorboard/{self.name}")


def check_dataset(run: ActiveRun) -> None:
    """UserError on every rank unless the dataset is the one that was prepared, and all its files are sound.

    The ranks compare the checksums of a share of the files each; a rank compares those that it reads besides.
    """

    def on_main() -> None:
        dataset = run.dataset
        if dataset.fingerprint != run.require("prepare").outputs["fingerprint"]:
            raise UserError(
                f"{dataset.folder} is not the dataset that stage prepare of {run.folder} made; re-run prepare."
            )

    run.runtime.on_main(on_main)
    runtime, dataset = run.runtime, run.dataset
    mine = dataset.file_names[runtime.rank :: runtime.world_size]  # which rank reads which file differs with the stage
    found = runtime.world.on_all(lambda: [problem for name in mine if (problem := _problem_of(dataset, name))])
    if damaged := [problem for part in found for problem in part]:
        raise SharedUserError(f"{' '.join(damaged[:MOST_PROBLEMS])} Prepare the dataset again.")


def _problem_of(dataset: Dataset, name: str) -> str | None:
    """What is wrong with a file; of one that cannot be read, too: the other ranks wait for the answer."""
    try:
        return dataset.problem(name)
    except UserError as error:
        return str(error)


def check_weights_of(run: ActiveRun, models: Mapping[str, str]) -> None:
    """UserError on every rank unless folders of the run hold the weights with these fingerprints."""

    def on_main() -> None:
        for name, expected in models.items():
            if weights_fingerprint(run.folder / name) != expected:
                raise UserError(
                    f"{run.folder / name} has other weights than the stage that trained it wrote; restart that stage."
                )

    run.runtime.on_main(on_main)


def check_labels(run: ActiveRun) -> None:
    """UserError on every rank where the labels are not those of the run's record: another run that lends them may have
    made them again."""
    index = run.folder / "labels" / INDEX_NAME

    def on_main() -> None:
        if index.exists() and sha256_file(index)[:16] != run.require("label").outputs["index"]:
            raise UserError(
                f"{index} is not what the run's record of its labels names: they were made again since, perhaps by a "
                "run whose labels it shares. Make them with --restart label."
            )

    run.runtime.on_main(on_main)
