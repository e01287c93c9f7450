"""The target's rank and the best items in the full catalog.

Shapes: N examples, V items, d width, L seen items. A table may be this rank's slice of the catalog: all ranks of its
group then rank together, each for examples of its own. Logits are [N, V], or those of the slice's items.
"""

from numbers import Integral

from torch import Tensor

from csrec_dist.distributed.catalog import TableLike
from csrec_dist.errors import UserError, quoted
from csrec_dist.evaluation.logits import Logits
from csrec_dist.evaluation.sweep import SweepRequest, sweep


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
    all_seen = None if seen is None else shared.gather_ids(seen)
    request = SweepRequest(shared.gather(targets).unsqueeze(1), seen=all_seen)
    return sweep(Logits([shared.gather(states)], [table]), request).ranks[shared.local, 0]


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
    if not isinstance(n, Integral) or isinstance(n, bool):
        raise UserError(f"The number of best items is a whole number of 1…{num_items}, not {quoted(n)}.")
    if not 1 <= n <= num_items:
        raise UserError(f"The best {n} of {num_items} items were asked for; ask for 1…{num_items}.")
    shared = table.catalog.share(len(states), states.device)
    request = SweepRequest(top_n=n, seen=None if seen is None else shared.gather_ids(seen))
    best = sweep(Logits([shared.gather(states)], [table]), request)
    return best.items[shared.local], best.scores[shared.local]
