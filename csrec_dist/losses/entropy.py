"""The entropy of soft labels, tile by tile: how sure the teachers are of each example."""

import torch
from torch import Tensor

from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.losses.soft_labels import DenseLabels, FactoredLabels, MixtureLabels, SoftLabels, log_sums
from csrec_dist.losses.tiles import choose_tiling
from csrec_dist.losses.top_k_labels import TopKLabels
from csrec_dist.process_state import matmul_precision


@torch.no_grad()
@matmul_precision("highest")
def label_entropy(labels: SoftLabels, temperature: float) -> Tensor:
    """−Σ q ln q of each example's labels at T, in nats [N], float32: 0 for a single item, ln V for equal shares.

    For top-k labels it is a lower bound: all items that are not kept count as one. Labels on a slice of the catalog are
    not supported, because the sum would need the other ranks.
    """
    if isinstance(labels, TopKLabels):
        return _top_k_entropy(labels)
    like = _like(labels)
    if labels.num_examples == 0:
        return like.new_zeros(0)
    tempered = labels.tempered(1 / temperature, like, CatalogSlice.whole(labels.num_items))
    sums = log_sums(tempered, labels.num_examples, labels.num_items, like)
    means = torch.zeros_like(sums)  # Σ q t, so that −Σ q ln q = logsumexp t − Σ q t
    tiling = choose_tiling(labels.num_examples, labels.num_items, 1, like.dtype, like.device)
    space = like.new_empty(tiling.rows * tiling.items)
    for rows in tiling.row_blocks():
        for items in tiling.item_slices():
            shape = rows.stop - rows.start, items.stop - items.start
            tile = tempered.tile(rows, items, out=space[: shape[0] * shape[1]].view(shape))
            means[rows] += (tile * (tile - sums[rows].unsqueeze(1)).exp()).sum(1)
    return (sums - means).clamp(min=0)


def _like(labels: FactoredLabels | DenseLabels | MixtureLabels) -> Tensor:
    """A float32 tensor on the labels' device."""
    part = labels.parts[0] if isinstance(labels, MixtureLabels) else labels
    factor = part.logits if isinstance(part, DenseLabels) else part.states
    return torch.empty((), dtype=torch.float32, device=factor.device)


def _top_k_entropy(labels: TopKLabels) -> Tensor:
    logs = labels.values.float() / labels.temperature - labels.logsumexp.float().unsqueeze(1)
    probabilities = logs.exp()
    rest = (1 - probabilities.sum(1)).clamp(min=0)
    return (-(probabilities * logs).sum(1) - torch.special.xlogy(rest, rest)).clamp(min=0)
