"""Logits that are given as numbers: states and a table whose products are exactly these."""

import torch
from torch import Tensor

from csrec_dist.distributed.catalog import CatalogSlice, PlainTable
from csrec_dist.evaluation.logits import Logits


def dense(values: Tensor, catalog: CatalogSlice | None = None) -> Logits:
    """The logits [N, V] of all items, or of a slice's; finite unless there is one row."""
    catalog = catalog or CatalogSlice.whole(values.shape[1])
    return Logits([torch.eye(len(values), dtype=values.dtype)], [PlainTable(values.T.contiguous(), None, catalog)])
