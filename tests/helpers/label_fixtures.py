"""A tiny prepared dataset written by hand, tiny teachers, and labelling on one or several ranks."""

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor, nn

from csrec_dist.data.dataset import FORMAT_VERSION, Dataset
from csrec_dist.distributed.groups import Group
from csrec_dist.distributed.layout import LabelRanks, label_columns
from csrec_dist.labels import LabelIndex, LabelMember, Reading, write_labels
from csrec_dist.labels.options import LabelOptions
from csrec_dist.models import ItemTable

NUM_ITEMS, WINDOW, CPU = 23, 8, torch.device("cpu")
WIDTHS = (4, 3, 6, 2, 5, 1, 7, 3)
BIASED = (False, True, True, False, True, False, False, True)
WEIGHTS = (0.3, 0.05, 0.1, 0.1, 0.05, 0.15, 0.05, 0.2)


def make_rows(num_shards: int = 5, num_rows: int = 43, seed: int = 0) -> list[list[list[int]]]:
    """Random rows by shard; shards differ in rows and examples, and a row may be too short for an example."""
    random = np.random.default_rng(seed)
    rows = [random.integers(1, NUM_ITEMS + 1, random.integers(1, WINDOW + 1)).tolist() for _ in range(num_rows)]
    return [rows[shard::num_shards] for shard in range(num_shards)]


def write_dataset(folder: Path, shards: list[list[list[int]]], fingerprint: str = "d0") -> Dataset:
    """Write the train split in the documented layout, in row groups of 4."""
    folder.mkdir(parents=True)
    shard_examples = [sum(len(row) - 1 for row in rows) for rows in shards]
    row_id = 0
    for shard, (rows, first) in enumerate(zip(shards, accumulate(shard_examples, initial=0), strict=False)):
        offsets = list(accumulate((len(row) - 1 for row in rows), initial=first))[: len(rows)]
        table = pa.table(
            {
                "row": pa.array(range(row_id, row_id + len(rows)), pa.int64()),
                "user": pa.array([1] * len(rows), pa.int32()),
                "items": pa.array(rows, pa.list_(pa.int32())),
                "example_offset": pa.array(offsets, pa.int64()),
            }
        )
        pq.write_table(table, folder / f"train-{shard:05d}-of-{len(shards):05d}.parquet", row_group_size=4)
        row_id += len(rows)
    targets = [sum(row[1:].count(item) for rows in shards for row in rows) for item in range(1, NUM_ITEMS + 1)]
    items = {"item": pa.array(range(1, NUM_ITEMS + 1), pa.int32()), "targets": pa.array(targets, pa.int64())}
    pq.write_table(pa.table(items), folder / "items.parquet")
    split = {
        "num_rows": row_id,
        "num_examples": sum(shard_examples),
        "shard_rows": [len(rows) for rows in shards],
        "shard_examples": shard_examples,
    }
    info = {
        "format_version": FORMAT_VERSION,
        "num_items": NUM_ITEMS,
        "num_users": 1,
        "num_shards": len(shards),
        "window": WINDOW,
        "splits": {"train": split},
        "statistics": {},
        "options": {},
        "source": {},
        "fingerprint": fingerprint,
    }
    (folder / "dataset.json").write_text(json.dumps(info))
    return Dataset(folder)


class TinyTeacher(nn.Module):
    """The running mean of a history's item vectors through a linear layer and dropout."""

    def __init__(self, width: int, bias: bool, seed: int) -> None:
        super().__init__()
        self.item_table = ItemTable(NUM_ITEMS, width, bias=bias)
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.5)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)

    def encode(self, histories: Tensor) -> Tensor:
        counts = torch.arange(1, histories.shape[1] + 1).view(1, -1, 1)
        return self.dropout(self.linear(self.item_table(histories).cumsum(1) / counts))


def make_teachers(num: int) -> list[TinyTeacher]:
    """Teachers of different widths; the first has no bias."""
    return [TinyTeacher(WIDTHS[m], BIASED[m], seed=100 + m) for m in range(num)]


def make_members(num: int) -> list[LabelMember]:
    """What the index says of them."""
    return [LabelMember(name=f"m{m}", width=WIDTHS[m], fingerprint=f"f{m}") for m in range(num)]


class CutOffError(Exception):
    """Ends labelling in the middle."""


def cut_off() -> None:
    """End labelling here."""
    raise CutOffError


def label(
    rank: int,
    world_size: int,
    dataset: str,
    folder: str,
    num_members: int,
    form: str,
    stop_after: int = 0,
    stop: Callable[[], None] | None = None,
    weights: tuple[float, ...] | None = None,
    temperature: float = 1.0,
    kl: str = "reverse",
    **kept: Any,
) -> dict:
    """Label on every rank of the world; call `stop` after `stop_after` batches."""
    columns = label_columns(num_members, world_size)
    handles = [dist.new_group(list(column.ranks)) if len(column.ranks) > 1 else None for column in columns]
    place = next(i for i, column in enumerate(columns) if rank in column.ranks)
    column = columns[place]
    world = Group(tuple(range(world_size)), rank, dist.group.WORLD if world_size > 1 else None)
    group = Group(column.ranks, column.ranks.index(rank), handles[place])
    teachers = make_teachers(num_members)
    own = {member: teachers[member] for member in column.members_of(group.rank, num_members)}
    batches = []

    def progress(done: int, total: int) -> None:
        batches.append((done, total))
        if stop and len(batches) == stop_after:
            stop()

    options = LabelOptions.model_validate({"form": form, "dtype": "float32"} | kept)
    index = write_labels(
        folder,
        Dataset(dataset),
        own,
        make_members(num_members),
        LabelRanks(column, group, world),
        device=CPU,
        options=options.model_copy(update={"weights": weights}),
        reading=Reading(temperature, kl),
        progress=progress,
    )
    return {"index": index.model_dump(mode="json"), "progress": batches}


def label_alone(
    dataset: Dataset, folder: Path, num_members: int = 2, form: str = "factored", **combining: Any
) -> LabelIndex:
    """Label in this process."""
    found = label(0, 1, str(dataset.folder), str(folder), num_members, form, **combining)
    return LabelIndex.model_validate(found["index"])


def file_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def oracle_member_logits(shards: list[list[list[int]]], num_members: int) -> np.ndarray:
    """Each member's logits [m, N, V] of all examples in the order of their ids, by loops in float64."""
    logits: list[list[np.ndarray]] = [[] for _ in range(num_members)]
    for row in (row for shard in shards for row in shard):
        for end in range(1, len(row)):
            for kept, teacher in zip(logits, make_teachers(num_members), strict=True):
                weight = teacher.item_table.weight.detach().numpy().astype(np.float64)
                mean = sum(weight[item - 1] for item in row[:end]) / end
                layer = [p.detach().numpy().astype(np.float64) for p in teacher.linear.parameters()]
                bias = 0 if teacher.item_table.bias is None else teacher.item_table.bias.detach().numpy()
                kept.append(weight @ (layer[0] @ mean + layer[1]) + bias)
    return np.array(logits)


def oracle_logits(shards: list[list[list[int]]], num_members: int) -> np.ndarray:
    """Their mean [N, V]."""
    return oracle_member_logits(shards, num_members).mean(0)
