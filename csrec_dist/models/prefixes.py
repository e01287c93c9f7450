"""Models that read each prefix for itself: one row per prefix, and its state back to where the prefix ends."""

from collections.abc import Callable

import torch
from torch import Tensor

from csrec_dist.models.table import ItemTable

PREFIXES_AT_ONCE = 128
"""On a CPU, where pieces of about one length save more than large ones."""


POSITIONS_AT_ONCE = 80_000
"""Of all prefixes of a piece on a GPU, where the number of pieces is what costs."""


def encode_every_prefix(histories: Tensor, encode_last: Callable[[Tensor], Tensor], table: ItemTable) -> Tensor:
    """States [B, L, d] of all prefixes of histories [B, L], of an `encode_last` for whole ones; 0 at padding."""
    ends, rows = (histories != 0).T.nonzero(as_tuple=True)
    states = encode_prefixes(histories, rows, ends, encode_last, table, cut=True)
    return states.new_zeros(*histories.shape, states.shape[1]).index_put((rows, ends), states)


def encode_prefixes(
    histories: Tensor,
    rows: Tensor,
    ends: Tensor,
    encode_last: Callable[[Tensor], Tensor],
    table: ItemTable,
    *,
    cut: bool,
) -> Tensor:
    """States [n, d] of the prefixes histories[rows, : ends + 1], with `rows` and `ends` [n].

    Some are read at once, if `cut`, with no more positions than the longest among them has: `ends` in ascending order
    cost least. A GPU's host has to wait to learn that length. Ranks that share the `table`, which `encode_last` reads
    once, go through as many pieces: the last ones of some may be empty.
    """
    states = []
    size = PREFIXES_AT_ONCE
    if histories.device.type != "cpu":
        size = max(size, POSITIONS_AT_ONCE // histories.shape[1])
    pieces = list(zip(rows.split(size), ends.split(size), strict=True))
    pieces += [(rows[:0], ends[:0])] * (table.most_calls(len(pieces)) - len(pieces))
    for some_rows, some_ends in pieces:
        length = histories.shape[1]
        if cut:
            length = int(some_ends.max()) + 1 if len(some_ends) else 1
        behind = torch.arange(length, device=ends.device) > some_ends.unsqueeze(1)
        states.append(encode_last(histories[some_rows, :length].masked_fill(behind, 0)))
    return torch.cat(states)
