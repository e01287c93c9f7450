"""The target's rank and the best items in the full catalog, a block of rows at a time.

Shapes: N examples, V items, d width, L seen items. A table may be this rank's slice of the catalog: all ranks of its
group then rank together, each for examples of its own. Logits are [N, V], or those of the slice's items.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from csrec_dist.distributed.catalog import CatalogSlice, SharedRows, TableLike
from csrec_dist.errors import UserError

BLOCK_BYTES = {"cpu": 8 * 2**20, "cuda": 128 * 2**20}
"""Of the logits that are there at once. More is faster on a GPU, where each block costs the host's time."""


def target_ranks(states: Tensor, table: TableLike, targets: Tensor, *, seen: Tensor | None = None) -> Tensor:
    """Rank of each target among all items, 1 being best: 1 + the number of other items not below it.

    Ties count against the target, and so does what cannot be ordered: an item scored NaN stands above
    every target, a target scored NaN ranks last (V). A target among its seen items ranks V.

    Args:
        states: [N, d].
        targets: [N] int64 in 1…V.
        seen: [N, L] item ids, 0 for none, whose logits become −inf.

    Returns:
        [N] int64 in 1…V. Extra memory is bounded by `BLOCK_BYTES` of logits, or one row if that is more.
    """
    shared = table.catalog.share(len(states), states.device)
    targets = shared.gather(targets)
    ranks = torch.empty_like(targets)
    for rows, logits in _logits_by_block(states, table, seen, shared):
        ranks[rows] = ranks_in(logits, targets[rows], table.catalog)
    return ranks[shared.own]


def top_items(states: Tensor, table: TableLike, n: int, *, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The n best items of each example, best first; among equal scores the lower id comes first.

    Arguments and memory as in `target_ranks`. NaN counts as −inf. Where fewer than n items are unseen,
    the last of the n have score −inf.

    Returns:
        items [N, n] int64 in 1…V and their scores [N, n].

    Raises:
        UserError: n is not in 1…V.
    """
    num_items = table.catalog.num_items
    if not 1 <= n <= num_items:
        raise UserError(f"The best {n} of {num_items} items were asked for; ask for 1…{num_items}.")
    shared = table.catalog.share(len(states), states.device)
    by_block = _logits_by_block(states, table, seen, shared)
    blocks = [best_in(logits, n, table.catalog) for _, logits in by_block]
    if not blocks:
        return states.new_empty((0, n), dtype=torch.int64), states.new_empty((0, n))
    items, scores = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return items[shared.own], scores[shared.own]


def ranks_in(logits: Tensor, targets: Tensor, catalog: CatalogSlice) -> Tensor:
    """Rank [N] of each target among the logits of its row, as `target_ranks` counts it.

    All ranks of the catalog group have the logits and targets of the same examples, and get the same ranks.
    """
    below = (logits < catalog.at_items(logits, targets).unsqueeze(1)).sum(1)
    return catalog.num_items - catalog.all_sum(below)


def best_in(logits: Tensor, n: int, catalog: CatalogSlice) -> tuple[Tensor, Tensor]:
    """The n ≤ V best items [N, n] of logits and their scores, as `top_items` orders them.

    All ranks of the catalog group have the logits of the same examples, and get the same items.
    """
    logits = logits.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    columns, scores = _top_of_block(logits, min(n, logits.shape[1]))
    return _merged(columns + (1 + catalog.first), scores, n, catalog)


def _merged(items: Tensor, scores: Tensor, n: int, catalog: CatalogSlice) -> tuple[Tensor, Tensor]:
    """The n best [N, n] of what each slice found best [N, n or less]; nothing stands behind every item."""
    if catalog.is_whole:
        return items, scores
    missing = n - items.shape[1]
    items = F.pad(items, (0, missing), value=catalog.num_items + 1)
    scores = F.pad(scores, (0, missing), value=-math.inf)
    items, order = torch.cat(catalog.group.all_gather(items).unbind(), dim=1).sort(dim=1)
    scores = torch.cat(catalog.group.all_gather(scores).unbind(), dim=1).gather(1, order)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return items.gather(1, order[:, :n]), scores[:, :n]


def hide_seen(logits: Tensor, seen: Tensor, catalog: CatalogSlice) -> Tensor:
    """Set the logits of each row's seen items [N, L] (0 for none) to −inf, in place; the logits."""
    places, here = catalog.places(seen)
    row, position = here.nonzero(as_tuple=True)
    logits[row, places[row, position]] = -math.inf
    return logits


def rows_in_block(num_items: int, itemsize: int, device: torch.device) -> int:
    """Rows of V numbers that stay under `BLOCK_BYTES`, and at least one."""
    return max(1, BLOCK_BYTES.get(device.type, BLOCK_BYTES["cpu"]) // (num_items * itemsize))


def _logits_by_block(
    states: Tensor, table: TableLike, seen: Tensor | None, shared: SharedRows
) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the examples with their logits in at least single precision, seen items at −inf.

    The examples are those of all ranks of the catalog group, and the slices are the same on each of them.
    """
    catalog = table.catalog
    states, seen = shared.gather(states), None if seen is None else shared.gather_ids(seen)
    dtype = torch.promote_types(states.dtype, torch.float32)
    weight = table.weight.to(dtype)
    bias = None if table.bias is None else table.bias.to(dtype)
    block = rows_in_block(catalog.most_rows, dtype.itemsize, states.device)
    for start in range(0, len(states), block):
        rows = slice(start, min(start + block, len(states)))
        logits = F.linear(states[rows].to(dtype), weight, bias)
        yield rows, logits if seen is None else hide_seen(logits, seen[rows], catalog)


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
