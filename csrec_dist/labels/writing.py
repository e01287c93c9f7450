"""Labelling by all ranks together: which file is whose, what is already there, and the index last."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from csrec_dist.data.stored import Dataset
from csrec_dist.distributed.groups import Group
from csrec_dist.distributed.mesh import LabelColumn
from csrec_dist.errors import UserError
from csrec_dist.files import sha256_file
from csrec_dist.labels.combining import Combine, combining_problem
from csrec_dist.labels.index import (
    FORMAT_VERSION,
    INDEX_NAME,
    Form,
    ItemShard,
    LabelIndex,
    LabelMember,
    LabelShard,
    LabelSource,
    read_index,
)
from csrec_dist.labels.labeller import Labeller
from csrec_dist.labels.shards import read_header, write_rows, write_tensors
from csrec_dist.models import SequentialModel

ITEMS_PER_FILE = 65_536

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ShardPlan:
    """A file to be: its kind and place among it, its range, and all that its header must say."""

    kind: Literal["labels", "items"]
    number: int
    file: str
    first: int
    count: int
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]

    def is_whole(self, path: Path) -> bool:
        """Whether `path` is a file of full size with exactly this header."""
        try:
            header = read_header(path)
        except (FileNotFoundError, UserError):
            return False
        whole = path.stat().st_size == header.file_bytes
        return whole and header.shapes() == self.shapes and header.metadata == self.metadata


def label_source(
    dataset: Dataset,
    members: Sequence[LabelMember],
    form: Form,
    combine: Combine = "logit_mean",
    weights: Sequence[float] | None = None,
) -> LabelSource:
    """What the labels of these members for the dataset's train split are made of.

    Raises UserError when the members cannot be combined like this.
    """
    if problem := combining_problem(combine, weights, len(members), form):
        raise UserError(f"labels: {problem}")
    return LabelSource(
        form=form,
        combine=combine,
        weights=None if weights is None else tuple(weights),
        num_examples=dataset.splits["train"].num_examples,
        num_items=dataset.num_items,
        members=tuple(members),
        dataset_fingerprint=dataset.fingerprint,
        id_map_fingerprint=sha256_file(dataset.folder / "items.parquet"),
    )


def write_labels(
    folder: Path | str,
    dataset: Dataset,
    models: Mapping[int, SequentialModel],
    members: Sequence[LabelMember],
    column: LabelColumn,
    group: Group,
    world: Group,
    *,
    form: Form,
    device: torch.device,
    combine: Combine = "logit_mean",
    weights: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> LabelIndex:
    """Label the train split into `folder`; every rank of `world` calls this, and every rank gets the index.

    There is one shard for each lane. A rank writes the shards of the lanes it owns, after its
    column has computed them together; the files' bytes do not depend on the number of ranks. On a CPU
    labelling therefore runs on one thread, whatever the process is set to: the order of a sum may change with the
    number of threads.

    A file that is already there with the right header and size is kept, so that labelling goes on where
    it was cut off; where an index of the same source stands too, files are kept by their checksum. Whole labels
    are left as they are. Label files of another plan are removed.

    Args:
        models: by member index, those that `column.members_of(group.rank, len(members))` gives this rank;
            they are put into eval mode on `device`.
        combine: how the members become labels; `weights`: the members', for weighted and optionally prob_mean.
        group: this rank's column; `world`: all ranks.
        progress: called on each rank with (examples done, examples to do) of its column.

    Raises:
        UserError: the folder holds the labels of something else, a model does not fit the dataset, or the members
            cannot be combined like this.
    """
    folder, source = Path(folder), label_source(dataset, members, form, combine, weights)
    labeller = Labeller(dataset, models, source.widths, column, group, device, source.combine, source.weights)
    has_bias = labeller.has_bias()
    plans = shard_plans(source, dataset, has_bias)
    known, is_whole = _open_folder(folder, source, plans, world)
    if known and is_whole:
        return known
    checksums = {entry.file: entry.sha256 for entry in known.files} if known else {}
    pending = _pending(folder, plans, labeller, checksums)
    labeller.advance = _counter(progress, sum(plan.count for plan in pending if plan.kind == "labels"))
    with _one_thread(device):
        _write_pending(folder, pending, labeller, form, has_bias)
    return _write_index(folder, source, plans, has_bias, world)


def shard_plans(source: LabelSource, dataset: Dataset, has_bias: bool) -> list[ShardPlan]:
    """All files of the cache but the index: labels by lane, then item tables by rows."""
    split = dataset.splits["train"]
    lanes = zip(split.first_examples, split.lane_examples, strict=False)
    name, width = ("states", sum(source.widths)) if source.form == "factored" else ("logits", source.num_items)
    plans = [
        _plan(source, "labels", i, dataset.num_lanes, first, count, {name: (count, width)})
        for i, (first, count) in enumerate(lanes)
    ]
    num_files = -(-source.num_items // ITEMS_PER_FILE) if source.form == "factored" else 0
    for i in range(num_files):
        count = min(ITEMS_PER_FILE, source.num_items - i * ITEMS_PER_FILE)
        shapes: dict[str, tuple[int, ...]] = {"item_weight": (count, width)}
        if has_bias:
            shapes["item_bias"] = source.bias_shape(count)
        plans.append(_plan(source, "items", i, num_files, i * ITEMS_PER_FILE + 1, count, shapes))
    return plans


def _plan(
    source: LabelSource,
    kind: Literal["labels", "items"],
    number: int,
    num_files: int,
    first: int,
    count: int,
    shapes: dict[str, tuple[int, ...]],
) -> ShardPlan:
    metadata = {
        "format": f"csrec_dist.labels.{FORMAT_VERSION}.{kind}",
        "source": source.fingerprint,
        "dataset": source.dataset_fingerprint,
        "first": str(first),
    }
    file = f"{kind}-{number:05d}-of-{num_files:05d}.safetensors"
    return ShardPlan(kind, number, file, first, count, shapes, metadata)


def _open_folder(
    folder: Path, source: LabelSource, plans: list[ShardPlan], world: Group
) -> tuple[LabelIndex | None, bool]:
    """The index that is already there and whether its files are too, as the leader finds it, on every rank."""
    found: dict[str, Any] = {}
    if world.is_leader:
        try:
            found = _inspect_folder(folder, source, plans)
        except UserError as error:
            found = {"error": str(error)}
    found = world.broadcast_object(found)
    if "error" in found:
        raise UserError(found["error"])
    index = LabelIndex.model_validate(found["index"]) if found["index"] else None
    return index, found["is_whole"]


def _inspect_folder(folder: Path, source: LabelSource, plans: list[ShardPlan]) -> dict[str, Any]:
    index = read_index(folder) if (folder / INDEX_NAME).exists() else None
    if index and (differences := index.differences(source)):
        raise UserError(
            f"{folder} holds the soft labels of something else: {'; '.join(differences)}. "
            "Label into another folder, or remove this one."
        )
    planned = {plan.file for plan in plans}
    for pattern in ("labels-*.safetensors", "items-*.safetensors", ".labels-*.tmp", ".items-*.tmp"):
        for path in folder.glob(pattern):
            if path.name not in planned:
                path.unlink()
    is_whole = index is not None and all(plan.is_whole(folder / plan.file) for plan in plans)
    return {"index": index.model_dump(mode="json") if index else None, "is_whole": is_whole}


def _pending(folder: Path, plans: list[ShardPlan], labeller: Labeller, checksums: dict[str, str]) -> list[ShardPlan]:
    """The column's files that are not there yet, the same on all its ranks."""

    def is_kept(plan: ShardPlan) -> bool:
        path = folder / plan.file
        return plan.is_whole(path) and checksums.get(plan.file) in (None, sha256_file(path))

    own = [plan for plan in plans if _owner(plan, labeller.column) == labeller.group.rank]
    missing = labeller.group.gather_objects([plan.file for plan in own if not is_kept(plan)])
    files = {file for part in missing for file in part}
    return [plan for plan in plans if plan.file in files]


