"""Labelling by all ranks together: who writes which file, which files exist already, number types, the index last."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed.groups import Group
from csrec_dist.distributed.layout import LabelRanks
from csrec_dist.errors import UserError
from csrec_dist.files import sha256_file
from csrec_dist.labels.choose import UNTEMPERED, Reading, choose_form
from csrec_dist.labels.combine import Combination
from csrec_dist.labels.format import (
    INDEX_NAME,
    DType,
    Form,
    ItemShard,
    LabelFile,
    LabelIndex,
    LabelMember,
    LabelShard,
    LabelSource,
    Measured,
    label_files,
    read_index,
)
from csrec_dist.labels.labeller import Labeller
from csrec_dist.labels.options import LabelOptions, combining_problem
from csrec_dist.labels.top_k import TopKRows, find_nothing, item_blocks, log_sums, top_k_rows
from csrec_dist.lock import FolderLock
from csrec_dist.models import SequentialModel
from csrec_dist.storage import require_room
from csrec_dist.tensor_files import write_rows

Progress = Callable[[int, int], None]

CACHE_FILE = re.compile(r"(labels|items)-\d{5}-of-\d{5}\.safetensors|\.(labels|items)-\d{5}-of-\d{5}\..*\.tmp")
"""The names of a cache's files and of the temporary files of a killed process; other files are not touched."""


def write_labels(
    folder: Path | str,
    dataset: Dataset,
    models: Mapping[int, SequentialModel],
    members: Sequence[LabelMember],
    ranks: LabelRanks,
    *,
    device: torch.device,
    options: LabelOptions,
    reading: Reading = UNTEMPERED,
    progress: Progress | None = None,
) -> LabelIndex:
    """Label the train split into `folder`; every rank of `ranks.world` calls this, and every rank gets the index.

    There is one label shard for each dataset shard. A rank writes those of the shards that it owns, after its
    column has computed them together; the files' bytes do not depend on the number of ranks. On a CPU
    labelling therefore runs on one thread, whatever the process is set to: the order of a sum may change with the
    number of threads.

    A file that exists with the right header and size is not written again, so that labelling resumes where it was
    interrupted; where there is an index of the same source, its checksum has to be right, too. Complete labels are not
    touched. Label files of other shards or another form are removed.

    Args:
        models: by member index, those that `ranks.column.members_of(ranks.group.rank, len(members))` gives this rank;
            they are put into eval mode on `device`. Where they hold slices of the catalog, the ranks of its group have
            the same members in columns of their own.
        options: how the members become labels, and how these are stored; fitted weights stand in them as numbers.
        reading: how a student will read the labels; see `choose_form`.
        progress: called on each rank with (examples done, examples to do) of its column.

    Raises:
        UserError: the folder holds the labels of something else, a model does not fit the dataset, the members
            cannot be combined like this, or numbers do not fit the type they are to be stored in.
    """
    assert options.weights != "fitted", "weights that are to be fitted first"
    folder, widths = Path(folder), tuple(member.width for member in members)
    combination = Combination(widths, options.combine, None if options.weights is None else tuple(options.weights))
    labeller = Labeller(dataset, models, combination, ranks.column, ranks.group, device)
    _check_combining(options, labeller)
    has_bias = labeller.has_bias()
    if options.exact:
        form, dtype, measured = *options.exact, None
    else:
        with _one_thread(device):
            form, dtype, measured = choose_form(labeller, options, reading, has_bias)
    source = label_source(labeller, members, options.keep, reading.temperature, form, dtype)
    files = label_files(source, dataset, has_bias)
    lock = FolderLock(folder, "The label cache")
    with lock.released_when_ranks_are_done(ranks.world.size):
        index, is_whole = _open_folder(folder, source, files, ranks.world, lock)
        if index and is_whole:
            return index
        missing = _missing_files(folder, files, labeller, index)
        write_files(folder, missing, labeller, source, has_bias, progress)
        return _write_index(folder, source, measured, files, has_bias, ranks.world)


def _check_combining(options: LabelOptions, labeller: Labeller) -> None:
    """UserError if the members cannot be combined, or their labels cannot be stored, as the options say."""
    form = options.form if options.form != "auto" else "factored"
    problem = combining_problem(options.combine, options.weights, len(labeller.combination.widths), form)
    if options.form == "dense" and not labeller.catalog.is_whole and labeller.group.size > 1:
        problem = "form dense needs whole rows, which several groups of slices do not give; choose factored or topk."
    if problem:
        raise UserError(f"labels: {problem}")


