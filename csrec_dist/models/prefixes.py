"""Models that read each prefix for itself: one row per prefix, and its state back to where the prefix ends."""

from collections.abc import Callable

import torch
from torch import Tensor

PREFIXES_AT_ONCE = 256


def encode_every_prefix(histories: Tensor, encode_last: Callable[[Tensor], Tensor]) -> Tensor:
    """States [B, L, d] of all prefixes of histories [B, L], of an `encode_last` for whole ones; 0 at padding."""
    ends, rows = (histories != 0).T.nonzero(as_tuple=True)
    states = encode_prefixes(histories, rows, ends, encode_last)
    return states.new_zeros(*histories.shape, states.shape[1]).index_put((rows, ends), states)


def encode_prefixes(histories: Tensor, rows: Tensor, ends: Tensor, encode_last: Callable[[Tensor], Tensor]) -> Tensor:
    """States [n, d] of the prefixes histories[rows, : ends + 1], with `rows` and `ends` [n].

    Some are read at once, cut to the longest among them: `ends` in ascending order cost least.
    """
    states = []
    for some_rows, some_ends in zip(rows.split(PREFIXES_AT_ONCE), ends.split(PREFIXES_AT_ONCE), strict=True):
        length = int(some_ends.max()) + 1 if len(some_ends) else 1
        behind = torch.arange(length, device=ends.device) > some_ends.unsqueeze(1)
        states.append(encode_last(histories[some_rows, :length].masked_fill(behind, 0)))
    return torch.cat(states)
