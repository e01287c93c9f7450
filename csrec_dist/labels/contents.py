"""What a soft-label cache holds and whether its files are sound, told by its index and headers, without torch."""

from pathlib import Path
from typing import Any

from csrec_dist.data.dataset import Dataset
from csrec_dist.errors import UserError
from csrec_dist.files import sha256_file
from csrec_dist.labels.format import ItemShard, LabelIndex, LabelShard, index_path, label_bytes, read_index
from csrec_dist.tensor_files import read_header


def verify(folder: Path | str, dataset: Dataset | None = None, *, deep: bool = True) -> list[str]:
    """What is wrong with a cache, one sentence for each problem; an empty list when it is sound.

    Compares every file's existence, size and header with the index, with `deep` its checksum too, and
    with `dataset` what the labels were made for.

    Raises:
        UserError: the folder holds no cache.
    """
    index_path(folder)
    try:
        index = read_index(folder)
    except UserError as error:
        return [str(error)]
    problems = [f"The labels are of another dataset: {phrase}." for phrase in foreign_to(index, dataset)]
    of_files = [file_problem(Path(folder) / entry.file, entry, index, deep) for entry in index.files]
    return problems + [problem for problem in of_files if problem]


def info(folder: Path | str, num_items: int | None = None) -> dict[str, Any]:
    """A cache in figures; with `num_items`, those that the same members would have over another catalog.

    Bytes are those of the files, or by arithmetic those of the numbers in them when `num_items` is given; `ratio` is
    their share of the dense float32 form. `keep` and `temperature` are those of topk labels; `measured` is what the
    form loses on a sample, and where it was chosen what others would (see `Measured`).

    Raises:
        UserError: the folder holds no cache, or `num_items` is less than 1.
    """
    if num_items is not None and num_items < 1:
        raise UserError(f"A catalog of {num_items} items was asked for; give at least 1.")
    index = read_index(folder)
    sizes = (index.num_examples, index.num_items if num_items is None else num_items, index.widths)
    stored = sum(entry.bytes for entry in index.files)
    total = stored
    if num_items is not None:
        total = label_bytes(index.form, *sizes, index.has_bias, index.combine, index.dtype, index.keep)
    dense = label_bytes("dense", *sizes)
    return {
        "form": index.form,
        "combine": index.combine,
        "weights": None if index.weights is None else list(index.weights),
        "dtype": index.dtype,
        "keep": index.keep,
        "temperature": index.temperature,
        "members": [member.name for member in index.members],
        "num_examples": index.num_examples,
        "num_items": sizes[1],
        "num_shards": len(index.shards),
        "bytes": total,
        "bytes_per_example": total / max(index.num_examples, 1),
        "dense_bytes": dense,
        "ratio": total / max(dense, 1),
        "measured": None if index.measured is None else index.measured.model_dump(exclude_none=True),
    }


def foreign_to(index: LabelIndex, dataset: Dataset | None) -> list[str]:
    """How the dataset differs from the one that was labelled, one phrase for each difference."""
    if dataset is None:
        return []
    pairs = {
        "fingerprint": (index.dataset_fingerprint, dataset.fingerprint),
        "item ids": (index.id_map_fingerprint, sha256_file(dataset.folder / "items.parquet")),
        "number of items": (index.num_items, dataset.num_items),
        "number of examples": (index.num_examples, dataset.splits["train"].num_examples),
    }
    return [
        f"{what} {str(labelled)[:16]} was labelled, {str(given)[:16]} is given"
        for what, (labelled, given) in pairs.items()
        if labelled != given
    ]


def file_problem(path: Path, entry: LabelShard | ItemShard, index: LabelIndex, deep: bool) -> str | None:
    """What is wrong with one file of a cache, by its size and header, with `deep` its checksum too; None if nothing."""
    if not path.exists():
        return f"{path.name} is missing."
    if (size := path.stat().st_size) != entry.bytes:
        return f"{path.name} has {size} bytes; the index says {entry.bytes}."
    if deep and sha256_file(path) != entry.sha256:
        return f"{path.name} has another checksum than the index says: its bytes were changed."
    try:
        header = read_header(path)
    except UserError as error:
        return str(error)
    first = entry.first_example if isinstance(entry, LabelShard) else entry.first_item
    if header.metadata.get("dataset") != index.dataset_fingerprint or header.metadata.get("first") != str(first):
        return f"{path.name} is a shard of another range or dataset."
    return None
