"""The soft-label cache, read by example id: any batch order, any world size."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from csrec_dist.data.stored import Dataset
from csrec_dist.distributed.catalog import CatalogShard
from csrec_dist.errors import UserError
from csrec_dist.labels.checking import file_problem, foreign_to
from csrec_dist.labels.combining import combined_labels
from csrec_dist.labels.index import ItemShard, LabelShard, read_index
from csrec_dist.labels.shards import map_tensor
from csrec_dist.objectives.soft_labels import DenseLabels, SoftLabels

CPU = torch.device("cpu")


class LabelReader(Protocol):
    """What a training reads soft labels from: first, in a background thread, what is kept of some examples."""

    def fields(self, example_ids: Tensor | np.ndarray) -> dict[str, Tensor]:
        """The examples' own part of their labels, on the CPU."""

    def labels(self, fields: Mapping[str, Tensor], device: torch.device = CPU) -> SoftLabels:
        """The soft labels of what `fields` gave, on `device`."""


class LabelCache:
    """A finished cache folder, opened for reading. Shards are memory-mapped when first asked for.

    With `catalog`, the item tables are those of its slice: of their files only those that overlap it are read.
    """

    def __init__(self, folder: Path | str, dataset: Dataset | None = None, catalog: CatalogShard | None = None) -> None:
        """Read the index.

        Raises UserError when there is none, when files are missing or cut, or when the labels are not
        those of `dataset`.
        """
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        if dataset is not None and (differences := foreign_to(self.index, dataset)):
            raise UserError(
                f"{self.folder} holds the labels of another dataset than {dataset.folder}: "
                f"{'; '.join(differences)}. Label this dataset."
            )
        for entry in self.index.files:
            path = self.folder / entry.file
            if not path.exists() or path.stat().st_size != entry.bytes:
                raise UserError(f"{path} is missing or cut off. Run `labels verify`, and label again.")
        self._items = slice(0, self.index.num_items) if catalog is None else catalog.rows
        self._maps: dict[int, np.ndarray] = {}
        self._tables: dict[torch.device, tuple[Tensor, Tensor | None]] = {}

    @property
    def num_examples(self) -> int:
        """Examples in the cache: ids are 0 … num_examples − 1."""
        return self.index.num_examples

    @property
    def field(self) -> str:
        """What is stored for each example: `states` [K] or `logits` [V]."""
        return "states" if self.index.form == "factored" else "logits"

    def check_lanes(self, lanes: Iterable[int]) -> list[str]:
        """What is wrong, by their checksums, with the shards of `lanes` and the item tables read; one sentence each.

        A rank calls this for the lanes it owns: a byte changed since labelling would otherwise be trained on.
        """
        files: list[LabelShard | ItemShard] = [*(self.index.shards[lane] for lane in lanes), *self._item_shards]
        found = [file_problem(self.folder / entry.file, entry, self.index, deep=True) for entry in files]
        return [problem for problem in found if problem]

    def fields(self, example_ids: Tensor | np.ndarray) -> dict[str, Tensor]:
        """The stored part of the examples, {"states": [N, K]} or {"logits": [N, V]}, on the CPU.

        The ids [N] may come in any order, from any shards and more than once; within a shard they are read in
        file order. Fit for a background thread.

        Raises:
            IndexError: an id outside 0 … num_examples − 1.
        """
        ids = np.asarray(example_ids)
        if len(ids) and (ids.min() < 0 or ids.max() >= self.num_examples):
            raise IndexError(
                f"example ids {ids.min()} to {ids.max()} were asked for; {self.folder} holds 0 to "
                f"{self.num_examples - 1}"
            )
        order = np.argsort(ids, kind="stable")
        shard_of = np.searchsorted(self._first_examples, ids[order], side="right") - 1
        values = np.empty((len(ids), self._width), np.float32)
        for shard in np.unique(shard_of).tolist():
            places = order[shard_of == shard]
            values[places] = self._map(shard)[ids[places] - self._first_examples[shard]]
        return {self.field: torch.from_numpy(values)}

    def labels(self, fields: Mapping[str, Tensor], device: torch.device = CPU) -> SoftLabels:
        """The soft labels of what `fields` gave, on `device`; the item tables are moved there once and shared."""
        values = fields[self.field].to(device, non_blocking=True)
        if self.field == "logits":
            return DenseLabels(values)
        if device not in self._tables:
            self._tables[device] = _to(self.item_tables, device)
        index = self.index
        return combined_labels(values, *self._tables[device], index.widths, index.combine, index.weights)

    def read(self, example_ids: Tensor | np.ndarray, device: torch.device = CPU) -> SoftLabels:
        """The soft labels of the examples, in the order of their ids."""
        return self.labels(self.fields(example_ids), device)

    @cached_property
    def item_tables(self) -> tuple[Tensor, Tensor | None]:
        """The members' item tables side by side [V, K] and the labels' bias or None, on the CPU; of a slice, its rows.

        The bias is [V]; for prob_mean [V, m], each member's own.

        Raises UserError when a file of them is damaged.
        """
        num_rows = self._items.stop - self._items.start
        weight = np.empty((num_rows, self._width), np.float32)
        bias = np.empty(self.index.bias_shape(num_rows), np.float32) if self.index.has_bias else None
        for shard in self._item_shards:
            path, num, first = self.folder / shard.file, shard.num_items, shard.first_item - 1
            low, high = max(first, self._items.start), min(first + num, self._items.stop)
            stored, rows = slice(low - first, high - first), slice(low - self._items.start, high - self._items.start)
            weight[rows] = map_tensor(path, "item_weight", (num, self._width))[stored]
            if bias is not None:
                bias[rows] = map_tensor(path, "item_bias", self.index.bias_shape(num))[stored]
        return torch.from_numpy(weight), None if bias is None else torch.from_numpy(bias)

    @property
    def _item_shards(self) -> list[ItemShard]:
        """The files of the item tables that hold some of the rows read."""
        low, high = self._items.start, self._items.stop
        return [
            shard
            for shard in self.index.item_shards
            if max(shard.first_item - 1, low) < min(shard.first_item - 1 + shard.num_items, high)
        ]

    @property
    def _width(self) -> int:
        """Numbers stored for each example."""
        return sum(self.index.widths) if self.field == "states" else self.index.num_items

    @cached_property
    def _first_examples(self) -> np.ndarray:
        return np.array([shard.first_example for shard in self.index.shards], np.int64)

    def _map(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            entry = self.index.shards[shard]
            self._maps[shard] = map_tensor(self.folder / entry.file, self.field, (entry.num_examples, self._width))
        return self._maps[shard]


def _to(tables: tuple[Tensor, Tensor | None], device: torch.device) -> tuple[Tensor, Tensor | None]:
    weight, bias = tables
    return weight.to(device), None if bias is None else bias.to(device)
