"""The target's rank and the best items in the full catalog.

Shapes: N examples, V items, d width, L seen items. A table may be this rank's slice of the catalog: all ranks of its
group then rank together, each for examples of its own. Logits are [N, V], or those of the slice's items.
"""

import math

from torch import Tensor

from csrec_dist.distributed.catalog import CatalogSlice, TableLike
from csrec_dist.errors import UserError
from csrec_dist.evaluation.logits import Logits
from csrec_dist.evaluation.sweep import Asked, merged, sweep


def target_ranks(states: Tensor, table: TableLike, targets: Tensor, *, seen: Tensor | None = None) -> Tensor:
    """Rank of each target among all items, 1 being best: 1 + the number of other items not below it.

    Ties count against the target, and so does what cannot be ordered: an item scored NaN stands above
    every target, a target scored NaN ranks last (V). A target among its seen items ranks V.

    Args:
        states: [N, d].
        targets: [N] int64 in 1…V.
        seen: [N, L] item ids, 0 for none, whose logits become −inf.

    Returns:
        [N] int64 in 1…V. Memory beyond the arguments is bounded, whatever N and V are (see `Logits`).
    """
    shared = table.catalog.share(len(states), states.device)
    asked = Asked(shared.gather(targets).unsqueeze(1), seen=None if seen is None else shared.gather_ids(seen))
    return sweep(Logits([shared.gather(states)], [table]), asked).ranks[shared.own, 0]


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
    asked = Asked(top_n=n, seen=None if seen is None else shared.gather_ids(seen))
    found = sweep(Logits([shared.gather(states)], [table]), asked)
    return found.items[shared.own], found.scores[shared.own]


def best_in(logits: Tensor, n: int, catalog: CatalogSlice) -> tuple[Tensor, Tensor]:
    """The n ≤ V best items [N, n] of logits and their scores, as `top_items` orders them.

    All ranks of the catalog group have the logits of the same examples, and get the same items.
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
