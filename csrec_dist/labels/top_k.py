"""Top-k labels of rows: logits over the whole catalog by blocks of items, the largest kept, the rest summed up.

Letters: n examples, D the sum of the members' widths, V items, K kept. The result does not depend on how the catalog is
cut into slices: products are taken over blocks of items with the same bounds and shape everywhere, and exponentials are
summed as whole numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from csrec_dist.distributed.best_items import best_in
from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.distributed.layout import split_ranks
from csrec_dist.labels.labeller import Labeller

BLOCK_ITEMS = 4096
"""Items of one product."""
CHUNK_ROWS = 256
"""Examples of one product at most; fewer where their logits would take more than CHUNK_BYTES."""
CHUNK_BYTES = 64 * 2**20
ONE = float(1 << 36)
"""The largest exponential of a row, in sums of whole numbers: 2²⁶ items of this size fit 63 bits."""


@dataclass(frozen=True)
class ItemBlock:
    """Rows first … first + n − 1 of the members' tables side by side: `weight` [n, D] and `bias` [n] or None.

    Where a block reaches beyond this rank's slice, its other rows are 0.
    """

    first: int
    weight: Tensor
    bias: Tensor | None

    def within(self, rows: slice) -> tuple[slice, slice]:
        """The block's rows that are among the table's `rows`, and their positions in these."""
        low, high = max(self.first, rows.start), min(self.first + len(self.weight), rows.stop)
        return slice(low - self.first, high - self.first), slice(low - rows.start, high - rows.start)


def item_blocks(labeller: Labeller, has_bias: bool) -> list[ItemBlock]:
    """The blocks that overlap this rank's slice. All ranks of the column make them together."""
    num_items, rows, blocks = labeller.dataset.num_items, labeller.rows, []
    for first in range(0, num_items, BLOCK_ITEMS):
        stop = min(first + BLOCK_ITEMS, num_items)
        low, high = max(first, rows.start), min(stop, rows.stop)
        if low < high:
            tables = {}
            for name, part in labeller.slice_rows(first, stop, has_bias).items():
                # A block has the same bounds on any number of ranks, since a product's rounding depends on its shape.
                tables[name] = part.new_zeros(stop - first, *part.shape[1:])
                tables[name][low - first : high - first] = part
            blocks.append(ItemBlock(first, tables["item_weight"], tables.get("item_bias")))
    return blocks


@dataclass(frozen=True)
class TopKRows:
    """Finds the K best items of rows; `blocks` are those of this rank's slice of the catalog.

    All ranks of a catalog group call it together, each for any number of examples of its own.
    """

    blocks: list[ItemBlock]
    catalog: CatalogSlice
    keep: int
    temperature: float

    @property
    def num_items(self) -> int:
        """V."""
        return self.catalog.num_items

    @property
    def rows(self) -> slice:
        """The slice."""
        return self.catalog.rows

    @torch.no_grad()
    def __call__(self, states: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """`items` [n, K] int32, best first, `values` [n, K] and `sums` [n, 2] of examples of these states and targets.

        Among equal logits the lower item comes first. A target that is not among the K takes the last place. `sums` are
        the largest logit, and Σ exp((e_j − largest) / T) over the items that are not among the K, in float64.
        """
        shared = self.catalog.share(len(states), states.device)
        by_rank = [shared.gather(rows).split(shared.counts) for rows in (states, targets)]
        # Every rank goes through the rows of all ranks, since each has a slice of the items only; it returns its own.
        results = [self._top_rows(*rows) for rows in zip(*by_rank, strict=True)]
        return results[self.catalog.group.rank]

    def logits(self, states: Tensor) -> Tensor:
        """Logits [n, n items of the slice] in fp32."""
        logits = states.new_empty(len(states), self.rows.stop - self.rows.start)
        for block in self.blocks:
            product = states @ block.weight.T
            if block.bias is not None:
                product += block.bias
            of_block, of_slice = block.within(self.rows)
            logits[:, of_slice] = product[:, of_block]
        return logits

    def _top_rows(self, states: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The result of `__call__` for one rank's rows, a chunk of them at a time."""
        chunks = [
            {
                "items": states.new_empty(0, self.keep, dtype=torch.int32),
                "values": states.new_empty(0, self.keep),
                "sums": states.new_empty(0, 2, dtype=torch.float64),
            }
        ]
        for rows in row_chunks(len(states), self.num_items):
            aligned = states[rows].clone(memory_format=torch.contiguous_format)  # products may round by alignment
            chunks.append(self._top_of(self.logits(aligned), targets[rows]))
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def _top_of(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The result of `__call__` from the slice's logits."""
        largest = logits.amax(1) if logits.shape[1] else logits.new_full((len(logits),), -torch.inf)
        largest = self.catalog.all_max(largest).double()
        total = self.catalog.all_sum(self._whole(logits, largest).sum(1))
        items, values = best_in(logits, self.keep, self.catalog)
        of_targets = self.catalog.at_items(logits, targets)
        # The student's loss reads the target's label, so a target outside the K replaces the last of them.
        has_target = (items == targets.unsqueeze(1)).any(1)
        items[:, -1] = torch.where(has_target, items[:, -1], targets)
        values[:, -1] = torch.where(has_target, values[:, -1], of_targets)
        others = (total - self._whole(values, largest).sum(1)).clamp_min(0) * (self.keep < self.num_items)
        return {"items": items.int(), "values": values, "sums": torch.stack([largest, others / ONE], 1)}

    def _whole(self, logits: Tensor, largest: Tensor) -> Tensor:
        """exp((e − largest) / T) as whole numbers, whose sums do not depend on their order."""
        terms = (logits.double() - largest.unsqueeze(1)).div_(self.temperature).exp_()
        return terms.mul_(ONE).round_().long()


def row_chunks(num_rows: int, num_items: int) -> list[slice]:
    """Rows of n examples that are multiplied together: their number depends on V only."""
    size = max(1, min(CHUNK_ROWS, CHUNK_BYTES // (8 * num_items)))
    return [slice(first, min(first + size, num_rows)) for first in range(0, num_rows, size)]


def top_k_rows(labeller: Labeller, find: TopKRows, shard: int) -> Iterator[dict[str, Tensor]]:
    """The results of `find` for the shard's examples, in the order of their ids, on every rank of the column.

    Each rank of the column computes a part of the rows.
    """
    for states, targets in labeller.gathered_rows(shard):
        chunks = row_chunks(len(states), find.num_items)
        chunk_indices = split_ranks(len(chunks), labeller.group.size)[labeller.group.rank]
        rows = slice(chunks[chunk_indices[0]].start, chunks[chunk_indices[-1]].stop) if chunk_indices else slice(0, 0)
        top = find(states[rows], targets[rows])
        yield {name: labeller.group.gather_rows(part)[0] for name, part in top.items()}


def find_nothing(labeller: Labeller, find: TopKRows) -> None:
    """Enter the collectives of a search in which this rank has no rows, for the other ranks of its catalog group."""
    no_states = torch.zeros(0, sum(labeller.combination.widths), device=labeller.device)
    find(no_states, torch.zeros(0, dtype=torch.int64, device=labeller.device))


def log_sums(values: Tensor, sums: Tensor, temperature: float) -> Tensor:
    """log Σ exp(e_j / T) [n] of whole rows in fp32, from the K best logits as they are stored and `sums`."""
    largest, others = sums.unbind(1)
    of_best = (values.double() - largest.unsqueeze(1)).div_(temperature).exp_().sum(1)
    return ((of_best + others).log_() + largest / temperature).float()
