"""Labelling by all ranks together: which file is whose, what is already there, number types, and the index last."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.distributed.groups import Group
from csrec_dist.distributed.layout import LabelColumn
from csrec_dist.errors import UserError
from csrec_dist.files import sha256_file
from csrec_dist.labels.choose import decided
from csrec_dist.labels.format import (
    INDEX_NAME,
    DType,
    Form,
    ItemShard,
    LabelIndex,
    LabelMember,
    LabelShard,
    LabelSource,
    Measured,
    read_index,
)
from csrec_dist.labels.labeller import Labeller
from csrec_dist.labels.options import LabelOptions, combining_problem
from csrec_dist.labels.shards import ShardPlan, owner, shard_plans, write_rows, write_tensors
from csrec_dist.labels.top_k import TopKRows, find_nothing, item_blocks, log_sums, top_k_rows
from csrec_dist.models import SequentialModel


def stored_states(states: Tensor, members: Sequence[LabelMember], dtype: DType) -> Tensor:
    """States [n, D] of the members side by side in the type they are kept in; UserError for what does not fit it."""
    found = states.to(getattr(torch, dtype))
    if not bool(found.isfinite().all()):
        for member, part in zip(members, states.split([member.width for member in members], 1), strict=True):
            _check(part, f"member {member.name} gives states", dtype)
    return found


def stored_logits(logits: Tensor, members: Sequence[LabelMember], dtype: DType) -> Tensor:
    """Logits of the members together in the type they are kept in; UserError for what does not fit it."""
    found = logits.to(getattr(torch, dtype))
    if not bool(found.isfinite().all()):
        _check(logits, f"the members {', '.join(member.name for member in members)} give logits", dtype)
    return found


def _check(numbers: Tensor, who: str, dtype: DType) -> None:
    if not bool(numbers.isfinite().all()):
        raise UserError(f"labels: {who} that are not finite: look at the curves of their trainings, and teach again.")
    largest, most = float(numbers.abs().max()), torch.finfo(getattr(torch, dtype)).max
    if not bool(numbers.to(getattr(torch, dtype)).isfinite().all()):
        raise UserError(
            f"labels.dtype: {who} up to {largest:.4g}; {dtype} ends at {most:.4g}. Choose bfloat16, which has fewer "
            "digits, or float32."
        )


Progress = Callable[[int, int], None]

OWN_FILE = re.compile(r"(labels|items)-\d{5}-of-\d{5}\.safetensors|\.(labels|items)-\d{5}-of-\d{5}\..*\.tmp")
"""The names of a cache's files and of what a killed process left of one; what else is in the folder is not touched."""


def label_source(
    labeller: Labeller, members: Sequence[LabelMember], keep: int, temperature: float, form: Form, dtype: DType
) -> LabelSource:
    """What the labels of these members for the dataset's train split are made of."""
    dataset, is_top_k = labeller.dataset, form == "topk"
    return LabelSource(
        form=form,
        combine=labeller.combine,
        weights=labeller.weights,
        dtype=dtype,
        keep=min(keep, dataset.num_items) if is_top_k else None,
        temperature=temperature if is_top_k else None,
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
    device: torch.device,
    options: LabelOptions,
    temperature: float = 1.0,
    kl: str = "reverse",
    progress: Progress | None = None,
) -> LabelIndex:
    """Label the train split into `folder`; every rank of `world` calls this, and every rank gets the index.

    There is one label shard for each dataset shard. A rank writes those of the shards that it owns, after its
    column has computed them together; the files' bytes do not depend on the number of ranks. On a CPU
    labelling therefore runs on one thread, whatever the process is set to: the order of a sum may change with the
    number of threads.

    A file that is already there with the right header and size is kept, so that labelling goes on where
    it was cut off; where an index of the same source stands too, files are kept by their checksum. Whole labels
    are left as they are. Label files of another plan are removed.

    Args:
        models: by member index, those that `column.members_of(group.rank, len(members))` gives this rank;
            they are put into eval mode on `device`. Where they hold slices of the catalog, the ranks of its group have
            the same members in columns of their own.
        options: how the members become labels, and how these are kept; fitted weights stand in them as numbers.
        temperature, kl: those that the labels will be read with; see `decided`.
        group: this rank's column; `world`: all ranks.
        progress: called on each rank with (examples done, examples to do) of its column.

    Raises:
        UserError: the folder holds the labels of something else, a model does not fit the dataset, the members
            cannot be combined like this, or numbers do not fit the type they are to be kept in.
    """
    folder = Path(folder)
    assert options.weights != "fitted", "weights that are to be fitted first"
    widths = tuple(member.width for member in members)
    weights = None if options.weights is None else tuple(options.weights)
    labeller = Labeller(dataset, models, widths, column, group, device, options.combine, weights)
    if problem := _problem(options, len(members), labeller.catalog):
        raise UserError(f"labels: {problem}")
    has_bias = labeller.has_bias()
    with _one_thread(device):
        form, dtype, measured = decided(labeller, options, temperature, kl, has_bias)
    source = label_source(labeller, members, options.keep, temperature, form, dtype)
    plans = shard_plans(source, dataset, has_bias)
    known, is_whole = _open_folder(folder, source, plans, world)
    if known and is_whole:
        return known
    checksums = {entry.file: entry.sha256 for entry in known.files} if known else {}
    pending = _pending(folder, plans, labeller, checksums)
    mine = [plan for plan in pending if plan.kind == "labels" and owner(plan, column) is not None]
    labeller.advance = _counter(progress, sum(plan.count for plan in mine))
    with _one_thread(device):
        _WRITERS[form](folder, mine, labeller, source)
        _write_items(folder, [plan for plan in pending if plan.kind == "items"], labeller, has_bias)
    return _write_index(folder, source, measured, plans, has_bias, world)


