"""Stage label: the soft-label cache, written by all ranks together."""

from typing import Any

from csrec_dist import models
from csrec_dist.distributed import Group
from csrec_dist.distributed.mesh import LabelColumn, label_columns
from csrec_dist.files import sha256_file
from csrec_dist.labels import LabelMember, write_labels
from csrec_dist.models import SequentialModel
from csrec_dist.stages.run import Run


def inputs(run: Run) -> dict[str, Any]:
    """Dataset, members' weights and the form of the labels."""
    return {
        "dataset": run.book.require("prepare").outputs["fingerprint"],
        **run.book.require("teach").outputs,
        "labels": run.config.labels.model_dump(mode="json"),
    }


def work(run: Run, inputs: dict[str, Any]) -> dict[str, Any]:
    """Write the soft-label cache, all ranks together."""
    runtime, names = run.runtime, run.member_names
    columns = label_columns(len(names), runtime.world_size)
    group = runtime.join_group([column.ranks for column in columns])
    column = next(column for column in columns if runtime.rank in column.ranks)
    with run.log("label") as log:
        write_labels(
            run.folder / "labels",
            run.dataset,
            load_members(run, column, group),
            label_members(run, inputs["members"]),
            column,
            group,
            runtime.world,
            form=run.config.labels.form,
            device=runtime.device,
            progress=log.progress,
        )
    return runtime.on_main(lambda: {"index": sha256_file(run.folder / "labels" / "label_cache.index.json")[:16]})


def label_members(run: Run, weights: dict[str, str]) -> list[LabelMember]:
    """Name, width and weights of the members, in order."""
    folders = {name: run.member_folder(name) for name in run.member_names}
    return [
        LabelMember(name=name, width=models.load(folder).config.width, fingerprint=weights[name])
        for name, folder in folders.items()
    ]


def load_members(run: Run, column: LabelColumn, group: Group) -> dict[int, SequentialModel]:
    """The members this rank labels with, by their position in the strategy."""
    names = run.member_names
    held = column.members_of(group.rank, len(names))
    return {k: models.load(run.member_folder(names[k])).to(run.runtime.device) for k in held}
