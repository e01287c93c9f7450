"""From histories as a user writes them to right-padded windows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from csrec_dist.errors import UserError


def pad_histories(
    histories: Sequence[Sequence[int]] | Tensor, num_items: int, max_length: int
) -> tuple[Tensor, Tensor]:
    """The latest max_length items of each history, right-padded with 0.

    Args:
        histories: lists of item ids, oldest first, or an integer tensor [B, L] right-padded with 0.

    Returns:
        items [B, L'] with L' ≤ max_length and lengths [B], both int64.

    Raises:
        UserError: no history, an empty one, or an item outside 1…V.
    """
    padded, lengths = _padded_tensor(histories) if isinstance(histories, Tensor) else _padded_lists(histories)
    _check(padded, lengths, num_items)
    new_lengths = lengths.clamp(max=max_length)
    positions = torch.arange(int(new_lengths.max()), device=padded.device)
    source = positions + (lengths - new_lengths).unsqueeze(1)
    items = padded.gather(1, source.clamp(max=padded.shape[1] - 1))
    return items.masked_fill(positions >= new_lengths.unsqueeze(1), 0), new_lengths


def _padded_lists(histories: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    lengths = [len(history) for history in histories]
    width = max(lengths, default=0)
    rows = [[*history, *[0] * (width - len(history))] for history in histories]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), width), torch.tensor(lengths)


def _padded_tensor(histories: Tensor) -> tuple[Tensor, Tensor]:
    if histories.dim() != 2 or histories.dtype.is_floating_point:
        raise UserError(
            f"Histories are a {histories.dtype} tensor of shape {list(histories.shape)}; "
            "give an integer tensor [B, L], right-padded with 0."
        )
    return histories.long(), (histories != 0).sum(1)


def _check(padded: Tensor, lengths: Tensor, num_items: int) -> None:
    if len(lengths) == 0:
        raise UserError("No history was given; give at least one.")
    if bool((lengths == 0).any()):
        row = int((lengths == 0).nonzero()[0])
        raise UserError(f"History {row} is empty; give each at least one item of 1…{num_items}.")
    is_item = torch.arange(padded.shape[1], device=padded.device) < lengths.unsqueeze(1)
    is_unknown = is_item & ((padded < 1) | (padded > num_items))
    if bool(is_unknown.any()):
        row, position = is_unknown.nonzero()[0].tolist()
        raise UserError(
            f"History {row} has item {int(padded[row, position])} at position {position}; "
            f"items are 1…{num_items}, and 0 only pads on the right."
        )
