"""The best items of rows over the slices of a catalog: each slice's best, and the best of all slices.

Shapes: N examples, V items. Logits are those of the slice's items.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from csrec_dist.distributed.catalog import CatalogSlice


def best_in(logits: Tensor, n: int, catalog: CatalogSlice) -> tuple[Tensor, Tensor]:
    """The n ≤ V best items [N, n] of logits and their scores, best first; among equal scores the lower id comes first.

    NaN counts as −inf. All ranks of the catalog group have the logits of the same examples, and get the same items.
    """
    logits = logits.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    columns, scores = _top_of_block(logits, min(n, logits.shape[1]))
    return merged(columns + (1 + catalog.first), scores, n, catalog)


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


def merged(items: Tensor, scores: Tensor, n: int, catalog: CatalogSlice) -> tuple[Tensor, Tensor]:
    """The n best items [N, n] of the catalog from the best items [N, n or fewer] of each slice.

    A slice with fewer than n items is filled up with −inf under an id above all others, which sorts last.
    """
    if catalog.is_whole or n == 0:
        return items, scores
    missing = n - items.shape[1]
    items = F.pad(items, (0, missing), value=catalog.num_items + 1)
    scores = F.pad(scores, (0, missing), value=-math.inf)
    # First by id, then stably by score: among equal scores the lower id stays first.
    items, order = torch.cat(catalog.group.all_gather(items).unbind(), dim=1).sort(dim=1)
    scores = torch.cat(catalog.group.all_gather(scores).unbind(), dim=1).gather(1, order)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return items.gather(1, order[:, :n]), scores[:, :n]