def _write_pending(folder: Path, pending: list[ShardPlan], labeller: Labeller, form: Form, has_bias: bool) -> None:
    write = _write_factored if form == "factored" else _write_dense
    write(folder, [plan for plan in pending if plan.kind == "labels"], labeller)
    for plan in pending:
        if plan.kind == "items":
            tensors = labeller.item_rows(plan.first - 1, plan.first - 1 + plan.count, has_bias)
            if _owner(plan, labeller.column) == labeller.group.rank:
                write_tensors(folder / plan.file, tensors, plan.metadata)


def _write_factored(folder: Path, plans: list[ShardPlan], labeller: Labeller) -> None:
    for plan in plans:
        is_own = _owner(plan, labeller.column) == labeller.group.rank
        with _open_rows(folder, plan if is_own else None) as append:
            for rows in labeller.factored_rows(plan.number):
                append(rows)


def _write_dense(folder: Path, plans: list[ShardPlan], labeller: Labeller) -> None:
    """Rounds of lanes, one for each rank of the column; a rank that is out of lanes still takes part."""
    owners = range(labeller.group.size)
    owned = [[plan for plan in plans if _owner(plan, labeller.column) == rank] for rank in owners]
    for turn in zip_longest(*owned):
        lanes = [plan.number if plan else None for plan in turn]
        with _open_rows(folder, turn[labeller.group.rank]) as append:
            for rows in labeller.dense_rows(lanes):
                append(rows)


