"""CL4SRec (Xie et al., 2022): SASRec, trained to tell two disturbed copies of a history from those of others."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from csrec_dist.data.batches import Batch
from csrec_dist.models.base import TrainingStates
from csrec_dist.models.inputs import TrainingInputs, pick
from csrec_dist.models.options import CL4SRecConfig
from csrec_dist.models.rng import uniform
from csrec_dist.models.sasrec import INITIAL_DEVIATION, SASRec

CHOICES, MASKS, ORDERS, PREFIXES = range(4)  # streams of random numbers


class CL4SRec(SASRec):
    """SASRec's encoder; in training also the states of two differently disturbed copies of a history of each window.

    The history is a prefix of the window, drawn anew at each step. Whole windows do not work: most have the same
    length, so all their copies would end at two or three positions, and the contrastive loss would spoil those.
    """

    Config = CL4SRecConfig
    config: CL4SRecConfig
    has_views = True

    def __init__(self, config: CL4SRecConfig, num_items: int, max_length: int) -> None:
        super().__init__(config, num_items, max_length)
        self.mask_vector = nn.Parameter(torch.empty(config.width))
        nn.init.normal_(self.mask_vector, std=INITIAL_DEVIATION)

    def inputs(self, batch: Batch, seed: int, *, padded: bool = False) -> TrainingInputs:
        """See `SequentialModel.inputs`; with two disturbed copies of each window that has examples.

        A copy is made of the history of one example, so that it does not depend on the padding of the batch. If
        `padded`, windows without examples stay, with weight 0.
        """
        mask = batch.targets > 0
        has_examples = mask.any(1)
        windows = torch.ones_like(has_examples) if padded else has_examples
        keys = batch.example_offsets[windows]
        seen = drawn_prefixes(batch.histories.masked_fill(~mask, 0)[windows], keys, seed)
        copies = disturbed_copies(seen, keys, seed, self.config, self.num_items + 1)
        drawn = dict(zip(("first", "second"), copies, strict=True))
        if padded:
            drawn["window_weights"] = has_examples.float()
        return replace(super().inputs(batch, seed, padded=padded), drawn=drawn)

    def training_states(self, inputs: TrainingInputs) -> TrainingStates:
        """The states of all examples of the undisturbed windows, and `views` of the windows that have examples."""
        histories, copies = inputs.histories, (inputs.drawn["first"], inputs.drawn["second"])
        # One pass for the windows and their copies. In a copy, item V+1 is the mask.
        items = torch.cat([histories, *copies])
        is_masked = items > self.num_items
        vectors = self.item_table(items.masked_fill(is_masked, 0)) + is_masked.unsqueeze(-1) * self.mask_vector
        states, *copy_states = self.encode_vectors(vectors).split([len(histories), *map(len, copies)])
        views = []
        for copy, all_states in zip(copies, copy_states, strict=True):
            last = (copy != 0).sum(1) - 1
            views.append(all_states[torch.arange(len(copy), device=copy.device), last])
        return TrainingStates(
            pick(states, inputs.positions.index, inputs.positions.inverse),
            views=(views[0], views[1]),
            view_weights=inputs.drawn.get("window_weights"),
        )


def drawn_prefixes(histories: Tensor, keys: Tensor, seed: int) -> Tensor:
    """A prefix [B, L] of each history [B, L] of n ≥ 1 items, of each length 1 … n with the same probability."""
    lengths = (histories != 0).sum(1, keepdim=True)
    num = (uniform(keys, seed, PREFIXES, 1).double() * lengths).long() + 1
    return histories.masked_fill(torch.arange(histories.shape[1], device=histories.device) >= num, 0)


def disturbed_copies(
    histories: Tensor, keys: Tensor, seed: int, config: CL4SRecConfig, mask_item: int
) -> tuple[Tensor, Tensor]:
    """Two copies [B, L] of each history [B, L], disturbed in two of three ways, drawn from `keys` [B] and `seed`.

    All pairs of ways are equally likely. A history of one item stays as it is: there is nothing to crop or reorder, and
    the share that is masked rounds down to no item.
    """
    choices = uniform(keys, seed, CHOICES, 3).double()
    ways = torch.stack(
        [
            cropped(histories, config.crop, choices[:, 0]),
            masked(histories, config.mask, uniform(keys, seed, MASKS, histories.shape[1]), mask_item),
            reordered(histories, config.reorder, choices[:, 1], uniform(keys, seed, ORDERS, histories.shape[1])),
        ]
    )
    pair = (choices[:, 2] * 6).long()  # one of the ordered pairs of different ways
    first = pair // 2
    second = (first + 1 + pair % 2) % 3
    rows = torch.arange(len(histories), device=histories.device)
    return ways[first, rows], ways[second, rows]


def cropped(histories: Tensor, share: float, offset: Tensor) -> Tensor:
    """⌊share·n⌋ of the n items in a row (at least one), from where `offset` [B] in [0, 1) says, moved left."""
    num = _share_of(histories, share).clamp(min=1)
    start = _start(histories, num, offset)
    positions = torch.arange(histories.shape[1], device=histories.device)
    moved = histories.gather(1, (positions + start).clamp(max=histories.shape[1] - 1))
    return moved.masked_fill(positions >= num, 0)


def masked(histories: Tensor, share: float, scores: Tensor, mask_item: int) -> Tensor:
    """⌊share·n⌋ of the n items, those of the lowest `scores` [B, L], replaced by `mask_item`."""
    ranks = scores.masked_fill(histories == 0, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
    return histories.masked_fill(ranks < _share_of(histories, share), mask_item)


def reordered(histories: Tensor, share: float, offset: Tensor, scores: Tensor) -> Tensor:
    """⌊share·n⌋ of the n items in a row, from where `offset` [B] says, in the order of `scores` [B, L] in [0, 1)."""
    moved = _share_of(histories, share)
    start = _start(histories, moved, offset)
    positions = torch.arange(histories.shape[1], device=histories.device)
    inside = (positions >= start) & (positions < start + moved)
    order = torch.where(inside, start + scores.double() * moved, positions.double())
    return histories.gather(1, order.argsort(dim=1, stable=True))


def _share_of(histories: Tensor, share: float) -> Tensor:
    """⌊share·n⌋ [B, 1] for histories of n items."""
    lengths = (histories != 0).sum(1, keepdim=True)
    return (lengths.double() * share + 1e-9).long()  # in floating point 0.58 · 50 < 29


def _start(histories: Tensor, num: Tensor, offset: Tensor) -> Tensor:
    """Where a piece of `num` [B, 1] items begins, [B, 1]: the share `offset` [B] of the n − num + 1 possibilities."""
    possibilities = (histories != 0).sum(1, keepdim=True) - num + 1
    return (offset.unsqueeze(1) * possibilities.clamp(min=1)).long()
