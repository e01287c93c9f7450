"""One pass over the catalog for all that is asked of some rows: target ranks, the best items, log-sum-exp.

Every tile of logits is made once, and what is asked is taken from it while it is in the cache: so no tensor has the
size of rows × items, and beyond the products the time is a few visits of numbers at hand.

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
from csrec_dist.evaluation.visit import LANES, visit

FEWEST_CHUNKS = 4
"""Chunks for each best item, from which their maxima say well enough where the best items begin."""


@dataclass(frozen=True)
class Asked:
    """What is asked of rows of logits.

    `targets` [N, T], one or two items (1…V) of each row, are to be ranked; `top_n` ≤ V is the number of best items.
    Neither knows the `seen` items [N, L] (0 for none), whose logits count as −inf. `log_sums` and the `top` item are
    of all items, whether seen or not.
    """

    targets: Tensor | None = None
    top_n: int = 0
    seen: Tensor | None = None
    log_sums: bool = False
    top: bool = False


class Found(NamedTuple):
    """Ranks int64 [N, T]; the best items and their logits [N, n]; log Σ exp [N]; the best item of all and its logit
    [N, 1]. What was not asked has no columns, or is −inf.
    """

    ranks: Tensor
    items: Tensor
    scores: Tensor
    log_sums: Tensor
    top_items: Tensor
    top_logits: Tensor


@torch.no_grad()
def sweep(logits: Logits, asked: Asked) -> Found:
    """All that is asked, for all rows.

    A rank is 1 + the number of other items not below the target: ties count against it, and so does what cannot be
    ordered. An item scored NaN stands above every target, a target scored NaN ranks last (V), and so does a seen one.
    Among best items the lower id comes first where logits are equal, and NaN counts as −inf. All ranks of the catalog
    group call this for the same rows, and get the same answers.
    """
    blocks = [_sweep_block(logits, rows, asked) for rows in logits.block_rows(max(asked.top_n, LANES))]
    return Found(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def _sweep_block(logits: Logits, rows: slice, asked: Asked) -> Found:
    catalog, num_rows = logits.catalog, rows.stop - rows.start
    none = torch.zeros(num_rows, 0, dtype=torch.int64, device=logits.device)
    targets, seen = (none if part is None else part[rows] for part in (asked.targets, asked.seen))
    of_targets = _target_logits(logits, rows, targets)
    limits = of_targets.masked_fill((targets.unsqueeze(2) == seen.unsqueeze(1)).any(2), -math.inf)
    tiles = logits.tile_items(num_rows, asked.top_n, LANES) if num_rows else []
    put_targets, hide = (_Marks(catalog, tiles, items) for items in (targets, seen))
    below = torch.zeros_like(targets)
    log_sums = of_targets.new_full((num_rows,), -math.inf)
    best = _Best(logits, num_rows, asked.top_n)
    is_top_apart = asked.top and (asked.top_n == 0 or asked.seen is not None)
    top = _Best(logits, num_rows, 1) if is_top_apart else best
    for number, (items, tile, scratch) in enumerate(_buffers(tiles, num_rows, of_targets)):
        width = items.stop - items.start
        logits.write(rows, items, tile[:, :width])
        some, columns = put_targets.of(number)
        tile[some, columns] = put_targets.values(of_targets, number)
        visited = visit(tile, width, limits, scratch, log_sums=asked.log_sums)
        log_sums = torch.logaddexp(log_sums, visited.log_sums)
        if is_top_apart:
            top.add(tile, visited.chunks, items)
        some, columns = hide.of(number)
        if len(some):
            visited.hide(tile, some, columns, limits)
        below += visited.below
        if asked.top_n:
            best.add(tile, visited.chunks, items)
    lists = best.lists()
    tops = top.lists() if is_top_apart else lists
    return Found(
        catalog.num_items - catalog.all_sum(below),
        *lists,
        catalog.log_sum_exp(log_sums) if asked.log_sums else log_sums,
        *(part[:, : int(asked.top)] for part in tops),
    )


def _target_logits(logits: Logits, rows: slice, targets: Tensor) -> Tensor:
    """The targets' logits [R, T]. A target that stands twice in a row has one logit, whatever rounding says."""
    columns = [logits.at_items(rows, column) for column in targets.T]
    columns[1:] = [torch.where(targets[:, k] == targets[:, 0], columns[0], columns[k]) for k in range(1, len(columns))]
    if not columns:
        return torch.zeros(len(targets), 0, dtype=logits.dtype, device=logits.device)
    return torch.stack(columns, dim=1)


