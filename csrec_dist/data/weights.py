"""How much training examples weigh, where the log's interactions have weights (`dataset.weights`)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from csrec_dist.data.shards import Shard, indices
from csrec_dist.data.windows import Spans
from csrec_dist.errors import UserError


def scaled(weights: np.ndarray, train: Spans, path: Path) -> np.ndarray:
    """Weights of the interactions as float32, scaled so that training targets weigh 1 in the mean.

    So the loss of a step may be divided by the number of its examples, and weights change no learning rate. Raises
    UserError, which names the log, if all targets weigh 0.
    """
    mean = weights[indices(train.starts + 1, train.stops)].mean(dtype=np.float64)
    if mean == 0:
        raise UserError(f"{path}: every training example has weight 0; change dataset.weights.")
    return (weights / mean).astype(np.float32)


class ExampleWeights:
    """The weights of training examples by id, read from a shard when one of its examples is asked for, and kept.

    A rank asks for examples of its own shards, and holds 4 bytes for each.
    """

    def __init__(self, first_examples: Sequence[int], open_shard: Callable[[int], Shard]) -> None:
        """`first_examples` has the id of each shard's first example, followed by the total number of examples."""
        self._firsts, self._open_shard = np.asarray(first_examples), open_shard
        self._shards: dict[int, np.ndarray] = {}

    def of(self, ids: np.ndarray) -> np.ndarray:
        """The weights of some examples [n], float32; 1 for an id of −1, which is none."""
        weights = np.ones(len(ids), np.float32)
        shards = np.searchsorted(self._firsts, ids, side="right") - 1
        for shard in np.unique(shards[ids >= 0]).tolist():
            if shard not in self._shards:
                self._shards[shard] = self._open_shard(shard).weights()
            mask = (shards == shard) & (ids >= 0)
            weights[mask] = self._shards[shard][ids[mask] - self._firsts[shard]]
        return weights
