"""Stages distill and baseline: the student on one-hot and soft labels, and on one-hot labels alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from csrec_dist.data.order import owned_shards
from csrec_dist.errors import SharedUserError, UserError, shared_errors
from csrec_dist.labels import LabelCache, LabelReader
from csrec_dist.labels.node_copy import copy_labels, node_folder, remove_copy
from csrec_dist.labels.popularity import PopularityLabels
from csrec_dist.runs.stages.active import ActiveRun, check_dataset
from csrec_dist.runs.stages.fitting import Fit, Training, fit
from csrec_dist.runs.stages.inputs import weights_fingerprint
from csrec_dist.training import LossFunction, one_hot, student_loss


@contextmanager
def copied_labels(run: ActiveRun, folder: Path, disk: str) -> Iterator[Path]:
    """The folder on this node's disk that has the labels of `folder`; removed at the end, but kept after an error.

    Raises:
        UserError: labels are damaged, or a node's disk does not take them; on every rank.
    """
    runtime = run.runtime
    nodes = runtime.world.gather_objects(runtime.node)
    ranks = [rank for rank, node in enumerate(nodes) if node == runtime.node]
    copy, is_first = node_folder(folder, disk, run.config.name), runtime.rank == ranks[0]
    found = runtime.world.gather_objects(_stage(run, folder, copy, ranks) if is_first else {})
    for part in found:
        if problem := part.get("error"):
            raise SharedUserError(problem)
    if problems := sorted({problem for part in found for problem in part.get("problems", [])}):
        raise SharedUserError(
            f"The soft labels are damaged: {'; '.join(problems)}. Write them again with --restart label."
        )
    yield copy
    if is_first:
        remove_copy(copy)


def _stage(run: ActiveRun, folder: Path, copy: Path, ranks: list[int]) -> dict[str, Any]:
    """Copy what the ranks of this node read: what is wrong with the labels, or the user's mistake."""
    runtime, num_shards = run.runtime, run.dataset.num_shards
    shards = [shard for rank in ranks for shard in owned_shards(num_shards, rank, runtime.world_size)]
    with run.log("distill") as log:

        def tell(copied: int, total: int) -> None:
            runtime.watch.at("distill")
            log.progress(copied, total)

        try:
            with runtime.watch.doing("copying labels to the node's disk"):
                return {"problems": copy_labels(folder, copy, shards, tell)}
        except UserError as error:
            return {"error": f"{error} (node of rank {runtime.rank})"}


def work(run: ActiveRun, inputs: dict[str, Any]) -> dict[str, Any]:
    """Train the student: on soft labels, or for method base on one-hot labels."""
    if run.config.method == "base":
        return train_student(run, inputs, "distill", "student", one_hot, None)
    loss_function = student_loss(run.config.training)
    if not run.config.num_members:
        return train_student(run, inputs, "distill", "student", loss_function, PopularityLabels(run.dataset))
    with opened_labels(run) as labels:
        return train_student(run, inputs, "distill", "student", loss_function, labels)


@contextmanager
def opened_labels(run: ActiveRun) -> Iterator[LabelReader]:
    """The run's label cache, on the node's own disk if it is asked for; a copy there ends with the block.

    After an error the copy is left for the next start.
    """
    folder, disk = run.folder / "labels", run.config.labels.copy_to
    if disk is None:
        yield LabelCache(folder, run.dataset, run.layout.catalog)
        return
    with copied_labels(run, folder, disk) as copy:
        yield LabelCache(copy, run.dataset, run.layout.catalog)


def check(run: ActiveRun, inputs: dict[str, Any]) -> None:
    """UserError on every rank when the dataset or the labels are damaged; copy labels are checked in copying."""
    check_dataset(run)
    if run.config.num_members and run.config.labels.copy_to is None:
        check_labels(run)


def check_baseline(run: ActiveRun, inputs: dict[str, Any]) -> None:
    """UserError on every rank when the dataset is damaged."""
    check_dataset(run)


def check_labels(run: ActiveRun) -> None:
    """Hold the shards to their checksums, each rank those it will read; UserError on every rank if any differs."""
    world = run.runtime.world
    with shared_errors():
        labels = LabelCache(run.folder / "labels", run.dataset, run.layout.catalog)
    found = world.gather_objects(labels.check_shards(owned_shards(run.dataset.num_shards, world.rank, world.size)))
    problems = [problem for part in found for problem in part]
    if problems:
        raise SharedUserError(
            f"The soft labels are damaged: {'; '.join(problems)}. Write them again with --restart label."
        )


def baseline_work(run: ActiveRun, inputs: dict[str, Any]) -> dict[str, Any]:
    """Train the student from the same seed on one-hot labels alone."""
    return train_student(run, inputs, "baseline", "base", one_hot, None)


def trainings(run: ActiveRun, inputs: dict[str, Any], root: Path) -> list[Training]:
    """The student's, under `root`."""
    return [Training(root / "student", root / "checkpoints/distill", inputs)]


def baseline_trainings(run: ActiveRun, inputs: dict[str, Any], root: Path) -> list[Training]:
    """The baseline's, under `root`."""
    return [Training(root / "base", root / "checkpoints/baseline", inputs)]


def train_student(
    run: ActiveRun,
    inputs: dict[str, Any],
    stage: str,
    name: str,
    loss_function: LossFunction,
    labels: LabelReader | None,
) -> dict[str, Any]:
    """Train the student on all ranks into the run's folder `name`."""
    training = Training(run.path(name), run.path(f"checkpoints/{stage}"), inputs)
    folder = training.folder
    if not run.runtime.on_main(lambda: training.is_ended(run.config.training)):
        one_hot_weight = 1.0 if labels is None else 1 - run.config.training.beta
        task = Fit(
            stage,
            run.config.model,
            run.config.seed,
            loss_function,
            folder,
            inputs,
            labels,
            one_hot_weight=one_hot_weight,
        )
        with run.log(stage) as log:
            fit(run, task, run.layout, log)
    return {"weights": run.runtime.on_main(lambda: weights_fingerprint(folder))}
