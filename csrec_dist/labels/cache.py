"""The soft-label cache, read by example id: any batch order, any world size; from disk, or from a GPU if it fits."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from csrec_dist.data.batches import to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.distributed.groups import ALONE, Group
from csrec_dist.distributed.joining import processes
from csrec_dist.errors import UserError
from csrec_dist.hub import upload_with_card
from csrec_dist.labels.card import label_card
from csrec_dist.labels.combine import Combination
from csrec_dist.labels.format import INDEX_NAME, ItemShard, LabelShard, read_index
from csrec_dist.losses.soft_labels import CPU, DenseLabels, LabelReader, SoftLabels
from csrec_dist.losses.top_k_labels import TopKLabels
from csrec_dist.tensor_files import ARRAYS, as_tensor, map_tensor

if TYPE_CHECKING:
    import datasets


LABEL_COLUMN = "label_"


def with_labels(stream: "datasets.IterableDataset", labels: LabelReader) -> "datasets.IterableDataset":
    """A stream of batches whose elements also have what `labels` stores of their examples: `label_<field>` [N, …].

    Row n belongs to `to_batch(element).example_ids[n]`: the join is by example id, whatever order the stream has.
    """
    return stream.map(partial(_label_columns, labels))  # a function of a module: a DataLoader's workers unpickle it


def _label_columns(labels: LabelReader, element: dict[str, Any]) -> dict[str, Tensor]:
    fields = labels.fields(to_batch(element).example_ids)
    return {LABEL_COLUMN + name: field for name, field in fields.items()}


def label_fields(element: dict[str, Any]) -> dict[str, Tensor]:
    """What `with_labels` put into an element, under the names that `LabelReader.labels` knows."""
    names = [name for name in element if name.startswith(LABEL_COLUMN)]
    return {name.removeprefix(LABEL_COLUMN): element[name] for name in names}


class LabelCache:
    """A finished cache folder, opened for reading. Shards are memory-mapped when first asked for.

    The item tables are split over the ranks of `group`: of their files only those that overlap this rank's slice are
    read.
    """

    def __init__(self, folder: Path | str, dataset: Dataset | None = None, group: Group = ALONE) -> None:
        """Read the index.

        Raises UserError when there is none, when files are missing or cut, or when the labels are not
        those of `dataset`.
        """
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        if dataset is not None and (differences := self.index.foreign_to(dataset)):
            raise UserError(
                f"{self.folder} holds the labels of another dataset than {dataset.folder}: "
                f"{'; '.join(differences)}. Label this dataset."
            )
        for entry in self.index.files:
            path = self.folder / entry.file
            if not path.exists() or path.stat().st_size != entry.bytes:
                raise UserError(f"{path} is missing or cut off. Run `labels verify`, and label again.")
        self._items = CatalogSlice.of(self.index.num_items, group).rows
        self._maps: dict[tuple[int, str], np.ndarray] = {}
        self._tables: dict[torch.device, tuple[Tensor, Tensor | None]] = {}

    @property
    def num_examples(self) -> int:
        """Examples in the cache: ids are 0 … num_examples − 1."""
        return self.index.num_examples

    def push_to_hub(self, name: str, *, private: bool = False, token: str | None = None) -> str:
        """Put the cache with a card into the repository `name` (OWNER/NAME) of the Hub; returns its address.

        It is a repository of a dataset. Under a launcher the first rank pushes.

        Raises:
            UserError: the name is no name, the server cannot be reached, or it asks for another token.
        """
        files = [self.folder / INDEX_NAME, *(self.folder / entry.file for entry in self.index.files)]
        with processes() as ranks:
            return ranks.on_main(lambda: upload_with_card(files, label_card(self.folder), name, private, token))

    def check_shards(self, shards: Iterable[int]) -> list[str]:
        """A sentence for each shard of `shards`, and each file of the item tables read here, that fails its checksum.

        A rank calls this for the shards that it owns, so that no byte that changed since labelling is trained on.
        """
        files: list[LabelShard | ItemShard] = [*(self.index.shards[shard] for shard in shards), *self._item_shards]
        problems = [self.index.file_problem(self.folder / entry.file, entry, deep=True) for entry in files]
        return [problem for problem in problems if problem]

    def fields(self, example_ids: Tensor | np.ndarray) -> dict[str, Tensor]:
        """What is stored for each of the examples, in the stored type, on the CPU.

        {"states": [N, Σ widths]}, {"logits": [N, V]}, or {"values": [N, K], "items": [N, K], "logsumexp": [N]}.
        The ids [N] may come in any order, from any shards and more than once; within a shard they are read in
        file order. May be called in a background thread.

        Raises:
            IndexError: an id outside 0 … num_examples − 1.
        """
        ids = np.asarray(example_ids)
        if len(ids) and (ids.min() < 0 or ids.max() >= self.num_examples):
            raise IndexError(
                f"example ids {ids.min()} to {ids.max()} were asked for; {self.folder} holds 0 to "
                f"{self.num_examples - 1}"
            )
        # By rising id, so that each shard is read once, from front to back, whatever order the batch has.
        order = np.argsort(ids, kind="stable")
        shard_of = np.searchsorted(self._first_examples, ids[order], side="right") - 1
        specs = self.index.label_tensors(len(ids))
        fields = {name: np.empty(spec.shape, ARRAYS[spec.dtype]) for name, spec in specs.items()}
        for shard in np.unique(shard_of).tolist():
            rows = order[shard_of == shard]
            for name, values in fields.items():
                values[rows] = self._map(shard, name)[ids[rows] - self._first_examples[shard]]
        return {name: as_tensor(values, specs[name].dtype) for name, values in fields.items()}

    def labels(self, fields: Mapping[str, Tensor], device: torch.device = CPU) -> SoftLabels:
        """The soft labels of what `fields` gave, on `device`, in fp32; item tables are moved there once and shared."""
        index, moved = self.index, {name: field.to(device, non_blocking=True) for name, field in fields.items()}
        if index.form == "dense":
            return DenseLabels(moved["logits"].float())
        if index.form == "topk":
            assert index.temperature is not None
            values, items = moved["values"].float(), moved["items"]
            return TopKLabels(values, items, moved["logsumexp"], index.temperature, index.num_items)
        if device not in self._tables:
            weight, bias = self.item_tables
            self._tables[device] = weight.to(device), None if bias is None else bias.to(device)
        combination = Combination(index.widths, index.combine, index.weights)
        return combination.labels(moved["states"].float(), *self._tables[device])

    def shard_fields(self, shard: int) -> dict[str, Tensor]:
        """The `fields` of all examples of a shard, in their order."""
        first = int(self._first_examples[shard])
        return self.fields(np.arange(first, first + self.index.shards[shard].num_examples))

    def rows(self, example_ids: Tensor | np.ndarray, device: torch.device = CPU) -> SoftLabels:
        """The soft labels of the examples, in the order of their ids."""
        return self.labels(self.fields(example_ids), device)

    @cached_property
    def item_tables(self) -> tuple[Tensor, Tensor | None]:
        """The members' item tables side by side [V, K] and the labels' bias or None, on the CPU: the rows of the slice.

        The bias is [V]; for prob_mean [V, m], each member's own.

        Raises UserError when a file of them is damaged.
        """
        num_rows = self._items.stop - self._items.start
        weight = np.empty((num_rows, sum(self.index.widths)), np.float32)
        bias = np.empty(self.index.bias_shape(num_rows), np.float32) if self.index.has_bias else None
        for shard in self._item_shards:
            path, num, first = self._sound_file(shard), shard.num_items, shard.first_item - 1
            low, high = max(first, self._items.start), min(first + num, self._items.stop)
            file_rows = slice(low - first, high - first)
            table_rows = slice(low - self._items.start, high - self._items.start)
            specs = self.index.item_tensors(num, bias is not None)
            weight[table_rows] = map_tensor(path, "item_weight", specs["item_weight"])[file_rows]
            if bias is not None:
                bias[table_rows] = map_tensor(path, "item_bias", specs["item_bias"])[file_rows]
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

    @cached_property
    def _first_examples(self) -> np.ndarray:
        return np.array([shard.first_example for shard in self.index.shards], np.int64)

    def _map(self, shard: int, name: str) -> np.ndarray:
        if (shard, name) not in self._maps:
            entry = self.index.shards[shard]
            spec = self.index.label_tensors(entry.num_examples)[name]
            self._maps[shard, name] = map_tensor(self._sound_file(entry), name, spec)
        return self._maps[shard, name]

    def _sound_file(self, entry: LabelShard | ItemShard) -> Path:
        """The path of a file whose checksum was compared in this process; UserError where it is damaged."""
        path = self.folder / entry.file
        if problem := self.index.file_problem(path, entry, deep=True):
            raise UserError(f"{self.folder}: {problem} Label again.")
        return path


def on_device(labels: LabelCache, shards: Sequence[int], device: torch.device, most_bytes: int) -> LabelReader:
    """A reader of these shards' labels: the cache, or one that keeps the rows on the GPU if they take few bytes.

    A batch then copies only its row numbers to the GPU.
    """
    num_examples = sum(labels.index.shards[shard].num_examples for shard in shards)
    specs = labels.index.label_tensors(num_examples).values()
    num_bytes = sum(spec.num_bytes for spec in specs)
    return DeviceLabels(labels, shards, device) if device.type == "cuda" and num_bytes <= most_bytes else labels


class DeviceLabels:
    """The labels of some shards' examples by example id, as from the cache; their rows are copied to `device` once."""

    def __init__(self, labels: LabelCache, shards: Sequence[int], device: torch.device) -> None:
        self._labels = labels
        entries = labels.index.shards
        firsts = [entries[shard].first_example for shard in shards]
        sizes = [entries[shard].num_examples for shard in shards]
        order = np.argsort(firsts)
        self._firsts = np.array(firsts, np.int64)[order]
        self._stops = self._firsts + np.array(sizes, np.int64)[order]
        self._begins = np.concatenate([[0], np.cumsum(self._stops - self._firsts)])[:-1]
        parts = [labels.shard_fields(shards[number]) for number in order.tolist()]
        self._rows = {name: torch.cat([part[name].to(device) for part in parts]) for name in parts[0]}

    def fields(self, example_ids: Tensor | np.ndarray) -> dict[str, Tensor]:
        """The examples' rows on the device, {"rows": [N]}.

        Raises:
            IndexError: an id of another shard.
        """
        ids = np.asarray(example_ids)
        shards = np.searchsorted(self._firsts, ids, side="right") - 1
        if len(ids) and (shards.min() < 0 or (ids >= self._stops[shards]).any()):
            raise IndexError(f"example ids {ids.min()} to {ids.max()} are not all in the shards that are read here")
        return {"rows": torch.from_numpy(ids - self._firsts[shards] + self._begins[shards])}

    def labels(self, fields: Mapping[str, Tensor], device: torch.device = CPU) -> SoftLabels:
        """The soft labels of what `fields` gave, on the device that keeps the rows."""
        index = fields["rows"].to(device, non_blocking=True)
        return self._labels.labels({name: rows.index_select(0, index) for name, rows in self._rows.items()}, device)
