"""How much the members of a teacher module differ: in what they would recommend, and in their probabilities.

Shapes: N examples, V items, M members, P = M (M − 1)/2 pairs of members.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from csrec_dist.data.batches import Batch
from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.evaluation.per_row import Columns
from csrec_dist.evaluation.ranking import best_in, hide_seen
from csrec_dist.evaluation.scoring import logits_by_block, question
from csrec_dist.models import SequentialModel


def differences(
    logits: Sequence[Tensor], top_n: Sequence[int], catalog: CatalogSlice, seen: Tensor | None = None
) -> Tensor:
    """disagreement@n for each n, then the Jensen–Shannon divergence, of each pair of members: [N, P, values] float64.

    Args:
        logits: of each member, [N, V] or a slice's. They are left as they are. All ranks of the catalog group have
            the logits of the same examples, and get the same values.
        seen: [N, L] item ids, 0 for none, that are not recommended. Probabilities are of the whole catalog.
    """
    wide = [part.double() for part in logits]
    logs = [part - catalog.log_sum_exp(part.logsumexp(dim=1)).unsqueeze(1) for part in wide]
    divergences = torch.stack([jensen_shannon(one, other, catalog) for one, other in combinations(logs, 2)], dim=1)
    lists = [recommended(part, max(top_n), seen, catalog) for part in logits]
    disagreements = [torch.stack([disagreement(*pair, n) for n in top_n], dim=1) for pair in combinations(lists, 2)]
    return torch.cat([torch.stack(disagreements, dim=1), divergences.unsqueeze(2)], dim=2)


def recommended(logits: Tensor, n: int, seen: Tensor | None, catalog: CatalogSlice) -> Tensor:
    """The best items [N, min(n, V)] that are not among the seen ones [N, L]; 0 where there are no more."""
    shown = logits if seen is None else hide_seen(logits.clone(), seen, catalog)
    items, scores = best_in(shown, min(n, catalog.num_items), catalog)
    return items.masked_fill(scores == -math.inf, 0)


def disagreement(one: Tensor, other: Tensor, n: int) -> Tensor:
    """1 − overlap/n of two lists' first n items: [N] from [N, ·] item ids, best first, 0 for none.

    Where fewer than n items can be recommended, n is their number.
    """
    one, other = one[:, :n], other[:, :n]
    overlap = ((one.unsqueeze(2) == other.unsqueeze(1)) & (one > 0).unsqueeze(2)).sum((1, 2)).double()
    held = (one > 0).sum(1)
    return torch.where(held > 0, 1 - overlap / held.clamp(min=1), 0.0)


def jensen_shannon(one: Tensor, other: Tensor, catalog: CatalogSlice) -> Tensor:
    """½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q)/2, in nats, between 0 and ln 2: [N] from log p and log q [N, V]."""
    middle = torch.logaddexp(one, other) - math.log(2)
    halves = one.exp() * (one - middle) + other.exp() * (other - middle)
    return catalog.all_sum(halves.sum(1)).div(2).clamp(min=0)


class DiversitySums:
    """Sums of the pairs' differences, which add up over batches and ranks."""

    def __init__(self, members: Sequence[str], top_n: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.pairs = list(combinations(members, 2))
        self.top_n = tuple(top_n)
        self.names = [*(f"disagreement@{n}" for n in top_n), "jensen_shannon"]
        self.tensor = torch.zeros(len(self.pairs), 1 + len(self.names), dtype=torch.float64, device=device)
        """[P, 1 + values]: the number of examples, then the sums in the order of `names`."""

    def update(self, values: Tensor) -> None:
        """Add the differences [N, P, values] of some examples."""
        self.tensor[:, 0] += len(values)
        self.tensor[:, 1:] += values.sum(0)

    def compute(self) -> dict[str, Any]:
        """Means over examples and pairs by name, the number of examples, and the means of each pair."""
        means = self.tensor[:, 1:] / self.tensor[:, :1]
        pairs = [
            {"members": list(pair), **dict(zip(self.names, row.tolist(), strict=True))}
            for pair, row in zip(self.pairs, means, strict=True)
        ]
        count = round(float(self.tensor[0, 0]))
        return {"count": count, **dict(zip(self.names, means.mean(0).tolist(), strict=True)), "pairs": pairs}


@torch.no_grad()
def compare_members(
    models: Sequence[SequentialModel], batches: Iterable[Batch], sums: DiversitySums, *, exclude_seen: bool
) -> Iterator[Columns]:
    """Add the members' differences on some batches to `sums`; each row's means over the pairs, as columns.

    Where the members hold slices of the catalog, all ranks that share it bring equally many batches, some of them
    blank.
    """
    catalog = models[0].item_table.catalog
    for batch in batches:
        histories, _ = question(batch)
        shared = catalog.share(len(histories), histories.device)
        seen = shared.gather_ids(histories)
        blocks = [
            differences(logits, sums.top_n, catalog, seen[rows] if exclude_seen else None)
            for rows, logits in logits_by_block(models, histories, shared)
        ]
        values = torch.cat(blocks)[shared.own]
        if not batch.weights.any():
            continue
        sums.update(values)
        columns = dict(zip(sums.names, values.mean(1).T.cpu().numpy(), strict=True))
        yield {"row": batch.rows.cpu().numpy(), "user": batch.users.cpu().numpy(), **columns}