def label_source(
    labeller: Labeller, members: Sequence[LabelMember], keep: int, temperature: float, form: Form, dtype: DType
) -> LabelSource:
    """The source of the labels of these members for the dataset's train split."""
    dataset, is_top_k = labeller.dataset, form == "topk"
    return LabelSource(
        form=form,
        combine=labeller.combination.combine,
        weights=labeller.combination.weights,
        dtype=dtype,
        keep=min(keep, dataset.num_items) if is_top_k else None,
        temperature=temperature if is_top_k else None,
        num_examples=dataset.splits["train"].num_examples,
        num_items=dataset.num_items,
        members=tuple(members),
        dataset_fingerprint=dataset.fingerprint,
        id_map_fingerprint=dataset.items_sha256,
    )


def _open_folder(
    folder: Path, source: LabelSource, files: list[LabelFile], world: Group, lock: FolderLock
) -> tuple[LabelIndex | None, bool]:
    """The index that the folder has already, and whether its files are complete; the same on every rank.

    The leader looks, and takes the lock for all ranks.
    """

    def inspect() -> dict[str, Any]:
        lock.acquire()
        return _inspect_folder(folder, source, files)

    answer = world.on_leader(inspect)
    return LabelIndex.model_validate(answer["index"]) if answer["index"] else None, answer["is_whole"]


def _inspect_folder(folder: Path, source: LabelSource, files: list[LabelFile]) -> dict[str, Any]:
    index = read_index(folder) if (folder / INDEX_NAME).exists() else None
    if index and (differences := index.differences(source)):
        raise UserError(
            f"{folder} holds the soft labels of something else: {'; '.join(differences)}. "
            "Label into another folder, or remove this one."
        )
    names = {file.name for file in files}
    for path in folder.glob("*") if folder.is_dir() else ():
        if CACHE_FILE.fullmatch(path.name) and path.name not in names:
            path.unlink()
    missing = [file for file in files if not file.is_whole(folder / file.name)]
    num_bytes = sum(spec.num_bytes for file in missing for spec in file.tensors.values())
    require_room(folder, num_bytes, "The soft labels that are not written yet")
    is_whole = index is not None and not missing
    return {"index": index.model_dump(mode="json") if index else None, "is_whole": is_whole}


def _missing_files(
    folder: Path, files: list[LabelFile], labeller: Labeller, index: LabelIndex | None
) -> list[LabelFile]:
    """The missing files of this column and of those beside it, which hold the other slices of the same members.

    The list is the same on all ranks of these columns, because they encode their shards in step.
    """
    checksums = {entry.file: entry.sha256 for entry in index.files} if index else {}

    def names_to_write() -> list[str]:
        local_files = [file for file in files if labeller.column.writer(file.number) == labeller.group.rank]
        return [
            file.name
            for file in local_files
            if not file.is_whole(folder / file.name)
            or checksums.get(file.name) not in (None, sha256_file(folder / file.name))
        ]

    of_column = {name for part in labeller.group.on_all(names_to_write) for name in part}
    of_columns = {name for part in labeller.catalog.group.gather_objects(sorted(of_column)) for name in part}
    return [file for file in files if file.name in of_columns]


def write_files(
    folder: Path,
    files: list[LabelFile],
    labeller: Labeller,
    source: LabelSource,
    has_bias: bool,
    progress: Progress | None,
) -> None:
    """Write this column's files of labels, and the item tables together with the columns beside it."""
    labels = [file for file in files if file.kind == "labels" and labeller.column.writer(file.number) is not None]
    total, num_done = sum(file.count for file in labels), 0

    def advance(num_examples: int) -> None:
        nonlocal num_done
        num_done += num_examples
        if progress:
            progress(num_done, total)

    labeller.advance = advance
    with _one_thread(labeller.device):
        _WRITERS[source.form](folder, labels, labeller, source)
        for file in files:
            if file.kind == "items":
                # The rows of the catalog group's ranks, concatenated in rank order, are in the order of the items.
                tables = labeller.slice_rows(file.first - 1, file.first - 1 + file.count, has_bias)
                shared = labeller.catalog.share(len(tables["item_weight"]), labeller.device)
                with _open_rows(folder, file, labeller) as append:
                    append({name: shared.gather(rows) for name, rows in tables.items()})


def _write_factored(folder: Path, files: list[LabelFile], labeller: Labeller, source: LabelSource) -> None:
    for file in files:
        with _open_rows(folder, file, labeller) as append:
            for states, _ in labeller.gathered_rows(file.number):
                append({"states": in_stored_type(states, "states", source)})
    labeller.keep_step()


