"""One pass over the catalog for all that is requested of some rows: target ranks, the best items, log-sum-exp.

Every tile of logits is computed once, and all that is requested is taken from it while it is in the cache: so no tensor
has the size of rows × items, and beside the products the time is that of a few reads from the cache.

Shapes: N rows, R of a block, V items, C of a tile, T targets of a row, L seen items, n best items.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from csrec_dist.distributed.best_items import merged
from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.evaluation.logits import Logits
from csrec_dist.evaluation.visit import LANES, has_kernel, visit

FEWEST_CHUNKS = 4
"""With this many chunks for each best item, the n-th largest maximum of a chunk is close below the n-th best logit."""


@dataclass(frozen=True)
class SweepRequest:
    """What to compute of rows of logits.

    `targets` [N, T], one or two items (1…V) of each row, are to be ranked; `top_n` ≤ V is the number of best items.
    Neither knows the `seen` items [N, L] (0 for none), whose logits count as −inf. `log_sums` and the `top` item are
    of all items, whether seen or not.
    """

    targets: Tensor | None = None
    top_n: int = 0
    seen: Tensor | None = None
    log_sums: bool = False
    top: bool = False


class SweepResult(NamedTuple):
    """Ranks int64 [N, T]; the best items and their logits [N, n]; log Σ exp [N]; the best item of all and its logit
    [N, 1]. What was not requested has no columns, or is −inf.
    """

    ranks: Tensor
    items: Tensor
    scores: Tensor
    log_sums: Tensor
    top_items: Tensor
    top_logits: Tensor


@torch.no_grad()
def sweep(logits: Logits, request: SweepRequest) -> SweepResult:
    """All that is requested, for all rows.

    A rank is 1 + the number of other items not below the target: ties count against it, and so does what cannot be
    ordered. An item scored NaN stands above every target, a target scored NaN ranks last (V), and so does a seen one.
    Among best items the lower id comes first where logits are equal, and NaN counts as −inf. All ranks of the catalog
    group call this for the same rows, and get the same answers.
    """
    blocks = [_sweep_block(logits, rows, request) for rows in logits.block_rows(max(request.top_n, LANES))]
    return SweepResult(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def _sweep_block(logits: Logits, rows: slice, request: SweepRequest) -> SweepResult:
    catalog, num_rows = logits.catalog, rows.stop - rows.start
    targets = torch.zeros(num_rows, 0, dtype=torch.int64, device=logits.device)
    if request.targets is not None:
        targets = request.targets[rows]
    limits = target_logits = _target_logits(logits, rows, targets)
    tiles = logits.tile_items(num_rows, request.top_n, LANES) if num_rows else []
    target_marks, seen_marks = _Marks(catalog, tiles, targets), None
    if request.seen is not None:
        seen = request.seen[rows]
        # Nothing is below −inf: a target among the seen items ranks last.
        limits = target_logits.masked_fill((targets.unsqueeze(2) == seen.unsqueeze(1)).any(2), -math.inf)
        seen_marks = _Marks(catalog, tiles, seen)
    below = torch.zeros_like(targets)
    log_sums = [target_logits.new_full((1, num_rows), -math.inf)]
    best = _Best(logits, num_rows, request.top_n)
    is_top_apart = request.top and (request.top_n == 0 or request.seen is not None)
    needs_chunks = request.top or request.top_n > 0
    top = _Best(logits, num_rows, 1) if is_top_apart else best
    for number, (items, tile, scratch) in enumerate(_buffers(tiles, num_rows, target_logits)):
        width = items.stop - items.start
        logits.write(rows, items, tile[:, :width])
        # A tile of another width may round differently: the target must not stand below itself.
        marked_rows, columns = target_marks.of(number)
        tile[marked_rows, columns] = target_marks.values(target_logits, number)
        visited = visit(tile, width, limits, scratch, chunks=needs_chunks, log_sums=request.log_sums)
        log_sums.append(visited.log_sums)
        if is_top_apart:  # before the seen items are hidden
            top.add(tile, visited.chunks, items)
        if seen_marks is not None:
            visited.hide(tile, *seen_marks.of(number), limits)
        below += visited.below
        if request.top_n:
            best.add(tile, visited.chunks, items)
    lists = best.lists()
    tops = top.lists() if is_top_apart else lists
    return SweepResult(
        catalog.num_items - catalog.all_sum(below),
        *lists,
        catalog.log_sum_exp(torch.cat(log_sums).logsumexp(0)) if request.log_sums else log_sums[0][0],
        *(part[:, : int(request.top)] for part in tops),
    )


def _target_logits(logits: Logits, rows: slice, targets: Tensor) -> Tensor:
    """The targets' logits [R, T]. A target that stands twice in a row has one logit, whatever rounding says."""
    columns = [logits.at_items(rows, column) for column in targets.T]
    columns[1:] = [torch.where(targets[:, k] == targets[:, 0], columns[0], columns[k]) for k in range(1, len(columns))]
    if not columns:
        return torch.zeros(len(targets), 0, dtype=logits.dtype, device=logits.device)
    return torch.stack(columns, dim=1)


