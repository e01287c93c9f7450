"""How much the members of a teacher module differ: in the items that they recommend, and in their probabilities.

Shapes: N examples, V items, M members, P = M (M − 1)/2 pairs of members.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from csrec_dist.data.batches import Batch, question
from csrec_dist.evaluation.logits import Logits
from csrec_dist.evaluation.per_row import Columns
from csrec_dist.evaluation.scoring import logits_of
from csrec_dist.evaluation.sweep import SweepRequest, sweep
from csrec_dist.models import SequentialModel

TINY = torch.finfo(torch.float64).tiny


def differences(members: Sequence[Logits], top_n: Sequence[int], seen: Tensor | None = None) -> Tensor:
    """disagreement@n for each n, then the Jensen–Shannon divergence, of each pair of members: [N, P, values] float64.

    Args:
        members: the logits of each, for the same N examples. All ranks of the catalog group have the logits of the same
            examples, and get the same values.
        seen: [N, L] item ids, 0 for none, that are not recommended. Probabilities are of the whole catalog.
    """
    request = SweepRequest(top_n=min(max(top_n), members[0].catalog.num_items), seen=seen, log_sums=True)
    results = [sweep(logits, request) for logits in members]
    lists = [result.items.masked_fill(result.scores == -math.inf, 0) for result in results]
    disagreements = [torch.stack([disagreement(*pair, n) for n in top_n], dim=1) for pair in combinations(lists, 2)]
    divergences = jensen_shannon(members, [result.log_sums for result in results])
    return torch.cat([torch.stack(disagreements, dim=1), divergences.unsqueeze(2)], dim=2)


def disagreement(first: Tensor, second: Tensor, n: int) -> Tensor:
    """1 − overlap/n of two lists' first n items: [N] from [N, ·] item ids, best first, 0 for none.

    Where fewer than n items can be recommended, n is their number.
    """
    first, second = first[:, :n], second[:, :n]
    overlap = ((first.unsqueeze(2) == second.unsqueeze(1)) & (first > 0).unsqueeze(2)).sum((1, 2)).double()
    lengths = (first > 0).sum(1)
    return torch.where(lengths > 0, 1 - overlap / lengths.clamp(min=1), 0.0)


def jensen_shannon(members: Sequence[Logits], log_sums: Sequence[Tensor]) -> Tensor:
    """½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q)/2 of each pair of members, in nats, between 0 and ln 2: [N, P].

    `log_sums` [N] are the members' over the catalog. The divergence is ½ Σ p ln p + ½ Σ q ln q − Σ m ln m over the
    items, in float64, because its terms nearly cancel.
    """
    like = members[0]  # all have the same rows, items and tiles
    pairs = list(combinations(range(len(members)), 2))
    entropies = torch.zeros(like.num_rows, len(members), dtype=torch.float64, device=like.device)
    mixed = torch.zeros(like.num_rows, len(pairs), dtype=torch.float64, device=like.device)
    for rows in like.block_rows(1):
        num_rows = rows.stop - rows.start
        for items in like.tile_items(num_rows, 1, 1) if like.num_rows else []:
            probabilities = []
            for column, (logits, sums) in enumerate(zip(members, log_sums, strict=True)):
                tile = torch.empty(num_rows, items.stop - items.start, dtype=logits.dtype, device=logits.device)
                logits.write(rows, items, tile)
                logs = tile.double().sub_(sums[rows].double().unsqueeze(1))
                probabilities.append(logs.exp())
                entropies[rows, column] += logs.mul_(probabilities[-1]).sum(1)
            for column, (p, q) in enumerate(combinations(probabilities, 2)):
                middle = (p + q).div_(2)
                mixed[rows, column] += middle.clamp(min=TINY).log_().mul_(middle).sum(1)  # 0 ln 0 = 0
    entropies, mixed = like.catalog.all_sum(entropies), like.catalog.all_sum(mixed)
    first, second = (entropies[:, list(side)] for side in zip(*pairs, strict=True))
    return ((first + second) / 2 - mixed).clamp(min=0)


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
    """Add the members' differences on some batches to `sums`; yields each row's means over the pairs, as columns.

    Where the members hold slices of the catalog, all ranks that share it bring equally many batches, some of them
    blank.
    """
    for batch in batches:
        histories, _ = question(batch)
        shared = models[0].item_table.catalog.share(len(histories), histories.device)
        seen = shared.gather_ids(histories) if exclude_seen else None
        members = [logits_of([model], histories, shared) for model in models]
        values = differences(members, sums.top_n, seen)[shared.local]
        if not batch.weights.any():
            continue
        sums.update(values)
        columns = dict(zip(sums.names, values.mean(1).T.cpu().numpy(), strict=True))
        yield {"row": batch.rows.cpu().numpy(), "user": batch.users.cpu().numpy(), **columns}
