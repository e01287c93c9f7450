"""Encoding for models that read each prefix by itself: a row per prefix, whose state goes to where the prefix ends."""

from collections.abc import Callable

import torch
from torch import Tensor

from csrec_dist.models.table import ItemTable

PREFIXES_AT_ONCE = 128
"""Prefixes of a piece on a CPU, where less padding saves more than large pieces do."""
POSITIONS_AT_ONCE = 80_000
"""Positions of a piece on a GPU, where the number of pieces decides the time."""


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

    They are read in pieces. If `cut`, a piece has no more positions than its longest prefix, so ascending `ends` cost
    least; a GPU's host has to wait to learn that length. Each `encode_last` reads the `table` once by a collective, so
    ranks that share it go through equally many pieces, of which the last ones may be empty.
    """
    states = []
    size = PREFIXES_AT_ONCE
    if histories.device.type != "cpu":
        size = max(size, POSITIONS_AT_ONCE // histories.shape[1])
    pieces = list(zip(rows.split(size), ends.split(size), strict=True))
    pieces += [(rows[:0], ends[:0])] * (table.most_calls(len(pieces)) - len(pieces))
    for piece_rows, piece_ends in pieces:
        length = histories.shape[1]
        if cut:
            length = int(piece_ends.max()) + 1 if len(piece_ends) else 1
        is_later = torch.arange(length, device=ends.device) > piece_ends.unsqueeze(1)
        states.append(encode_last(histories[piece_rows, :length].masked_fill(is_later, 0)))
    return torch.cat(states)
