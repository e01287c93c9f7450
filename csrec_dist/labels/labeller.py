"""The numbers of the soft labels: members' states and logits, put together by a column's collectives.

Letters: n examples at hand, D the sum of the members' widths, V items, m members. Every row is computed in
batches whose shapes depend on the shard only, so that its bytes do not depend on who computes it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from torch import Tensor

from csrec_dist.data.batches import Batch, blank_batch, to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed.groups import Group
from csrec_dist.distributed.layout import LabelColumn
from csrec_dist.errors import UserError
from csrec_dist.labels.combine import combined_bias, combined_labels, combined_states
from csrec_dist.labels.options import Combine
from csrec_dist.losses.soft_labels import FactoredLabels, MixtureLabels
from csrec_dist.models import ItemTable, SequentialModel, picked

BATCH_ROWS = 256
CHUNK_BYTES = 64 * 2**20


@dataclass
class Labeller:
    """One rank's part of a column: its members' models (by member index), and its place in the group.

    The models hold this rank's slice of their item tables, and the ranks of its group encode in step: `shard_states`
    waits for them before each batch, and `keep_step` encodes nothing until all have no batch left.
    """

    dataset: Dataset
    models: Mapping[int, SequentialModel]
    widths: tuple[int, ...]
    column: LabelColumn
    group: Group
    device: torch.device
    combine: Combine = "logit_mean"
    weights: tuple[float, ...] | None = None
    advance: Callable[[int], None] = field(default=lambda num_examples: None)

    def __post_init__(self) -> None:
        own = self.column.members_of(self.group.rank, len(self.widths))
        assert tuple(sorted(self.models)) == own, f"members {own} are this rank's, got {sorted(self.models)}"
        self.own_models = [self.models[member].to(self.device).eval() for member in own]
        self.catalog = self.own_models[0].item_table.catalog
        for member in own:
            _check_member(self.models[member], self.widths[member], self.dataset)

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
                self.catalog.most_calls(1, self.device)
                moved = batch.to(self.device)
                yield member_states(self.own_models, moved), moved.targets[moved.targets > 0]
            next_example += len(ids)
            self.advance(len(ids))

    def keep_step(self, also: Callable[[], object] = lambda: None) -> None:
        """Encode nothing, and do what `also` is, until no rank of the catalog group has a batch left.

        `also` stands for the collectives of that group that come with a batch.
        """
        while self.catalog.most_calls(0, self.device):
            member_states(self.own_models, blank_batch(self.dataset.window).to(self.device))
            also()

    def gathered_rows(self, shard: int) -> Iterator[tuple[Tensor, Tensor]]:
        """States [n, D] of all members side by side, times their share of the labels, and targets [n].

        Every rank of the column gets them.
        """
        for states, targets in self.shard_states(shard):
            yield self.gather_states(states), targets

    def gather_states(self, own: Sequence[Tensor]) -> Tensor:
        """All members' states [n, D], times their share of the labels, from this rank's members'."""
        gathered = self.gather_members(torch.cat(list(own), dim=1), self.widths)
        return combined_states(gathered, self.widths, self.combine, self.weights)

    def dense_rows(self, shards: Sequence[int | None]) -> Iterator[Tensor]:
        """Mean or weighted logits [n, V] of the shard at this rank's place in `shards`; None is a rank without a shard.

        All ranks go through the same chunks of all these shards, and each ends with the sum over the
        ranks of its own shard's rows. A chunk's rows depend on V only. Sums run in float64, where those of a
        few float32 numbers are exact unless their exponents differ by more than 28: their order, and so
        the number of ranks, does not show in the float32 result.
        """
        chunks = [self._logit_chunks(shard) if shard is not None else iter(()) for shard in shards]
        for step in zip_longest(*chunks):
            num_rows = max(len(logits) for logits in step if logits is not None)
            sums = torch.zeros(len(shards), num_rows, self.dataset.num_items, dtype=torch.float64, device=self.device)
            for place, logits in enumerate(step):
                if logits is not None:
                    sums[place, : len(logits)] = logits
            own = step[self.group.rank]
            summed = self.group.reduce_scatter_sum(sums)
            if own is not None:
                logits = summed[: len(own)]
                yield (logits if self.weights else logits / len(self.widths)).float()

    def item_rows(self, first: int, stop: int, has_bias: bool) -> dict[str, Tensor]:
        """Rows first … stop − 1 of the members' item tables: `item_weight` [n, D], and `item_bias` as it is kept.

        They are those of the catalog group's ranks one below the other, which is the order of the items.
        """
        found = self.slice_rows(first, stop, has_bias)
        shared = self.catalog.share(len(found["item_weight"]), self.device)
        return {name: shared.gather(rows) for name, rows in found.items()}

    @torch.no_grad()
    def slice_rows(self, first: int, stop: int, has_bias: bool) -> dict[str, Tensor]:
        """Those of the rows first … stop − 1 that are in this rank's slice, of all members."""
        low = max(first, self.rows.start) - self.rows.start
        held = slice(low, max(low, min(stop, self.rows.stop) - self.rows.start))
        tables = [model.item_table for model in self.own_models]
        own = torch.cat([table.weight[held] for table in tables], dim=1)
        weight = self.gather_members(own, self.widths)
        if not has_bias:
            return {"item_weight": weight}
        biases = self.gather_members(item_biases(tables, held), [1] * len(self.widths))
        return {"item_weight": weight, "item_bias": combined_bias(biases, self.combine, self.weights)}

    def has_bias(self) -> bool:
        """Whether any member's item table has a bias: the same answer on every rank of the column."""
        return any(self.group.gather_objects(any(model.item_table.bias is not None for model in self.own_models)))

    def gather_members(self, own: Tensor, widths: Sequence[int]) -> Tensor:
        """Columns of all members [n, Σ widths], in member order, from each rank's own [n, its members' widths].

        The ranks' widths may differ: they are padded for the collective and cut afterwards.
        """
        members = [self.column.members_of(rank, len(widths)) for rank in range(self.group.size)]
        padded = own.new_zeros(len(own), max(sum(widths[m] for m in part) for part in members))
        padded[:, : own.shape[1]] = own
        gathered = self.group.all_gather(padded)
        columns: dict[int, Tensor] = {}
        for rank, part in enumerate(members):
            pieces = gathered[rank].split([*(widths[m] for m in part), _rest(padded, part, widths)], dim=1)
            columns.update(zip(part, pieces, strict=False))
        return torch.cat([columns[member] for member in range(len(widths))], dim=1)

    def _logit_chunks(self, shard: int) -> Iterator[Tensor]:
        num_rows = chunk_rows(self.dataset.num_items)
        for states, _ in self.shard_states(shard):
            for first in range(0, len(states[0]), num_rows):
                yield self._summed_logits([part[first : first + num_rows] for part in states])

    @torch.no_grad()
    def _summed_logits(self, states: list[Tensor]) -> Tensor:
        """Σ e_k or Σ w_k e_k of this rank's members, each term being a float32 number so that their sum is exact."""
        summed = torch.zeros(len(states[0]), self.dataset.num_items, dtype=torch.float64, device=self.device)
        members = self.column.members_of(self.group.rank, len(self.widths))
        for member, model, part in zip(members, self.own_models, states, strict=True):
            logits = model.item_table.logits(part)
            summed += logits * self.weights[member] if self.weights else logits
        return summed


