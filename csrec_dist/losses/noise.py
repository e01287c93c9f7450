"""The noise matrix of CSRec-T (Eq. 11), and the main teacher's loss with it (Eq. 18)."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from csrec_dist.distributed.catalog import CatalogSlice, TableLike
from csrec_dist.losses.losses import Loss, Noise, robust
from csrec_dist.losses.soft_labels import SoftLabels
from csrec_dist.losses.tiles import TILE_BYTES
from csrec_dist.options import MatmulPrecision

Maximum = Literal["exact", "norm"]


class NoiseMatrix(nn.Module):
    """h̃ = M · Nᵀ over V × V pairs of items, of rank r, as parameters.

    `maximum` says what stands for max_k h̃_kj in Eq. 17:

    - "exact": h̃ at the row that was the largest in the last search, which is made every `refresh` steps, in V² · r
      operations and without a V × V tensor. With `refresh` 1 it is the maximum, and Eq. 15 is an upper bound; between
      searches the value can fall below the maximum, by as much as the parameters have moved, and the bound with it.
    - "norm": ‖N_j‖ · max_k ‖M_k‖, in V · r operations. By Cauchy–Schwarz it is at least the maximum, so Eq. 15 is
      always an upper bound, a looser one. For catalogs where V² · r is too much.

    Either depends on the parameters and the number of steps only, so ranks that hold equal parameters agree.

    The parameters and the maximisers are those of this rank's slice of the items. M's slices go round the catalog
    group for each search, and its rows at the maximisers at each step.
    """

    SLICED: ClassVar[tuple[str, ...]] = ("observed", "preferred", "maximisers")

    def __init__(
        self,
        catalog: CatalogSlice,
        rank: int,
        *,
        seed: int,
        maximum: Maximum = "exact",
        refresh: int = 1,
    ) -> None:
        """Normal parameters of standard deviation r^-½ from `seed`, so that h̃ has r^-½ too, whatever the slice."""
        super().__init__()
        assert refresh >= 1, f"refresh every {refresh} steps"
        generator = torch.Generator().manual_seed(seed)
        tables = catalog.drawn(2, rank, lambda rows: rows.normal_(generator=generator))
        self.observed, self.preferred = (nn.Parameter(table / rank**0.5) for table in tables)
        self.maximum, self.refresh, self.catalog = maximum, refresh, catalog
        if maximum == "exact":
            self.register_buffer("maximisers", torch.zeros(len(self.observed), dtype=torch.int64))
            self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        # The host's copy of `num_steps`, so that it need not read a GPU at each step; None until it has read it once.
        self._steps_done: int | None = None
        self.register_load_state_dict_post_hook(_forget_steps)

    def forward(self) -> Noise:
        """M, N and the column maxima, differentiable; in training mode this counts a step."""
        maxima = self._exact() if self.maximum == "exact" else self._norm()
        return Noise(self.observed, self.preferred, maxima)

    def _exact(self) -> Tensor:
        """h̃ at the maximisers of the last search; the gradient of max_k goes to the maximiser's row."""
        maximisers, num_steps = self.get_buffer("maximisers"), self.get_buffer("num_steps")
        if self._steps_done is None:
            self._steps_done = int(num_steps)
        if self._steps_done % self.refresh == 0:
            maximisers.copy_(self._search())
        if self.training:
            num_steps += 1
            self._steps_done += 1
        rows = maximisers.clone()  # the backward pass needs them after the next search has written over the buffer
        return (self.catalog.rows_at(self.observed, rows) * self.preferred).sum(1)

    def _search(self) -> Tensor:
        """argmax_k h̃_kj of each j, among all rows of M."""
        observed, preferred = self.observed.detach(), self.preferred.detach()
        values = preferred.new_full((len(preferred),), -torch.inf)
        rows = torch.zeros(len(preferred), dtype=torch.int64, device=preferred.device)
        for first, block in self.catalog.row_blocks(observed):
            block_values, block_rows = column_maxima(block, preferred)
            is_larger = block_values > values
            values = torch.where(is_larger, block_values, values)
            rows = torch.where(is_larger, block_rows + first, rows)
        return rows

    def _norm(self) -> Tensor:
        return torch.linalg.vector_norm(self.preferred, dim=1) * torch.linalg.vector_norm(self._longest())

    def _longest(self) -> Tensor:
        """The longest row [r] of M, the first of several."""
        norms = torch.linalg.vector_norm(self.observed.detach(), dim=1)
        norms = norms if len(norms) else norms.new_full((1,), -torch.inf)  # a rank may have no rows
        # The gradient goes to this row alone, as that of a maximum does: every rank must name the same one.
        rows = self.catalog.group.all_gather(norms.argmax() + self.catalog.first)
        # `rows[scalar]` would have the host of a GPU wait for the scalar.
        row = rows.index_select(0, self.catalog.group.all_gather(norms.max()).argmax().reshape(1))
        return self.catalog.rows_at(self.observed, row).squeeze(0)


def _forget_steps(module: nn.Module, _: Any) -> None:
    """Forget the host's number of steps once a checkpoint's was loaded."""
    module._steps_done = None  # type: ignore[assignment]


def column_maxima(observed: Tensor, preferred: Tensor) -> tuple[Tensor, Tensor]:
    """max_k and argmax_k (the first, where several are equal) of h̃_kj = M_k · N_j for each j, both [V].

    `observed` is M and `preferred` N, [V, r], or some rows of either. Exact, tile by tile: no V × V tensor.
    """
    most = TILE_BYTES.get(observed.device.type, TILE_BYTES["cpu"]) // observed.element_size()
    size = max(1, int(most**0.5))
    values = preferred.new_full((len(preferred),), -torch.inf)
    rows = torch.zeros(len(preferred), dtype=torch.int64, device=preferred.device)
    with torch.autocast(observed.device.type, enabled=False):
        for first in range(0, len(preferred), size):
            columns = slice(first, first + size)
            for start in range(0, len(observed), size):
                tile_values, tile_rows = (preferred[columns] @ observed[start : start + size].T).max(1)
                is_larger = tile_values > values[columns]
                values[columns] = torch.where(is_larger, tile_values, values[columns])
                rows[columns] = torch.where(is_larger, tile_rows + start, rows[columns])
    return values, rows


class RobustLoss(nn.Module):
    """The main teacher's loss ℓ_t (Eq. 18) as a training loss, with the noise matrix trained in it.

    Without `noise` the expectation term is left out.
    """

    def __init__(self, alpha: float, noise: NoiseMatrix | None = None) -> None:
        super().__init__()
        self.alpha, self.noise = alpha, noise

    def forward(
        self,
        states: Tensor,
        table: TableLike,
        targets: Tensor,
        labels: SoftLabels | None,
        weights: Tensor | None = None,
        precision: MatmulPrecision = "highest",
    ) -> Loss:
        """The loss of states [N, d] with targets and weights [N], whose `labels` are the side teacher's."""
        assert labels is not None
        noise = self.noise() if self.noise is not None else None
        options: dict[str, Any] = {"alpha": self.alpha, "noise": noise, "weights": weights, "precision": precision}
        return robust(states, table, targets, labels, **options)
