"""Stages distill and baseline: the student on one-hot and soft labels, and on one-hot labels alone."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from csrec_dist.data.order import owned_shards
from csrec_dist.errors import SharedUserError, StorageError, UserError, shared_errors
from csrec_dist.labels import LabelCache, LabelReader
from csrec_dist.labels.node_copy import copy_labels, make_private, node_folder, remove_empty
from csrec_dist.labels.popularity import PopularityLabels
from csrec_dist.lock import FolderLock
from csrec_dist.models.weight_files import StoredWeights
from csrec_dist.runs.inputs import weights_fingerprint
from csrec_dist.runs.stages.active import ActiveRun, check_dataset, check_labels
from csrec_dist.runs.stages.fitting import Fit, Training, fit, origin_rows
from csrec_dist.runs.stages.healthy import check_student
from csrec_dist.training import LossFunction, one_hot, student_loss
from csrec_dist.writers import remove_leftovers


def check(run: ActiveRun, inputs: dict[str, Any]) -> None:
    """UserError on every rank when the dataset, the labels or what the student starts from cannot be used.

    Labels that are copied are checked then.
    """
    check_dataset(run)
    _check_origin(run)
    if run.config.num_members:
        check_labels(run)
    if run.config.num_members and run.config.labels.copy_to is None:
        world = run.runtime.world
        with shared_errors():
            labels = LabelCache(run.folder / "labels", run.dataset, run.layout.catalog)
        shards = owned_shards(run.dataset.num_shards, world.rank, world.size)
        refuse_damaged(world.on_all(lambda: labels.check_shards(shards)))


def _check_origin(run: ActiveRun) -> None:
    """UserError on every rank when the student cannot start from what `training.init_from` names."""

    def on_main() -> None:
        if run.config.training.init_from is not None:
            origin, _ = origin_rows(run, run.config.model, run.config.training.init_from)
            StoredWeights(origin.folder)  # whole and sound

    run.runtime.on_main(on_main)


def refuse_damaged(problems: list[list[str]]) -> None:
    """UserError for the damages that ranks, or the nodes' first ranks, found in the labels."""
    listed = dict.fromkeys(problem for part in problems for problem in part)
    if listed:
        raise SharedUserError(
            f"The soft labels are damaged: {'; '.join(listed)}. Write them again with --restart label."
        )


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
    """The run's label cache, from the node's own disk if `labels.copy_to` names one; a copy there ends with the block.

    After an error the copy is left for the next start.

    Raises:
        UserError: labels are damaged, or a node's disk does not take them; on every rank.
    """
    folder, disk, runtime = run.folder / "labels", run.config.labels.copy_to, run.runtime
    if disk is None:
        yield LabelCache(folder, run.dataset, run.layout.catalog)
        return
    nodes = runtime.world.gather_objects(runtime.node)
    ranks = [rank for rank, node in enumerate(nodes) if node == runtime.node]
    copy, is_first = node_folder(folder, disk, run.config.name), runtime.rank == ranks[0]
    lock = FolderLock(copy, "The copy of the labels", beside=True)
    with lock.released_when_ranks_are_done(runtime.world_size):
        refuse_damaged(runtime.world.on_all(lambda: _copy_for(run, folder, copy, ranks, lock) if is_first else []))
        yield LabelCache(copy, run.dataset, run.layout.catalog)
        if is_first:
            shutil.rmtree(copy, ignore_errors=True)
    if is_first:
        remove_empty(copy)


def _copy_for(run: ActiveRun, folder: Path, copy: Path, ranks: list[int], lock: FolderLock) -> list[str]:
    """Copy what these ranks of the node read; what is damaged of it. Its errors name the node."""
    runtime, num_shards = run.runtime, run.dataset.num_shards
    shards = [shard for rank in ranks for shard in owned_shards(num_shards, rank, runtime.world_size)]
    with run.log("distill") as log:

        def tell(copied: int, total: int) -> None:
            runtime.watch.at("distill")
            log.progress(copied, total)

        try:
            make_private(copy.parents[1])
            lock.acquire()
            remove_leftovers(copy, inside=True)
            with runtime.watch.doing("copying labels to the node's disk"):
                return copy_labels(folder, copy, shards, tell)
        except (UserError, StorageError) as error:
            raise type(error)(f"{error} (node of rank {runtime.rank})") from None


def trainings(run: ActiveRun, inputs: dict[str, Any], root: Path) -> list[Training]:
    """The student's, under `root`."""
    return [Training(root / "student", root / "checkpoints/distill", inputs)]


def baseline_check(run: ActiveRun, inputs: dict[str, Any]) -> None:
    """UserError on every rank when the dataset is damaged, or the student cannot start from the model it is given."""
    check_dataset(run)
    _check_origin(run)


def baseline_work(run: ActiveRun, inputs: dict[str, Any]) -> dict[str, Any]:
    """Train the student from the same seed on one-hot labels alone."""
    return train_student(run, inputs, "baseline", "base", one_hot, None)


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
    if not run.runtime.on_main(lambda: training.is_ended(run.training)):
        task = Fit(
            stage,
            run.config.model,
            run.config.seed,
            loss_function,
            training.folder,
            inputs,
            labels,
            one_hot_weight=1.0 if labels is None else 1 - run.config.training.beta,
            init_from=run.config.training.init_from,
        )
        with run.log(stage) as log:
            fit(run, task, run.layout, log)
    with run.log(stage) as log:
        warnings = check_student(run, name, stage, log.say, run.config.labelling_names if labels is not None else ())
    weights = run.runtime.on_main(lambda: weights_fingerprint(training.folder))
    return {"weights": weights, **({"warnings": warnings} if warnings else {})}
