"""The files that a label cache is to have: their ranges, tensors and headers, and who writes them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from csrec_dist.data.stored import Dataset
from csrec_dist.distributed.mesh import LabelColumn
from csrec_dist.errors import UserError
from csrec_dist.labels.index import FORMAT_VERSION, LabelSource, TensorSpec
from csrec_dist.labels.shards import read_header

ITEMS_PER_FILE = 65_536


@dataclass(frozen=True)
class ShardPlan:
    """A file to be: its kind and place among it, its range, and all that its header must say."""

    kind: Literal["labels", "items"]
    number: int
    file: str
    first: int
    count: int
    tensors: dict[str, TensorSpec]
    metadata: dict[str, str]

    def is_whole(self, path: Path) -> bool:
        """Whether `path` is a file of full size with exactly this header."""
        try:
            header = read_header(path)
        except (FileNotFoundError, UserError):
            return False
        whole = path.stat().st_size == header.file_bytes
        return whole and header.holds(self.tensors) and header.metadata == self.metadata


def shard_plans(source: LabelSource, dataset: Dataset, has_bias: bool) -> list[ShardPlan]:
    """All files of the cache but the index: labels by lane, then item tables by rows."""
    split = dataset.splits["train"]
    lanes = zip(split.first_examples, split.lane_examples, strict=False)
    plans = [
        _plan(source, "labels", i, dataset.num_lanes, first, count, source.label_tensors(count))
        for i, (first, count) in enumerate(lanes)
    ]
    num_files = -(-source.num_items // ITEMS_PER_FILE) if source.form == "factored" else 0
    for i in range(num_files):
        count = min(ITEMS_PER_FILE, source.num_items - i * ITEMS_PER_FILE)
        tensors = source.item_tensors(count, has_bias)
        plans.append(_plan(source, "items", i, num_files, i * ITEMS_PER_FILE + 1, count, tensors))
    return plans


def owner(plan: ShardPlan, column: LabelColumn) -> int | None:
    """Position in the column of the rank that writes the file, or None where it is another column's."""
    rank = plan.number % column.world_size
    return column.ranks.index(rank) if rank in column.ranks else None


def _plan(
    source: LabelSource,
    kind: Literal["labels", "items"],
    number: int,
    num_files: int,
    first: int,
    count: int,
    tensors: dict[str, TensorSpec],
) -> ShardPlan:
    metadata = {
        "format": f"csrec_dist.labels.{FORMAT_VERSION}.{kind}",
        "source": source.fingerprint,
        "dataset": source.dataset_fingerprint,
        "first": str(first),
    }
    file = f"{kind}-{number:05d}-of-{num_files:05d}.safetensors"
    return ShardPlan(kind, number, file, first, count, tensors, metadata)