def _problem(options: LabelOptions, num_members: int, catalog: CatalogSlice) -> str | None:
    if options.form == "dense" and not catalog.is_whole:
        return "form dense needs whole rows, which slices of the catalog do not give; choose factored or topk."
    form = options.form if options.form != "auto" else "factored"
    return combining_problem(options.combine, options.weights, num_members, form)


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
    for path in folder.glob("*") if folder.is_dir() else ():
        if OWN_FILE.fullmatch(path.name) and path.name not in planned:
            path.unlink()
    is_whole = index is not None and all(plan.is_whole(folder / plan.file) for plan in plans)
    return {"index": index.model_dump(mode="json") if index else None, "is_whole": is_whole}


def _pending(folder: Path, plans: list[ShardPlan], labeller: Labeller, checksums: dict[str, str]) -> list[ShardPlan]:
    """The column's files that are not there yet, and those of the columns beside it that hold the other slices.

    The same on all ranks of these columns.
    """

    def is_kept(plan: ShardPlan) -> bool:
        path = folder / plan.file
        return plan.is_whole(path) and checksums.get(plan.file) in (None, sha256_file(path))

    own = [plan for plan in plans if owner(plan, labeller.column) == labeller.group.rank]
    missing = labeller.group.gather_objects([plan.file for plan in own if not is_kept(plan)])
    files = {file for part in missing for file in part}
    files = {file for part in labeller.catalog.group.gather_objects(sorted(files)) for file in part}
    return [plan for plan in plans if plan.file in files]


def _write_factored(folder: Path, plans: list[ShardPlan], labeller: Labeller, source: LabelSource) -> None:
    for plan in plans:
        is_own = owner(plan, labeller.column) == labeller.group.rank
        with _open_rows(folder, plan if is_own else None) as append:
            for rows, _ in labeller.gathered_rows(plan.number):
                append({"states": stored_states(rows, source.members, source.dtype)})
    labeller.keep_step()


def _write_dense(folder: Path, plans: list[ShardPlan], labeller: Labeller, source: LabelSource) -> None:
    """Rounds of shards, one for each rank of the column; a rank that is out of shards still takes part."""
    owners = range(labeller.group.size)
    owned = [[plan for plan in plans if owner(plan, labeller.column) == rank] for rank in owners]
    for turn in zip_longest(*owned):
        shards = [plan.number if plan else None for plan in turn]
        with _open_rows(folder, turn[labeller.group.rank]) as append:
            for rows in labeller.dense_rows(shards):
                append({"logits": stored_logits(rows, source.members, source.dtype)})


def _write_top_k(folder: Path, plans: list[ShardPlan], labeller: Labeller, source: LabelSource) -> None:
    assert source.keep is not None
    assert source.temperature is not None
    if not plans and labeller.catalog.is_whole:
        return
    blocks = item_blocks(labeller, labeller.has_bias())
    find = TopKRows(blocks, labeller.catalog, source.keep, source.temperature)
    for plan in plans:
        is_own = owner(plan, labeller.column) == labeller.group.rank
        with _open_rows(folder, plan if is_own else None) as append:
            for found in top_k_rows(labeller, find, plan.number):
                values = stored_logits(found["values"], source.members, source.dtype)
                sums = log_sums(values, found["sums"], source.temperature)
                append({"items": found["items"], "logsumexp": sums, "values": values})
    labeller.keep_step(lambda: find_nothing(labeller, find))


_WRITERS: dict[Form, Callable[[Path, list[ShardPlan], Labeller, LabelSource], None]] = {
    "factored": _write_factored,
    "dense": _write_dense,
    "topk": _write_top_k,
}


def _write_items(folder: Path, plans: list[ShardPlan], labeller: Labeller, has_bias: bool) -> None:
    for plan in plans:
        tensors = labeller.item_rows(plan.first - 1, plan.first - 1 + plan.count, has_bias)
        if owner(plan, labeller.column) == labeller.group.rank:
            write_tensors(folder / plan.file, tensors, plan.metadata)


def _open_rows(folder: Path, plan: ShardPlan | None) -> AbstractContextManager[Callable[[Mapping[str, Tensor]], None]]:
    """The file's appending function, or for None one that drops the rows: another rank writes them."""
    if plan is None:
        return nullcontext(lambda rows: None)
    return write_rows(folder / plan.file, plan.tensors, plan.metadata)


def _write_index(
    folder: Path,
    source: LabelSource,
    measured: Measured | None,
    plans: list[ShardPlan],
    has_bias: bool,
    world: Group,
) -> LabelIndex:
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
        **source.model_dump(),
        has_bias=has_bias,
        measured=measured,
        shards=tuple(shards["labels"]),
        item_shards=tuple(shards["items"]),
    )
    if world.is_leader:
        index.write(folder)
    world.barrier()
    return index


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