def _write_dense(folder: Path, files: list[LabelFile], labeller: Labeller, source: LabelSource) -> None:
    """Rounds of shards, one for each rank of the column; a rank without a shard left still enters the collectives."""
    by_rank = [
        [file for file in files if labeller.column.writer(file.number) == rank] for rank in range(labeller.group.size)
    ]
    for one_each in zip_longest(*by_rank):
        shards = [file.number if file else None for file in one_each]
        with _open_rows(folder, one_each[labeller.group.rank], labeller) as append:
            for logits in labeller.dense_rows(shards):
                append({"logits": in_stored_type(logits, "logits", source)})
    labeller.keep_step(labeller.no_logits)


def _write_top_k(folder: Path, files: list[LabelFile], labeller: Labeller, source: LabelSource) -> None:
    assert source.keep is not None
    assert source.temperature is not None
    if not files and labeller.catalog.is_whole:
        return
    blocks = item_blocks(labeller, labeller.has_bias())
    find = TopKRows(blocks, labeller.catalog, source.keep, source.temperature)
    for file in files:
        with _open_rows(folder, file, labeller) as append:
            for rows in top_k_rows(labeller, find, file.number):
                values = in_stored_type(rows["values"], "logits", source)
                # The stored values are rounded, so the log-sum-exp is that of these, not of the exact ones.
                sums = log_sums(values, rows["sums"], source.temperature)
                append({"items": rows["items"], "logsumexp": sums, "values": values})
    labeller.keep_step(lambda: find_nothing(labeller, find))


_WRITERS: dict[Form, Callable[[Path, list[LabelFile], Labeller, LabelSource], None]] = {
    "factored": _write_factored,
    "dense": _write_dense,
    "topk": _write_top_k,
}


def in_stored_type(numbers: Tensor, what: str, source: LabelSource) -> Tensor:
    """Convert states [n, D] of the members side by side, or their logits, to the stored type.

    Raises:
        UserError: some are not finite, or do not fit the type; it names the member whose states they are.
    """
    dtype = getattr(torch, source.dtype)
    converted = numbers.to(dtype)
    if bool(converted.isfinite().all()):
        return converted
    sources = {f"the members {', '.join(member.name for member in source.members)} give logits": numbers}
    if what == "states":
        names = [f"member {member.name} gives states" for member in source.members]
        sources = dict(zip(names, numbers.split(source.widths, 1), strict=True))
    for who, part in sources.items():
        if not bool(part.isfinite().all()):
            raise UserError(
                f"labels: {who} that are not finite: look at the curves of their trainings, and teach again."
            )
        if not bool(part.to(dtype).isfinite().all()):
            raise UserError(
                f"labels.dtype: {who} up to {float(part.abs().max()):.4g}; {source.dtype} ends at "
                f"{torch.finfo(dtype).max:.4g}. Choose bfloat16, which has fewer digits, or float32."
            )
    return converted


def _open_rows(
    folder: Path, file: LabelFile | None, labeller: Labeller
) -> AbstractContextManager[Callable[[Mapping[str, Tensor]], None]]:
    """A context whose value appends rows to the file, or drops them where another rank writes it or there is none."""
    if file is None or labeller.column.writer(file.number) != labeller.group.rank:
        return nullcontext(lambda rows: None)
    return write_rows(folder / file.name, file.tensors, file.metadata)


def _write_index(
    folder: Path,
    source: LabelSource,
    measured: Measured | None,
    files: list[LabelFile],
    has_bias: bool,
    world: Group,
) -> LabelIndex:
    """Gather the checksums, which also waits for every file, then write the index on the leader."""

    def sums() -> dict[str, tuple[int, str]]:
        names = [file.name for file in files if file.number % world.size == world.rank]
        return {name: ((folder / name).stat().st_size, sha256_file(folder / name)) for name in names}

    entries = {name: entry for part in world.on_all(sums, "the checksums") for name, entry in part.items()}
    shards, item_shards = [], []
    for file in files:
        size, sha256 = entries[file.name]
        if file.kind == "labels":
            shards.append(
                LabelShard(file=file.name, bytes=size, sha256=sha256, first_example=file.first, num_examples=file.count)
            )
        else:
            item_shards.append(
                ItemShard(file=file.name, bytes=size, sha256=sha256, first_item=file.first, num_items=file.count)
            )
    index = LabelIndex(
        **source.model_dump(),
        has_bias=has_bias,
        measured=measured,
        shards=tuple(shards),
        item_shards=tuple(item_shards),
    )
    world.on_leader(lambda: index.write(folder))  # no rank opens the cache before its index is there
    return index


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
