"""A run that is being worked on: with its processes, and what several stages ask of it."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from csrec_dist.config import Config
from csrec_dist.data.batches import Batch, blank_batch, to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.order import owned_shards, refuse_idle_ranks
from csrec_dist.data.prepare import identify
from csrec_dist.distributed import Group, Runtime
from csrec_dist.distributed.catalog import in_step
from csrec_dist.distributed.layout import Layout
from csrec_dist.errors import UserError, shared_errors
from csrec_dist.evaluation import evaluate
from csrec_dist.files import fingerprint, sha256_file
from csrec_dist.models import SequentialModel
from csrec_dist.models.weight_files import weight_files
from csrec_dist.runs.restarts import Restarts
from csrec_dist.runs.run import Run
from csrec_dist.training.telemetry import StageLog

EVALUATION_ROWS = 256


class ActiveRun(Run):
    """A run and the processes that work on it.

    `beside` names what the stage at work makes beside its old result, which it is to replace.
    """

    def __init__(self, config: Config, runtime: Runtime) -> None:
        super().__init__(Run.of(config).folder, config)
        self.runtime = runtime
        self.restarts = Restarts(self)
        self.beside: tuple[str, ...] = ()

    @cached_property
    def dataset(self) -> Dataset:
        """The prepared dataset; UserError when it has too few shards or rows for the ranks."""
        dataset = Dataset(self.dataset_folder)
        with shared_errors():
            refuse_idle_ranks(dataset.num_shards, dataset.splits["train"].num_rows, self.runtime.world_size)
        return dataset

    @cached_property
    def log_identity(self) -> dict[str, Any]:
        """Reader, size and checksum of the raw log, which is read once for it, and its dataset's fingerprint."""
        return {key: value for key, value in identify(self.config.dataset).items() if key != "name"}

    @cached_property
    def layout(self) -> Layout:
        """All ranks, as they train the student."""
        ranks = self.runtime.world.ranks
        return self.runtime.layout([ranks], self.config.distributed.catalog_parallel)

    def path(self, name: str) -> Path:
        """Where something of the run is read and written now: what is made beside its old version lies in restart/."""
        is_beside = any(name == leaf or name.startswith(f"{leaf}/") for leaf in self.beside)
        return (self.restarts.folder if is_beside else self.folder) / name

    def member_folder(self, name: str) -> Path:
        """Where a trained member is kept."""
        return self.path(f"teachers/{name}")

    def log(self, stage: str, group: Group | None = None) -> StageLog:
        """The log of a stage; with a group, its leader writes the TensorBoard folder."""
        leads = self.runtime.is_main if group is None else group.is_leader
        return StageLog(stage, self.path(f"tensorboard/{stage}") if leads else None, show=self.runtime.is_main)


def weights_fingerprint(folder: Path) -> str:
    """16 digits that name a trained model's weights; UserError when there are none."""
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder} has no trained model: model.safetensors is missing.")
    sums = [sha256_file(path) for path in files]
    return sums[0][:16] if len(sums) == 1 else fingerprint(sums)


def check_dataset(run: ActiveRun) -> None:
    """UserError on every rank unless the dataset is the one that was prepared, and all its files are there."""

    def on_main() -> None:
        dataset = run.dataset
        if dataset.fingerprint != run.require("prepare").outputs["fingerprint"]:
            raise UserError(
                f"{dataset.folder} is not the dataset that stage prepare of {run.folder} made; re-run prepare."
            )
        files = [dataset.shard_file(split, shard) for split in dataset.splits for shard in range(dataset.num_shards)]
        if missing := [file.name for file in files if not file.exists()]:
            raise UserError(f"{dataset.folder} is incomplete: {', '.join(missing)} missing. Prepare it again.")

    run.runtime.on_main(on_main)


def check_weights_of(run: ActiveRun, models: Mapping[str, str]) -> None:
    """UserError on every rank unless folders of the run hold the weights with these fingerprints."""

    def on_main() -> None:
        for name, expected in models.items():
            if weights_fingerprint(run.folder / name) != expected:
                raise UserError(
                    f"{run.folder / name} has other weights than the stage that trained it wrote; restart that stage."
                )

    run.runtime.on_main(on_main)


def evaluate_model(run: ActiveRun, model: SequentialModel, split: str, layout: Layout) -> dict[str, float]:
    """Metrics of a model on all rows of a split, each rank of the layout reading its own shards."""
    shards = owned_shards(run.dataset.num_shards, layout.group.rank, layout.group.size)
    return evaluate(
        model,
        evaluation_batches(run, split, shards, layout),
        top_n=run.config.evaluation.cut_offs,
        exclude_seen=run.config.evaluation.exclude_seen,
        reduce=partial(layout.group.sum_after_work, name="the sums of an evaluation"),
    )


def evaluation_batches(run: ActiveRun, split: str, shards: Sequence[int], layout: Layout) -> Iterator[Batch]:
    """The rows of some shards on the device; where ranks share an item table, equally many batches on each of them."""
    device, window = run.runtime.device, run.dataset.window
    rows = run.dataset.stream(split, batch_size=EVALUATION_ROWS, shards=shards)
    batches = run.runtime.watch.reading(map(to_batch, rows))
    batches = in_step(batches, layout.catalog_slice(run.dataset.num_items), device, lambda: blank_batch(window))
    return (batch.to(device) for batch in batches)