def _buffers(tiles: list[slice], num_rows: int, like: Tensor) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Each tile's items, and buffers [R, C] for it and, without a kernel, for scratch; the same memory every time.

    Columns of a tile without items are −inf.
    """
    widths = [-(-(items.stop - items.start) // LANES) * LANES for items in tiles]
    num_buffers = 1 if has_kernel(like.device, like.dtype) else 2
    memory = like.new_empty(num_buffers, num_rows * max(widths, default=0))
    for items, width in zip(tiles, widths, strict=True):
        tile, *scratch = (part[: num_rows * width].view(num_rows, width) for part in memory)
        if items.stop - items.start < width:
            tile[:, items.stop - items.start :] = -math.inf
        yield items, tile, scratch[0] if scratch else None


class _Marks:
    """Some items of each row in the order of the items, each once, so that those of a tile are one slice of them."""

    def __init__(self, catalog: CatalogSlice, tiles: list[slice], items: Tensor) -> None:
        """`items` [R, K] in 1…V, 0 for none."""
        index, mask = catalog.local_rows(items)
        # One number for each (item, row), so that one sort orders both.
        keys = (index * len(items) + torch.arange(len(items), device=items.device).unsqueeze(1)).flatten()
        # By numbers of places, not by masks: a GPU's host waits for the length of what a mask selects, at each use.
        places = mask.flatten().nonzero().squeeze(1)
        keys, order = keys[places].sort()
        firsts = (keys.diff(prepend=keys.new_tensor([-1])) > 0).nonzero().squeeze(1)
        keys, self._places = keys[firsts], places[order[firsts]]
        self._index = keys.div(len(items), rounding_mode="floor") if len(items) else keys
        self._rows = keys - self._index * len(items)
        starts = torch.tensor([tile.start for tile in tiles], device=items.device)
        self._bounds = [*torch.searchsorted(self._index, starts).tolist(), len(keys)]
        self._tiles = tiles

    def of(self, number: int) -> tuple[Tensor, Tensor]:
        """Rows and columns of a tile that are marked."""
        marks = self._of_tile(number)
        return self._rows[marks], self._index[marks] - self._tiles[number].start

    def values(self, values: Tensor, number: int) -> Tensor:
        """Of `values` [R, K], one for each of the items, those of a tile's items."""
        return values.flatten()[self._places[self._of_tile(number)]]

    def _of_tile(self, number: int) -> slice:
        return slice(self._bounds[number], self._bounds[number + 1])


def _ordered(logits: Tensor) -> Tensor:
    """The logits with −inf for what cannot be ordered."""
    return logits.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)


class _Best:
    """The best items of each row so far.

    Items that the worst logit of a list does not rule out are collected, and merged into the lists once they are as
    many as the lists hold. Each merge raises that bound, so the merges grow with the logarithm of the number of tiles.
    """

    def __init__(self, logits: Logits, num_rows: int, n: int) -> None:
        self._catalog, self._list_length = logits.catalog, n
        self._n = min(n, logits.catalog.num_rows)
        self._items = torch.zeros(num_rows, 0, dtype=torch.int64, device=logits.device)
        self._scores = torch.zeros(num_rows, 0, dtype=logits.dtype, device=logits.device)
        self._bounds = self._scores
        self._candidates: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, tile: Tensor, chunks: Tensor, items: slice) -> None:
        """Add what a tile has of the best items; the first tile is at least n items wide."""
        is_first = self._bounds.shape[1] == 0
        if is_first:
            if chunks.shape[1] >= FEWEST_CHUNKS * self._n:
                # Each finite maximum is a logit of its chunk; +inf may stand for NaN, which bounds nothing.
                sample = chunks.masked_fill(chunks == math.inf, -math.inf)
            else:
                sample = _ordered(tile)
            self._bounds = sample.topk(self._n, dim=1).values[:, -1:]
        # An item of a later tile has a higher id, so it stands behind an equal one and has to exceed the bound.
        reaches = torch.ge if is_first else torch.gt
        rows, chunk = reaches(chunks, self._bounds).nonzero(as_tuple=True)
        values = _ordered(tile.view(len(tile), LANES, -1)[rows, :, chunk])
        pair, lane = reaches(values, self._bounds[rows]).nonzero(as_tuple=True)
        rows, column, values = rows[pair], chunk[pair] + lane * chunks.shape[1], values[pair, lane]
        if (width := items.stop - items.start) < tile.shape[1]:
            is_item = column < width
            rows, column, values = rows[is_item], column[is_item], values[is_item]
        self._candidates.append((rows, column + items.start, values))
        if sum(len(values) for _, _, values in self._candidates) >= len(tile) * self._n:
            self._merge()

    def _merge(self) -> None:
        """Put the candidates into the lists."""
        rows, items, values = (torch.cat(parts) for parts in zip(*self._candidates, strict=True))
        self._candidates = []
        order = (rows * self._catalog.num_items + items).argsort()
        rows, items, values = rows[order], items[order], values[order]
        counts = rows.bincount(minlength=len(self._items))
        # The candidates as a padded matrix, a column for each candidate of the row that has most.
        column = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        new_scores = self._scores.new_full((len(counts), int(counts.max())), -math.inf)
        new_items = torch.zeros_like(new_scores, dtype=torch.int64)
        new_scores[rows, column], new_items[rows, column] = values, items
        scores, order = torch.cat([self._scores, new_scores], dim=1).sort(dim=1, descending=True, stable=True)
        self._scores, order = scores[:, : self._n], order[:, : self._n]
        self._items = torch.cat([self._items, new_items], dim=1).gather(1, order)
        self._bounds = self._scores[:, -1:]

    def lists(self) -> tuple[Tensor, Tensor]:
        """The n best items [R, n] of the whole catalog (1…V) and their logits, from the best ones of each slice."""
        if not len(self._items):
            return self._items.new_zeros(0, self._list_length), self._scores.new_zeros(0, self._list_length)
        if self._candidates:
            self._merge()
        return merged(self._items + (1 + self._catalog.first), self._scores, self._list_length, self._catalog)
