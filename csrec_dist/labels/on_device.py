"""Soft labels that lie on the GPU for a whole training, where they fit: a batch brings the places of its rows alone."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from csrec_dist.labels.cache import CPU, LabelCache, LabelReader
from csrec_dist.losses.soft_labels import SoftLabels


def on_device(labels: LabelCache, shards: Sequence[int], device: torch.device, most_bytes: int) -> LabelReader:
    """A reader of these shards' labels: the cache itself, or one whose rows lie on the GPU if they take few bytes."""
    num_examples = sum(labels.index.shards[shard].num_examples for shard in shards)
    specs = labels.index.label_tensors(num_examples).values()
    num_bytes = sum(spec.num_bytes for spec in specs)
    return DeviceLabels(labels, shards, device) if device.type == "cuda" and num_bytes <= most_bytes else labels


class DeviceLabels:
    """Read by example id as the cache is, for the examples of some shards, whose rows are copied to `device` here."""

    def __init__(self, labels: LabelCache, shards: Sequence[int], device: torch.device) -> None:
        self._labels = labels
        entries = labels.index.shards
        firsts = [entries[shard].first_example for shard in shards]
        sizes = [entries[shard].num_examples for shard in shards]
        order = np.argsort(firsts)
        self._firsts = np.array(firsts, np.int64)[order]
        self._stops = self._firsts + np.array(sizes, np.int64)[order]
        self._begins = np.concatenate([[0], np.cumsum(self._stops - self._firsts)])[:-1]
        parts = [labels.shard_fields(shards[place]) for place in order.tolist()]
        self._rows = {name: torch.cat([part[name].to(device) for part in parts]) for name in parts[0]}

    def fields(self, example_ids: Tensor | np.ndarray) -> dict[str, Tensor]:
        """Where the examples' rows lie on the device, {"places": [N]}.

        Raises:
            IndexError: an id of another shard.
        """
        ids = np.asarray(example_ids)
        shards = np.searchsorted(self._firsts, ids, side="right") - 1
        if len(ids) and (shards.min() < 0 or (ids >= self._stops[shards]).any()):
            raise IndexError(f"example ids {ids.min()} to {ids.max()} are not all in the shards that are read here")
        return {"places": torch.from_numpy(ids - self._firsts[shards] + self._begins[shards])}

    def labels(self, fields: Mapping[str, Tensor], device: torch.device = CPU) -> SoftLabels:
        """The soft labels of what `fields` gave, on the device that keeps the rows."""
        places = fields["places"].to(device, non_blocking=True)
        return self._labels.labels({name: rows.index_select(0, places) for name, rows in self._rows.items()}, device)
