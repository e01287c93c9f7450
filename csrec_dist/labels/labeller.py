"""The numbers of the soft labels: members' states and logits, gathered by a column's collectives.

Letters: n examples at hand, D the sum of the members' widths, V items, m members. Every row is computed in
batches whose shapes depend on the shard only, so that its bytes do not depend on who computes it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor

from csrec_dist.data.batches import blank_batch, to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed.groups import Group
from csrec_dist.distributed.layout import LabelColumn
from csrec_dist.errors import UserError
from csrec_dist.labels.combine import Combination, item_biases, member_states
from csrec_dist.models import ItemTable, SequentialModel

BATCH_ROWS = 256
CHUNK_BYTES = 64 * 2**20
"""Float64 logits of one shard that are summed over the ranks at once."""
BLOCK_ITEMS = 1 << 16
"""Items of one product in dense labels."""


@dataclass
class Labeller:
    """One rank's part of a column: its members' models (by member index), and its place in the group.

    The models hold this rank's slice of their item tables, and the ranks of its catalog group encode in step:
    `shard_states` meets them before each batch, and `keep_step` encodes blank batches until no rank has one left.
    """

    dataset: Dataset
    models: Mapping[int, SequentialModel]
    combination: Combination
    column: LabelColumn
    group: Group
    device: torch.device
    advance: Callable[[int], None] = field(default=lambda num_examples: None)

    def __post_init__(self) -> None:
        widths = self.combination.widths
        self.members = self.column.members_of(self.group.rank, len(widths))
        assert tuple(sorted(self.models)) == self.members, f"{self.members} are this rank's, got {sorted(self.models)}"
        self.local_models = [self.models[member].to(self.device).eval() for member in self.members]
        self.catalog = self.local_models[0].item_table.catalog
        for member, model in zip(self.members, self.local_models, strict=True):
            table = model.item_table
            shape = table.catalog.num_items, table.weight.shape[1]
            if shape != (self.dataset.num_items, widths[member]):
                raise UserError(
                    f"A teacher's item table is [{shape[0]}, {shape[1]}], but the dataset has "
                    f"{self.dataset.num_items} items and the teacher's width is {widths[member]}: it was trained on "
                    "another dataset. Teach again."
                )

    @property
    def rows(self) -> slice:
        """The rows of the item tables that the models hold."""
        return self.catalog.rows

    def shard_states(self, shard: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        """States [n, d] of this rank's members for the shard's examples, in the order of their ids, and targets [n]."""
        next_example = self.dataset.splits["train"].first_examples[shard]
        rows = self.dataset.stream("train", batch_size=BATCH_ROWS, shards=[shard])
        for batch in self.group.watch.reading(map(to_batch, rows)):
            ids = batch.example_ids
            if not torch.equal(ids, torch.arange(next_example, next_example + len(ids))):
                raise UserError(
                    f"{self.dataset.shard_file('train', shard)}: its example offsets do not run on from "
                    f"{next_example}. Prepare the dataset again."
                )
            if len(ids):
                # Encoding enters collectives of the catalog group. Its ranks may have fewer batches left: each says
                # here that one more comes, and `keep_step` answers for those that have none.
                self.catalog.most_calls(1, self.device)
                moved = batch.to(self.device)
                yield member_states(self.local_models, moved), moved.targets[moved.targets > 0]
            next_example += len(ids)
            self.advance(len(ids))

    def keep_step(self, also: Callable[[], object] = lambda: None) -> None:
        """Encode blank batches, calling `also` after each, until no rank of the catalog group has a batch left.

        `also` enters the collectives of that group that follow a batch.
        """
        while self.catalog.most_calls(0, self.device):
            member_states(self.local_models, blank_batch(self.dataset.window).to(self.device))
            also()

    def gathered_rows(self, shard: int) -> Iterator[tuple[Tensor, Tensor]]:
        """States [n, D] of all members side by side, times their share of the labels, and targets [n].

        Every rank of the column gets them.
        """
        for states, targets in self.shard_states(shard):
            yield self.gather_states(states), targets

    def gather_states(self, states: Sequence[Tensor]) -> Tensor:
        """All members' states [n, D], times their share of the labels, from this rank's members'."""
        gathered = self.gather_members(torch.cat(list(states), dim=1), self.combination.widths)
        return self.combination.states(gathered)

    def dense_rows(self, shards: Sequence[int | None]) -> Iterator[Tensor]:
        """Mean or weighted logits [n, V] of this rank's shard in `shards`, one for each rank; None: it has no shard.

        All ranks go through the same chunks of all these shards, and each ends with the sum over the ranks of its own
        shard's rows. The number of rows in a chunk depends on V only. Sums are taken in float64, where those of a few
        float32 numbers are exact unless their exponents differ by more than 28: their order, and so the number of
        ranks, does not show in the float32 result.
        """
        num_members, weights = len(self.combination.widths), self.combination.weights
        chunks = [self._logit_chunks(shard) if shard is not None else iter(()) for shard in shards]
        for step in zip_longest(*chunks):
            num_rows = max(len(logits) for logits in step if logits is not None)
            sums = torch.zeros(len(shards), num_rows, self.dataset.num_items, dtype=torch.float64, device=self.device)
            for position, logits in enumerate(step):
                if logits is not None:
                    sums[position, : len(logits)] = logits
            local_logits = step[self.group.rank]
            summed = self.group.reduce_scatter_sum(sums)
            if local_logits is not None:
                logits = summed[: len(local_logits)]
                yield (logits if weights else logits / num_members).float()

    @torch.no_grad()
    def _logit_chunks(self, shard: int) -> Iterator[Tensor]:
        """Σ e_k or Σ w_k e_k [n, V] of this rank's members, in float64, for some of the shard's rows at a time.

        Each term is a float32 number, so that the sum over all members is exact. Where the tables are in slices, as
        many chunks of a batch are made as the rank of the catalog group with the most rows has.
        """
        num_rows = max(1, CHUNK_BYTES // (8 * self.dataset.num_items))
        for states, _ in self.shard_states(shard):
            num_chunks = self.catalog.most_calls(-(-len(states[0]) // num_rows), self.device)
            for first in range(0, num_chunks * num_rows, num_rows):
                logits = self._summed_logits([part[first : first + num_rows] for part in states])
                if len(logits):
                    yield logits

    @torch.no_grad()
    def no_logits(self) -> None:
        """Enter the collectives of a batch's chunks without rows, for the other ranks of the catalog group."""
        for _ in range(self.catalog.most_calls(0, self.device)):
            self._summed_logits([torch.zeros(0, model.config.width, device=self.device) for model in self.local_models])

    def _summed_logits(self, states: Sequence[Tensor]) -> Tensor:
        """Σ e_k or Σ w_k e_k [n, V] in float64 of the states [n, d] of this rank's members.

        From slices, each rank multiplies the states of all ranks of the catalog group with its rows. The products have
        the same shapes, and so the same bits, as from whole tables: those of one rank's states and one block of items.
        """
        shared, weights = self.catalog.share(len(states[0]), self.device), self.combination.weights
        by_rank = [shared.gather(part).split(shared.counts) for part in states]
        num_items = self.rows.stop - self.rows.start
        columns = torch.zeros(sum(shared.counts), num_items, dtype=torch.float64, device=self.device)
        for first in range(0, self.dataset.num_items, BLOCK_ITEMS):
            stop = min(first + BLOCK_ITEMS, self.dataset.num_items)
            low, high = max(first, self.rows.start), min(stop, self.rows.stop)
            if low >= high:
                continue
            of_slice, of_block = slice(low - self.rows.start, high - self.rows.start), slice(low - first, high - first)
            for member, model, parts in zip(self.members, self.local_models, by_rank, strict=True):
                weight, bias = _block(model.item_table, of_slice, of_block, stop - first)
                for summed, part in zip(columns.split(shared.counts), parts, strict=True):
                    logits = F.linear(part.clone(memory_format=torch.contiguous_format), weight, bias)[:, of_block]
                    summed[:, of_slice] += logits * weights[member] if weights else logits
        return shared.exchange_rows(columns)

    @torch.no_grad()
    def slice_rows(self, first: int, stop: int, has_bias: bool) -> dict[str, Tensor]:
        """Rows first … stop − 1 of all members' item tables, as far as they are in this rank's slice.

        `item_weight` [n, D], and `item_bias` as it is stored.
        """
        low = max(first, self.rows.start) - self.rows.start
        rows = slice(low, max(low, min(stop, self.rows.stop) - self.rows.start))
        tables = [model.item_table for model in self.local_models]
        weights = torch.cat([table.weight[rows] for table in tables], dim=1)
        gathered = {"item_weight": self.gather_members(weights, self.combination.widths)}
        if has_bias:
            biases = self.gather_members(item_biases(tables, rows), [1] * len(self.combination.widths))
            gathered["item_bias"] = self.combination.bias(biases)
        return gathered

    def has_bias(self) -> bool:
        """Whether any member's item table has a bias: the same answer on every rank of the column."""
        return any(self.group.gather_objects(any(model.item_table.bias is not None for model in self.local_models)))

    def gather_members(self, columns: Tensor, widths: Sequence[int]) -> Tensor:
        """Columns of all members [n, Σ widths], in member order, from each rank's columns [n, its members' widths].

        The ranks' widths may differ: they are padded for the collective and cut afterwards.
        """
        by_rank = [self.column.members_of(rank, len(widths)) for rank in range(self.group.size)]
        width = max(sum(widths[member] for member in members) for members in by_rank)
        padded = columns.new_zeros(len(columns), width)
        padded[:, : columns.shape[1]] = columns
        of_member: dict[int, Tensor] = {}
        for members, part in zip(by_rank, self.group.all_gather(padded), strict=True):
            sizes = [widths[member] for member in members]
            of_member.update(zip(members, part[:, : sum(sizes)].split(sizes, dim=1), strict=True))
        return torch.cat([of_member[member] for member in range(len(widths))], dim=1)


def _block(table: ItemTable, of_slice: slice, of_block: slice, num_items: int) -> tuple[Tensor, Tensor | None]:
    """Rows of a table as they lie in a block of so many items; the block's other rows, of other slices, are 0."""
    weight, bias = table.weight[of_slice], None if table.bias is None else table.bias[of_slice]
    if len(weight) == num_items:
        return weight, bias
    whole = weight.new_zeros(num_items, weight.shape[1])
    whole[of_block] = weight
    if bias is not None:
        bias = F.pad(bias, (of_block.start, num_items - of_block.stop))
    return whole, bias
