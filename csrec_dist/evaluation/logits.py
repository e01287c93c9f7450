"""The logits of rows over the catalog, of a model or of several together, a tile of them at a time.

Shapes: N rows, R of a block, V items, C of a tile, d width. A table may be this rank's slice of the catalog: all ranks
of its group then have the same rows, each the logits of its own items.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from csrec_dist.distributed.catalog import TableLike
from csrec_dist.evaluation.visit import has_kernel

TILE_BYTES = {"cpu": 4 << 20, "cuda": 1 << 28, "kernel": 1 << 31}
"""Bytes of a tile, of which two or three exist at once: on a CPU they stay in the cache while they are read. Where the
kernel visits tiles one exists, and fewer of them are less work for the host, which a GPU would wait for."""
BLOCK_ROWS = {"cpu": 256, "cuda": 4096}
"""Rows of a block. Each block reads the item tables once: with few rows that would take longer than the products."""
FEWEST_COLUMNS = 64
"""Narrower products are computed by other routines on a CPU, which sum in another order."""
FEWEST_TERMS = 16**3 + 1
"""With fewer multiplications a product stays with MKL where torch leaves larger ones to oneDNN."""


class Logits:
    """Logits [N, V], or those of the slice's items, which are the sum of the models'; in at least single precision."""

    def __init__(
        self, states: Sequence[Tensor], tables: Sequence[TableLike], weights: Sequence[float] = (1.0,)
    ) -> None:
        """Of each model the states [N, d], its table, and the weight of its logits."""
        self.catalog = tables[0].catalog
        self.dtype = torch.promote_types(states[0].dtype, torch.float32)
        self.device, self.num_rows = states[0].device, len(states[0])
        # The weights go into the states and biases: [N, d] numbers instead of [N, V] logits.
        self._states = [part.detach().to(self.dtype) * weight for part, weight in zip(states, weights, strict=True)]
        self._tables = [table.weight.detach().to(self.dtype) for table in tables]
        self._biases = [
            None if table.bias is None else table.bias.detach().to(self.dtype) * weight
            for table, weight in zip(tables, weights, strict=True)
        ]

    def block_rows(self, widest: int) -> Iterator[slice]:
        """The rows in order, a block at a time: of so many rows that a tile `widest` items wide has TILE_BYTES at most.

        The blocks are the same on all ranks of the catalog group, whose slices may differ in size.
        """
        rows = max(1, min(BLOCK_ROWS[self._kind], self._tile_size // max(min(widest, self.catalog.most_rows), 1)))
        return (slice(start, min(start + rows, self.num_rows)) for start in range(0, max(self.num_rows, 1), rows))

    def tile_items(self, num_rows: int, widest: int, lanes: int) -> list[slice]:
        """The slice's items in order, in even tiles of `num_rows` rows: `widest` or more, and a multiple of `lanes`.

        The last one is narrower by less than `lanes` for each tile: a narrow one would be slow, and have other bits.
        """
        num_items, most = self.catalog.num_rows, max(self._tile_size // max(num_rows, 1), lanes)
        num_tiles = max(min(-(-num_items // (most - most % lanes)), num_items // max(widest, 1)), 1)
        width = max(-(-num_items // (num_tiles * lanes)), 1) * lanes
        return [slice(start, min(start + width, num_items)) for start in range(0, num_items, width)]

    def write(self, rows: slice, items: slice | Tensor, out: Tensor) -> None:
        """Write the logits of some rows and of these items of the slice into `out` [R, C]."""
        self._write_product(0, rows, items, out)
        for model in range(1, len(self._states)):
            out.addmm_(self._states[model][rows], self._tables[model][items].T)
            if (bias := self._biases[model]) is not None:
                out.add_(bias[items])

    def _write_product(self, model: int, rows: slice, items: slice | Tensor, out: Tensor) -> None:
        states, table, bias = self._states[model][rows], self._tables[model][items].T, self._biases[model]
        if bias is None:
            torch.mm(states, table, out=out)
        else:
            torch.addmm(bias[items], states, table, out=out)

    def at_items(self, rows: slice, items: Tensor) -> Tensor:
        """The logit of one item (1…V) of each row [R], from the rank that has it; its bits are those of a tile.

        It is the diagonal of a product of matrices, with as many columns as it takes to be summed as a tile is. A
        scalar product would be summed in another order, and items of equal vectors would stand above or below one
        another by chance.
        """
        index, mask = self.catalog.local_rows(items)
        width = min(states.shape[1] for states in self._states)
        num_columns = max(FEWEST_COLUMNS, -(-FEWEST_TERMS // max(len(index) * width, 1)))
        # A tile of a small catalog is narrower itself.
        columns = F.pad(index, (0, max(min(num_columns, self.catalog.num_rows) - len(index), 0)))
        product = torch.empty(len(items), len(columns), dtype=self.dtype, device=self.device)
        if self.catalog.num_rows:
            self.write(rows, columns, product)
        return self.catalog.all_sum(product.diagonal().masked_fill(~mask, 0.0))

    @property
    def _kind(self) -> str:
        return self.device.type if self.device.type in BLOCK_ROWS else "cpu"

    @property
    def _tile_size(self) -> int:
        kind = "kernel" if has_kernel(self.device, self.dtype) else self._kind
        return TILE_BYTES[kind] // self.dtype.itemsize


class MeanOfProbabilities(Logits):
    """Logits whose softmax is the weighted mean of the models': log Σ_k w_k softmax(e_k)."""

    def __init__(
        self,
        states: Sequence[Tensor],
        tables: Sequence[TableLike],
        weights: Sequence[float],
        log_sums: Sequence[Tensor],
    ) -> None:
        """As `Logits`, with each model's log-sum-exp over the catalog [N]; the weights are positive."""
        super().__init__(states, tables, [1.0] * len(states))
        log_weights = torch.tensor(weights, dtype=self.dtype, device=self.device).log()
        # e_k + log w_k − log Σ exp e_k = log (w_k softmax(e_k))
        self._shifts = [weight - sums for weight, sums in zip(log_weights, log_sums, strict=True)]

    def write(self, rows: slice, items: slice | Tensor, out: Tensor) -> None:
        """As `Logits.write`."""
        self._write_product(0, rows, items, out)
        out.add_(self._shifts[0][rows].unsqueeze(1))
        scratch = torch.empty_like(out) if len(self._states) > 1 else out
        for model in range(1, len(self._states)):
            self._write_product(model, rows, items, scratch)
            scratch.add_(self._shifts[model][rows].unsqueeze(1))
            torch.logaddexp(out, scratch, out=out)
