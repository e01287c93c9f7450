"""Stage label: the soft-label cache, written by all ranks together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csrec_dist import models
from csrec_dist.distributed import Group
from csrec_dist.distributed.layout import LabelColumn, LabelRanks, label_columns
from csrec_dist.files import sha256_file
from csrec_dist.labels import LabelMember, Reading, write_labels
from csrec_dist.labels.format import INDEX_NAME
from csrec_dist.labels.options import LabelOptions
from csrec_dist.labels.weights import fit_weights, validation_states
from csrec_dist.models import SequentialModel
from csrec_dist.models.pretrained import read_description
from csrec_dist.process_state import matmul_precision
from csrec_dist.runs.inputs import weights_fingerprint
from csrec_dist.runs.stages.active import ActiveRun, check_dataset, check_weights_of
from csrec_dist.training.telemetry import StageLog


def check(run: ActiveRun, inputs: dict[str, Any]) -> None:
    """UserError on every rank when the dataset or a member is not what an earlier stage left."""
    check_dataset(run)
    check_weights_of(run, {f"teachers/{name}": weights for name, weights in inputs["members"].items()})


def work(run: ActiveRun, inputs: dict[str, Any]) -> dict[str, Any]:
    """Write the soft-label cache, all ranks together."""
    folder = run.path("labels")
    label_into(run, folder, run.config.labelling_names, "label", run.config.labels)
    return run.runtime.on_main(lambda: {"index": sha256_file(folder / INDEX_NAME)[:16]})


def label_into(run: ActiveRun, folder: Path, names: list[str], stage: str, options: LabelOptions) -> None:
    """Write the labels that the members called `names` give all training examples, all ranks together."""
    runtime, training = run.runtime, run.config.training
    tables = tables_of(run, options)
    columns = label_columns(len(names), runtime.world_size, tables.size)
    group = runtime.join_group([column.ranks for column in columns])
    column = next(column for column in columns if runtime.rank in column.ranks)
    # Labels are stored, and read by every student: they are exact whatever trainings and evaluations may round.
    with run.log(stage) as log, matmul_precision("highest"):
        write_labels(
            folder,
            run.dataset,
            load_members(run, names, column, group, tables),
            [label_member(run, name) for name in names],
            LabelRanks(column, group, runtime.world),
            options=options.model_copy(update={"weights": member_weights(run, names, options, log)}),
            reading=Reading(training.temperature, training.kl),
            device=runtime.device,
            progress=log.progress,
        )


def member_weights(run: ActiveRun, names: list[str], options: LabelOptions, log: StageLog) -> Sequence[float] | None:
    """The members' weights as given, or fitted on validation by rank 0."""
    if options.weights != "fitted":
        return options.weights

    def fitted() -> list[float]:
        members = [models.load(run.member_folder(name)) for name in names]
        states, targets = validation_states(members, run.dataset, run.runtime.device)
        fit = fit_weights(states, [member.item_table for member in members], targets)
        log.say(f"weights {list(fit.weights)}: validation loss {fit.before:.4f} -> {fit.after:.4f}")
        return list(fit.weights)

    return run.runtime.on_main(fitted)


def label_member(run: ActiveRun, name: str) -> LabelMember:
    """Name, width and weights of a member."""
    folder = run.member_folder(name)
    description = read_description(folder)
    width = description.parse_config(models.config_class(description.model_type), folder).width
    return LabelMember(name=name, width=width, fingerprint=weights_fingerprint(folder))


def tables_of(run: ActiveRun, options: LabelOptions) -> Group:
    """The ranks that share the members' tables: fewer than in `ActiveRun.tables` where labels may need whole rows."""
    is_of_slices = options.form != "auto" and options.weights != "fitted"
    return run.tables if is_of_slices else run.layout.catalog


def load_members(
    run: ActiveRun, names: list[str], column: LabelColumn, group: Group, tables: Group
) -> dict[int, SequentialModel]:
    """The members this rank labels with, by their position among `names`, their tables split over a group."""
    members = column.members_of(group.rank, len(names))
    return {k: models.load(run.member_folder(names[k]), tables).to(run.runtime.device) for k in members}