def _buffers(tiles: list[slice], num_rows: int, like: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Each tile's items, and two buffers [R, C] for it, the same memory every time; columns without items are −inf."""
    widths = [-(-(items.stop - items.start) // LANES) * LANES for items in tiles]
    memory = like.new_empty(2, num_rows * max(widths, default=0))
    for items, width in zip(tiles, widths, strict=True):
        tile, scratch = (part[: num_rows * width].view(num_rows, width) for part in memory)
        tile[:, items.stop - items.start :] = -math.inf
        yield items, tile, scratch


class _Marks:
    """Some items of each row in the order of the items, each once, so that every tile knows its own."""

    def __init__(self, catalog: CatalogSlice, tiles: list[slice], items: Tensor) -> None:
        """`items` [R, K] in 1…V, 0 for none."""
        index, here = catalog.places(items)
        keys = index * len(items) + torch.arange(len(items), device=items.device).unsqueeze(1)
        keys, order = keys[here].sort()
        is_first = keys.diff(prepend=keys.new_tensor([-1])) > 0
        keys, order = keys[is_first], order[is_first]
        self._here, self._order = here, order
        self._index = keys.div(len(items), rounding_mode="floor") if len(items) else keys
        self._rows = keys - self._index * len(items)
        starts = torch.tensor([tile.start for tile in tiles], device=items.device)
        self._bounds = [*torch.searchsorted(self._index, starts).tolist(), len(order)]
        self._tiles = tiles

    def of(self, number: int) -> tuple[Tensor, Tensor]:
        """Rows and columns of a tile that are marked."""
        some = self._some(number)
        return self._rows[some], self._index[some] - self._tiles[number].start

    def values(self, values: Tensor, number: int) -> Tensor:
        """What `values` [R, K], one for each of the items, has for those of a tile."""
        return values[self._here][self._order[self._some(number)]]

    def _some(self, number: int) -> slice:
        return slice(self._bounds[number], self._bounds[number + 1])


def _ordered(logits: Tensor) -> Tensor:
    """The logits with −inf for what cannot be ordered."""
    return logits.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)


class _Best:
    """The best items of each row so far.

    What may be among them, by the worst logit of the lists, is collected and merged into the lists when it is as much
    as they hold. So each merge raises that bound, and only a logarithm of the tiles is merged.
    """

    def __init__(self, logits: Logits, num_rows: int, n: int) -> None:
        self._catalog, self._wanted = logits.catalog, n
        self._n = min(n, logits.catalog.num_rows)
        self._items = torch.zeros(num_rows, 0, dtype=torch.int64, device=logits.device)
        self._scores = torch.zeros(num_rows, 0, dtype=logits.dtype, device=logits.device)
        self._bounds = self._scores
        self._candidates: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, tile: Tensor, chunks: Tensor, items: slice) -> None:
        """Look through a tile, whose first one is at least n items wide."""
        is_first = self._bounds.shape[1] == 0
        if is_first:
            sample = chunks if chunks.shape[1] >= FEWEST_CHUNKS * self._n else tile
            self._bounds = _ordered(sample).topk(self._n, dim=1).values[:, -1:]
        # Items of later tiles have higher ids, and stand behind those that are as good. A chunk with NaN is looked at.
        reaches = torch.ge if is_first else torch.gt
        rows, chunk = reaches(chunks.nan_to_num(nan=math.inf, posinf=math.inf), self._bounds).nonzero(as_tuple=True)
        values = _ordered(tile.view(len(tile), LANES, -1)[rows, :, chunk])
        pair, lane = reaches(values, self._bounds[rows]).nonzero(as_tuple=True)
        rows, column, values = rows[pair], chunk[pair] + lane * chunks.shape[1], values[pair, lane]
        if (width := items.stop - items.start) < tile.shape[1]:
            is_item = column < width
            rows, column, values = rows[is_item], column[is_item], values[is_item]
        self._candidates.append((rows, column + items.start, values))
        if sum(len(each) for each, _, _ in self._candidates) >= len(tile) * self._n:
            self._merge()

    def _merge(self) -> None:
        """Put the candidates into the lists."""
        rows, items, values = (torch.cat(parts) for parts in zip(*self._candidates, strict=True))
        self._candidates = []
        order = (rows * self._catalog.num_items + items).argsort()
        rows, items, values = rows[order], items[order], values[order]
        counts = rows.bincount(minlength=len(self._items))
        place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        more = self._scores.new_full((len(counts), int(counts.max())), -math.inf)
        more_items = torch.zeros_like(more, dtype=torch.int64)
        more[rows, place], more_items[rows, place] = values, items
        scores, order = torch.cat([self._scores, more], dim=1).sort(dim=1, descending=True, stable=True)
        self._scores, order = scores[:, : self._n], order[:, : self._n]
        self._items = torch.cat([self._items, more_items], dim=1).gather(1, order)
        self._bounds = self._scores[:, -1:]

    def lists(self) -> tuple[Tensor, Tensor]:
        """The n best items [R, n] of the whole catalog (1…V) and their logits, from what each slice has found best."""
        if not len(self._items):
            return self._items.new_zeros(0, self._wanted), self._scores.new_zeros(0, self._wanted)
        if self._candidates:
            self._merge()
        return merged(self._items + (1 + self._catalog.first), self._scores, self._wanted, self._catalog)
