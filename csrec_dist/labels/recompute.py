"""A sample of a cache's shards, computed again from the teachers: whether they are these teachers' labels at all."""

import math
import random
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file

from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed.layout import LabelRanks
from csrec_dist.labels.combine import Combination
from csrec_dist.labels.format import LabelFile, LabelSource, label_files, read_index
from csrec_dist.labels.labeller import Labeller
from csrec_dist.labels.writer import write_files
from csrec_dist.models import SequentialModel
from csrec_dist.process_state import matmul_precision

TOLERANCE = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 2e-2}
"""How far a number may be off, as a share of the tensor's largest: another machine sums in another order."""


def recompute(
    folder: Path | str,
    dataset: Dataset,
    models: Mapping[int, SequentialModel],
    share: float,
    *,
    device: torch.device,
    seed: int = 0,
) -> tuple[list[str], list[str]]:
    """Compute a share of a cache's label shards, at least one, and its first item tables again.

    On the machine that labelled, the bytes are equal; elsewhere numbers may differ by `TOLERANCE`. Of top-k labels the
    values and log-sums are compared, but not the items, because items of equal logits may change places.

    Args:
        models: all members of the cache, in its order.

    Returns:
        The names of the files that were computed again, and a sentence for each that is not what the models give.
    """
    folder, index = Path(folder), read_index(folder)
    source = LabelSource.model_validate(index.model_dump(include=set(LabelSource.model_fields)))
    ranks = LabelRanks.alone(len(index.members))
    combination = Combination(index.widths, index.combine, index.weights)
    labeller = Labeller(dataset, models, combination, ranks.column, ranks.group, device)
    files = label_files(source, dataset, index.has_bias)
    labels = [file for file in files if file.kind == "labels"]
    sample = random.Random(seed).sample(labels, max(1, math.ceil(share * len(labels))))  # nosec B311
    chosen = sorted(sample, key=lambda file: file.number) + [file for file in files if file.kind == "items"][:1]
    with TemporaryDirectory() as again, matmul_precision("highest"):
        write_files(Path(again), chosen, labeller, source, index.has_bias, None)
        compared = [_difference(folder / file.name, Path(again) / file.name, file) for file in chosen]
    return [file.name for file in chosen], [problem for problem in compared if problem]


def _difference(path: Path, recomputed: Path, file: LabelFile) -> str | None:
    """How a file differs from the one that was computed again, in a sentence; None if it does not."""
    if path.read_bytes() == recomputed.read_bytes():
        return None
    stored, expected = load_file(path), load_file(recomputed)
    for name in stored.keys() - {"items"}:
        largest, tolerance = float(expected[name].double().abs().max()), TOLERANCE[file.tensors[name].dtype]
        error = float((stored[name].double() - expected[name].double()).abs().max())
        if not error <= tolerance * max(largest, 1e-30):
            return (
                f"{file.name}: {name} differ from what the teachers give by up to {error:.3g} (the largest is "
                f"{largest:.3g}). Label again with --restart label."
            )
    return None
