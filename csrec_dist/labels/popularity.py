"""SoftRec's labels (Cheng et al., 2021, the item-based kind): how often items are targets, the same for every example.

They take the place of a soft-label cache: nothing is stored but V numbers, which the dataset has.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from csrec_dist.data.dataset import Dataset
from csrec_dist.data.shards import readable
from csrec_dist.losses.soft_labels import CPU, FactoredLabels, SoftLabels


def target_counts(dataset: Dataset) -> np.ndarray:
    """How many training examples have each item as their target, int64 [V], item i+1's at place i; counted by prepare.

    Items of validation and test, and the first item of a row, which no example predicts, are not counted.
    """
    path = dataset.file("items.parquet")
    with readable(path):
        # A copy, since what Arrow gives cannot be written to, of which torch warns.
        return pq.read_table(path, columns=["targets"])["targets"].to_numpy().copy()


def popularity_labels(counts: np.ndarray | Tensor, num_examples: int, device: torch.device = CPU) -> FactoredLabels:
    """Labels softmax(e/T) with e_j = log(count_j + 1) for `num_examples` examples, as one member of width 1.

    At T = 1 they are the items' shares of the targets, with one added to each count; a larger T flattens them.
    """
    logits = torch.as_tensor(counts, dtype=torch.float64).log1p().float().to(device)
    return FactoredLabels(torch.ones(num_examples, 1, device=device), logits.unsqueeze(1))


class PopularityLabels:
    """SoftRec's labels by example id, as from a soft-label cache."""

    def __init__(self, dataset: Dataset) -> None:
        """Read how often each item is a target."""
        self.counts = target_counts(dataset)
        self.num_examples = dataset.splits["train"].num_examples
        self._tables: dict[torch.device, Tensor] = {}

    def fields(self, example_ids: Tensor | np.ndarray) -> dict[str, Tensor]:
        """{"states": [N, 1]}: ones, since all examples have the same labels."""
        return {"states": torch.ones(len(example_ids), 1)}

    def labels(self, fields: Mapping[str, Tensor], device: torch.device = CPU) -> SoftLabels:
        """The soft labels of what `fields` gave, on `device`, where the items' logits are kept."""
        if device not in self._tables:
            self._tables[device] = popularity_labels(self.counts, 0, device).item_weight
        return FactoredLabels(fields["states"].to(device, non_blocking=True), self._tables[device])
