"""A model's inputs for one training step, made on the host: which positions are examples, and the random draws.

The thread that reads a batch knows where its examples are, so the device is never asked: the host would wait for a
GPU's answer, and no CUDA graph can have one. Letters: B windows of L + 1 items, n states, d width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from csrec_dist.data.batches import Batch
from csrec_dist.data.weights import ExampleWeights

SIZES = 8
"""Numbers of states that a padded step can have: eighths of the most. A CUDA graph is captured for each."""


@dataclass(frozen=True)
class Picked:
    """n positions of an array [B, W], in row order; padding repeats the first ones, with weight 0.

    `index` [n] are indices into the flat array, and `inverse` [B·W] is the place in `index` of each position, −1 for
    those that were not picked. The first `num` of them are no padding.
    """

    index: Tensor
    inverse: Tensor
    weights: Tensor
    num: int

    @classmethod
    def of(cls, mask: np.ndarray, size: int | None = None) -> Self:
        """The positions where `mask` [B, W] is set, padded to `size` of them where it is given."""
        flat = mask.reshape(-1)
        index = np.flatnonzero(flat)
        inverse = np.cumsum(flat) - 1
        inverse[~flat] = -1
        weights = np.ones(len(index), np.float32)
        padding = repeats(len(index), size)
        index, weights = np.concatenate([index, index[padding]]), np.pad(weights, (0, len(padding)))
        return cls(torch.from_numpy(index), torch.from_numpy(inverse), torch.from_numpy(weights), int(flat.sum()))


def repeats(num: int, size: int | None) -> np.ndarray:
    """Indices of those of `num` entries that are repeated to reach `size`; none without entries or without a size."""
    if size is None or num == 0:
        return np.zeros(0, np.int64)
    return np.arange(size - num) % num


def padded_size(num: int, most: int) -> int:
    """The least of a few fixed sizes that holds `num` ≤ `most`; 0 for none."""
    step = -(-most // SIZES)
    return min(-(-num // step) * step, most)


def pick(values: Tensor, picked_index: Tensor, inverse: Tensor) -> Tensor:
    """The picked rows [n, d] of `values` [B, W, d]; the gradients of repeated ones are left out.

    Each position is picked once, so the backward pass gathers: no gradients are summed, by atomics or after a sort.
    """
    rows: Tensor = _Pick.apply(values, picked_index, inverse)
    return rows


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.shape = values.shape
        return values.flatten(0, 1).index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        if len(gradient) == 0:
            return gradient.new_zeros(ctx.shape), None, None
        rows = gradient.index_select(0, inverse.clamp(min=0)).masked_fill_((inverse < 0).unsqueeze(1), 0)
        return rows.view(ctx.shape), None, None


@dataclass(frozen=True)
class TrainingInputs:
    """A model's inputs for a batch in training, and what its loss needs.

    `items` [B, L + 1] are the windows, targets included, and `positions` those of `items` or of its histories whose
    states are trained. `targets` [n] in 1…V and `weights` [n] belong to the n states that the model gives; states of
    weight 0 are padding. `seed` [] int64 is the step's: whatever a model draws for an example (masks, noise) follows
    from it and the example's id, so it does not depend on the number of ranks. `drawn` is what the model has drawn on
    the host.

    These stay on the host: `examples` [m], the ids of the examples of the first m states, which have soft labels;
    `predicted` [n], the ids of the examples that have the states' targets (−1: none); and `num_states`, the number of
    states that are no padding.
    """

    items: Tensor
    positions: Picked
    targets: Tensor
    weights: Tensor
    seed: Tensor
    examples: Tensor
    predicted: Tensor
    num_states: int
    drawn: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def histories(self) -> Tensor:
        """[B, L]: the items a causal model reads."""
        return self.items[:, :-1]

    def tensors(self) -> dict[str, Tensor]:
        """What goes to the device, by name."""
        named = {"items": self.items, "targets": self.targets, "weights": self.weights, "seed": self.seed}
        named |= {"index": self.positions.index, "inverse": self.positions.inverse}
        return named | {f"drawn.{name}": tensor for name, tensor in self.drawn.items()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same with these tensors, named as in `tensors()`."""
        positions = replace(self.positions, index=tensors["index"], inverse=tensors["inverse"])
        others: dict[str, Any] = {name: tensors[name] for name in ("items", "targets", "weights", "seed")}
        drawn = {name: tensors[f"drawn.{name}"] for name in self.drawn}
        return replace(self, positions=positions, drawn=drawn, **others)

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor of `tensors()` changed."""
        return self.with_tensors({name: change(tensor) for name, tensor in self.tensors().items()})

    def weighted(self, example_weights: ExampleWeights) -> Self:
        """The same, with each state weighted by the weight of the example that has its target."""
        return replace(self, weights=self.weights * torch.from_numpy(example_weights.of(self.predicted.numpy())))

    def to(self, device: torch.device) -> Self:
        """The inputs on `device`; the host does not wait for those that lie in pinned memory."""
        return self if device.type == "cpu" else self.map(lambda tensor: tensor.to(device, non_blocking=True))


def of_examples(batch: Batch, seed: int, *, padded: bool) -> TrainingInputs:
    """The inputs of a model that gives a state for every example: they are all trained, each with its soft labels."""
    items = batch.items.numpy()
    targets = items[:, 1:]
    mask = targets > 0
    positions = Picked.of(mask, padded_size(int(mask.sum()), mask.size) if padded else None)
    index = positions.index.numpy()
    examples = (batch.example_offsets.numpy()[:, None] + np.arange(targets.shape[1])).reshape(-1)[index]
    return TrainingInputs(
        items=batch.items,
        positions=positions,
        targets=torch.from_numpy(targets.reshape(-1)[index]),
        weights=positions.weights,
        seed=torch.tensor(seed),
        examples=torch.from_numpy(examples),
        predicted=torch.from_numpy(examples),
        num_states=positions.num,
    )
