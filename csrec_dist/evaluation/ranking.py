"""The target's rank and the best items in the full catalog, a block of rows at a time.

Shapes: N examples, V items, d width, L seen items.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from csrec_dist.errors import UserError

BLOCK_BYTES = 8 * 2**20


def target_ranks(
    states: Tensor,
    item_weight: Tensor,
    targets: Tensor,
    *,
    item_bias: Tensor | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """Rank of each target among all items, 1 being best: 1 + the number of other items not below it.

    Ties count against the target, and so does what cannot be ordered: an item scored NaN stands above
    every target, a target scored NaN ranks last (V). A target among its seen items ranks V.

    Args:
        states: [N, d].
        item_weight: [V, d], row i being item i+1's.
        targets: [N] int64 in 1…V.
        item_bias: [V] added to the logits.
        seen: [N, L] item ids, 0 for none, whose logits become −inf.

    Returns:
        [N] int64 in 1…V. Extra memory is bounded by `BLOCK_BYTES` of logits, or one row if that is more.
    """
    ranks = torch.empty_like(targets)
    for rows, logits in _logits_by_block(states, item_weight, item_bias, seen):
        of_target = logits.gather(1, (targets[rows] - 1).unsqueeze(1))
        ranks[rows] = logits.shape[1] - (logits < of_target).sum(1)
    return ranks


def top_items(
    states: Tensor,
    item_weight: Tensor,
    n: int,
    *,
    item_bias: Tensor | None = None,
    seen: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The n best items of each example, best first; among equal scores the lower id comes first.

    Arguments and memory as in `target_ranks`. NaN counts as −inf. Where fewer than n items are unseen,
    the last of the n have score −inf.

    Returns:
        items [N, n] int64 in 1…V and their scores [N, n].

    Raises:
        UserError: n is not in 1…V.
    """
    num_items = item_weight.shape[0]
    if not 1 <= n <= num_items:
        raise UserError(f"The best {n} of {num_items} items were asked for; ask for 1…{num_items}.")
    blocks = [
        _top_of_block(logits.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf), n)
        for _, logits in _logits_by_block(states, item_weight, item_bias, seen)
    ]
    if not blocks:
        return states.new_empty((0, n), dtype=torch.int64), states.new_empty((0, n))
    columns, scores = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return columns + 1, scores


def _logits_by_block(
    states: Tensor, item_weight: Tensor, item_bias: Tensor | None, seen: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the examples with their logits [·, V] in at least single precision, seen items at −inf."""
    dtype = torch.promote_types(states.dtype, torch.float32)
    weight = item_weight.to(dtype)
    bias = None if item_bias is None else item_bias.to(dtype)
    block = max(1, BLOCK_BYTES // (weight.shape[0] * dtype.itemsize))
    for start in range(0, len(states), block):
        rows = slice(start, min(start + block, len(states)))
        logits = F.linear(states[rows].to(dtype), weight, bias)
        if seen is not None:
            row, position = seen[rows].nonzero(as_tuple=True)
            logits[row, seen[rows][row, position] - 1] = -math.inf
        yield rows, logits


def _top_of_block(logits: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Columns and values [·, n] of the n largest logits, the lower column first among equals.

    `topk` promises no order among equals, so rows with a tie at the n-th place are sorted in full.
    """
    values, columns = logits.topk(n, dim=1)
    tied = (logits >= values[:, -1:]).sum(1) > n
    if bool(tied.any()):
        columns[tied] = logits[tied].sort(dim=1, descending=True, stable=True).indices[:, :n]
    columns = columns.sort(dim=1).values
    values, order = logits.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return columns.gather(1, order), values