def _open_rows(folder: Path, plan: ShardPlan | None) -> AbstractContextManager[Callable[[Tensor], None]]:
    """The file's appending function, or for None one that drops the rows: another rank writes them."""
    if plan is None:
        return nullcontext(lambda rows: None)
    ((name, (num_rows, width)),) = plan.shapes.items()
    return write_rows(folder / plan.file, name, (num_rows, width), plan.metadata)


def _write_index(folder: Path, source: LabelSource, plans: list[ShardPlan], has_bias: bool, world: Group) -> LabelIndex:
    """Gather the checksums, which also waits for every file, then write the index on the leader."""
    own = [plan.file for plan in plans if plan.number % world.size == world.rank]
    sums = {file: ((folder / file).stat().st_size, sha256_file(folder / file)) for file in own}
    stored = {file: entry for part in world.gather_objects(sums) for file, entry in part.items()}
    shards: dict[str, list[Any]] = {"labels": [], "items": []}
    for plan in plans:
        size, sha256 = stored[plan.file]
        common = {"file": plan.file, "bytes": size, "sha256": sha256}
        if plan.kind == "labels":
            shards["labels"].append(LabelShard(first_example=plan.first, num_examples=plan.count, **common))
        else:
            shards["items"].append(ItemShard(first_item=plan.first, num_items=plan.count, **common))
    index = LabelIndex(
        **source.model_dump(), has_bias=has_bias, shards=tuple(shards["labels"]), item_shards=tuple(shards["items"])
    )
    if world.is_leader:
        index.write(folder)
    world.barrier()
    return index


def _owner(plan: ShardPlan, column: LabelColumn) -> int | None:
    """Position in the column of the rank that writes the file, or None where it is another column's."""
    rank = plan.number % column.world_size
    return column.ranks.index(rank) if rank in column.ranks else None


def _counter(progress: Progress | None, total: int) -> Callable[[int], None]:
    done = 0

    def advance(num_examples: int) -> None:
        nonlocal done
        done += num_examples
        if progress:
            progress(done, total)

    return advance


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """One intra-op thread while labelling on a CPU."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
