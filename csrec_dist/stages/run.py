"""One run: its configuration, folder and processes, and what several stages ask of it."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from csrec_dist.config import Config, LoopOptions
from csrec_dist.data.lanes import owned_lanes, refuse_idle_ranks
from csrec_dist.data.stored import Dataset
from csrec_dist.data.stream import Batch, blank_batch, lane_batches
from csrec_dist.distributed import Group, Runtime
from csrec_dist.distributed.catalog import in_step
from csrec_dist.distributed.layout import Layout
from csrec_dist.errors import UserError, shared_errors
from csrec_dist.evaluation import evaluate
from csrec_dist.files import fingerprint, sha256_file
from csrec_dist.models import SequentialModel
from csrec_dist.models.weight_files import weight_files
from csrec_dist.stagebook import StageBook
from csrec_dist.telemetry import StageLog

EVALUATION_ROWS = 256


class Run:
    """One run: its configuration, its folder, its processes."""

    def __init__(self, config: Config, runtime: Runtime) -> None:
        self.config = config
        self.runtime = runtime
        self.folder = config.folder
        self.book = StageBook(self.folder)

    @cached_property
    def dataset(self) -> Dataset:
        """The prepared dataset; UserError when it does not suit the config."""
        dataset = Dataset(self.config.dataset_folder)
        with shared_errors():
            refuse_idle_ranks(dataset.num_lanes, dataset.splits["train"].num_rows, self.runtime.world_size)
        return dataset

    @cached_property
    def layout(self) -> Layout:
        """All ranks, as they train the student."""
        ranks = self.runtime.world.ranks
        return self.runtime.layout([ranks], self.config.distributed.catalog_parallel)

    def member_folder(self, name: str) -> Path:
        """Where a trained member is kept."""
        return self.folder / "teachers" / name

    def log(self, stage: str, group: Group | None = None) -> StageLog:
        """The log of a stage; with a group, its leader writes the TensorBoard folder."""
        leads = self.runtime.is_main if group is None else group.is_leader
        return StageLog(stage, self.folder / "tensorboard" / stage if leads else None, show=self.runtime.is_main)


def weights_fingerprint(folder: Path) -> str:
    """16 digits that name a trained model's weights; UserError when there are none."""
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder} holds no trained model: model.safetensors is missing.")
    sums = [sha256_file(path) for path in files]
    return sums[0][:16] if len(sums) == 1 else fingerprint(sums)


def cut_offs(run: Run) -> list[int]:
    """The n of all metrics: those asked for, and 10, which early stopping and the tables look at."""
    return sorted({*run.config.evaluation.top_n, 10})


def evaluate_model(run: Run, model: SequentialModel, split: str, layout: Layout) -> dict[str, float]:
    """Metrics of a model on all rows of a split, each rank of the layout reading its own lanes."""
    lanes = owned_lanes(run.dataset.num_lanes, layout.group.rank, layout.group.size)
    return evaluate(
        model,
        evaluation_batches(run, split, lanes, layout),
        top_n=cut_offs(run),
        exclude_seen=run.config.evaluation.exclude_seen,
        reduce=partial(layout.group.sum_after_work, name="the sums of an evaluation"),
    )


def evaluation_batches(run: Run, split: str, lanes: Sequence[int], layout: Layout) -> Iterator[Batch]:
    """The rows of some lanes on the device; where ranks share an item table, equally many batches on each of them."""
    device, window = run.runtime.device, run.dataset.window
    batches: Iterable[Batch] = lane_batches(run.dataset, split, lanes, EVALUATION_ROWS)
    batches = run.runtime.watch.reading(batches)
    if catalog := layout.shard(run.dataset.num_items):
        batches = in_step(batches, catalog, device, lambda: blank_batch(window))
    return (batch.to(device) for batch in batches)


def loop_settings(config: Config) -> dict[str, Any]:
    """The part of `training` that decides a model trained on one-hot labels."""
    return config.training.model_dump(mode="json", include=set(LoopOptions.model_fields) - {"log_steps"})


def selection(run: Run) -> dict[str, Any]:
    """What early stopping looks at."""
    return {"exclude_seen": run.config.evaluation.exclude_seen}
