"""The best items of histories by a model, batch by batch, with item numbers."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from csrec_dist.distributed.catalog import PlainTable, TableLike, in_step
from csrec_dist.errors import UserError, quoted
from csrec_dist.evaluation import top_items
from csrec_dist.models import SequentialModel
from csrec_dist.models.histories import pad_histories
from csrec_dist.process_state import matmul_precision

BATCH_SIZE = 256
"""Histories that are scored at once."""

History = tuple[Any, list[int]]  # a user's raw id, and item numbers, oldest first


class Ranked(NamedTuple):
    """The lists of B histories one after the other, best first; an excluded item is in none of them."""

    users: tuple
    lengths: np.ndarray  # [B]
    items: np.ndarray  # int64 [sum of lengths], item numbers
    scores: np.ndarray  # float32 [sum of lengths]


def rank(
    model: SequentialModel,
    histories: Iterable[History],
    top_n: int,
    *,
    exclude_seen: bool = False,
    candidates: np.ndarray | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Ranked]:
    """The `top_n` best items after each history, `batch_size` histories at a time.

    Of a long history the model reads the latest items; `exclude_seen` leaves out those before them, too. With
    `candidates` (item numbers, ascending) only these are ranked. Ranks that share the model's item table each give
    histories of their own, any number of them, and no candidates.

    Raises:
        UserError: top_n is not in 1…V, or batch_size not positive.
    """
    require_batch_size(batch_size)
    if not isinstance(exclude_seen, bool | np.bool_):
        raise UserError(f"exclude_seen is True or False, not {quoted(exclude_seen)}.")
    table: TableLike = model.item_table
    if candidates is not None:
        assert table.catalog.is_whole, "candidates of a slice"
        table, top_n = _part(table, candidates), min(top_n, len(candidates))
    batches = iter(partial(lambda remaining: list(islice(remaining, batch_size)), iter(histories)), [])
    for batch in in_step(batches, table.catalog, table.weight.device, list):
        if not batch:  # other ranks still have some
            _top(model, table, [[1]], top_n, torch.zeros(1, 0, dtype=torch.int64) if exclude_seen else None)
            continue
        users, numbers = zip(*batch, strict=True)
        seen = _seen(numbers, candidates) if exclude_seen else None
        items, scores = _top(model, table, numbers, top_n, seen)
        mask = scores > -np.inf
        yield Ranked(
            users, mask.sum(1), items[mask] if candidates is None else candidates[items[mask] - 1], scores[mask]
        )


def require_batch_size(batch_size: int) -> None:
    """UserError unless it is a whole number of at least 1."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
        raise UserError(f"The batch size is a whole number of at least 1, not {quoted(batch_size)}.")


@torch.no_grad()
def states_of(model: SequentialModel, histories: Iterable[list[int]]) -> Tensor:
    """The model's states [B, d] of item numbers, oldest first; it reads the latest items only."""
    latest = [items[-model.max_length :] for items in histories]
    padded, _ = pad_histories(latest, model.num_items, model.max_length)
    return model.encode_last(padded.to(model.item_table.weight.device))


@torch.no_grad()
def _top(
    model: SequentialModel, table: TableLike, histories: Iterable[list[int]], top_n: int, seen: Tensor | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the table, from 1, and their scores [B, n]; the score of what is left out is −inf."""
    with matmul_precision("highest"):  # as evaluation multiplies: nearly equal items have one order in both
        states = states_of(model, histories)
        items, scores = top_items(states, table, top_n, seen=None if seen is None else seen.to(states.device))
    return items.cpu().numpy(), scores.float().cpu().numpy()


def _part(table: TableLike, candidates: np.ndarray) -> PlainTable:
    """The rows of some items, as a table of their own."""
    rows = torch.from_numpy(candidates - 1).to(table.weight.device)
    bias = None if table.bias is None else table.bias.detach()[rows]
    return PlainTable.whole(table.weight.detach()[rows], bias)


def _seen(histories: Iterable[list[int]], candidates: np.ndarray | None) -> Tensor:
    """The distinct items of each history [B, longest], padded with 0; their places among the candidates, from 1."""
    distinct = [np.array(sorted(set(items)), np.int64) for items in histories]
    if candidates is not None:
        distinct = [np.flatnonzero(np.isin(candidates, items)) + 1 for items in distinct]
    return pad_sequence([torch.from_numpy(items) for items in distinct], batch_first=True)