def chunk_rows(num_items: int) -> int:
    """Rows of float64 logits that stay under the byte budget of one shard."""
    return max(1, CHUNK_BYTES // (8 * num_items))


@torch.no_grad()
def member_states(models: Sequence[SequentialModel], batch: Batch) -> list[Tensor]:
    """Each model's states [N, d] of the batch's examples, in the order of `batch.example_ids`."""
    return picked(batch.targets > 0, *(model.encode(batch.histories) for model in models))


@torch.no_grad()
def live_labels(
    models: Sequence[SequentialModel],
    batch: Batch,
    combine: Combine = "logit_mean",
    weights: Sequence[float] | None = None,
) -> FactoredLabels | MixtureLabels:
    """The labels of the batch's examples from live members, in member order; puts the models into eval mode.

    They equal what the cache of these members holds.
    """
    tables = [model.item_table for model in models]
    states = member_states([model.eval() for model in models], batch)
    widths = [part.shape[1] for part in states]
    kept = combined_states(torch.cat(states, dim=1), widths, combine, weights)
    bias = None
    if any(table.bias is not None for table in tables):
        bias = combined_bias(item_biases(tables), combine, weights)
    weight = torch.cat([table.weight.detach() for table in tables], dim=1)
    return combined_labels(kept, weight, bias, widths, combine, weights)


def item_biases(tables: Sequence[ItemTable], rows: slice = slice(None)) -> Tensor:
    """The tables' biases side by side [V, tables] in float64, 0 where a table has none; of some rows."""
    biases = [
        table.weight.new_zeros(len(table.weight[rows])) if table.bias is None else table.bias[rows] for table in tables
    ]
    return torch.stack(biases, dim=1).detach().double()


def _rest(padded: Tensor, members: Sequence[int], widths: Sequence[int]) -> int:
    return padded.shape[1] - sum(widths[member] for member in members)


def _check_member(model: SequentialModel, width: int, dataset: Dataset) -> None:
    table = model.item_table
    num_items, own_width = table.catalog.num_items, table.weight.shape[1]
    if (num_items, own_width) != (dataset.num_items, width):
        raise UserError(
            f"A teacher's item table is [{num_items}, {own_width}], but the dataset has {dataset.num_items} items and "
            f"the teacher's width is {width}: it was trained on another dataset. Teach again."
        )
