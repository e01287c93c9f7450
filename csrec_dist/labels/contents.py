"""A soft-label cache in figures, and whether its files are sound, by its index and headers alone: without torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from csrec_dist.data.dataset import Dataset
from csrec_dist.errors import UserError
from csrec_dist.labels.format import index_path, read_index
from csrec_dist.labels.options import Combine, DType, Form
from csrec_dist.tensor_files import TensorSpec


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
    foreign = index.foreign_to(dataset) if dataset else []
    problems = [f"The labels are of another dataset: {phrase}." for phrase in foreign]
    of_files = [index.file_problem(Path(folder) / entry.file, entry, deep=deep) for entry in index.files]
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
    file_bytes = sum(entry.bytes for entry in index.files)
    total = file_bytes
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


def label_bytes(
    form: Form,
    num_examples: int,
    num_items: int,
    widths: Sequence[int],
    has_bias: bool = False,
    combine: Combine = "logit_mean",
    dtype: DType = "float32",
    keep: int | None = None,
) -> int:
    """Bytes of the numbers in a cache of s bytes a number, D being Σ widths.

    Factored s·N·D + 4·V·(D + 1), dense s·N·V, topk N·(K·(s + 4) + 4). Without a bias the factored form takes 4·V less,
    for prob_mean of m members 4·V·(m − 1) more.
    """
    size = TensorSpec(dtype, ()).itemsize
    if form == "dense":
        return size * num_examples * num_items
    if form == "topk":
        assert keep is not None
        return num_examples * (min(keep, num_items) * (size + 4) + 4)
    width, num_biases = sum(widths), len(widths) if combine == "prob_mean" else 1
    return size * num_examples * width + 4 * num_items * (width + has_bias * num_biases)
