"""The contrastive loss between two views of each window, as a pure function of tensors."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class ContrastOptions(Protocol):
    """What the config of a model with views says of their loss."""

    @property
    def contrast_weight(self) -> float:
        """λ, the weight of the mean over windows beside the mean over examples."""

    @property
    def contrast_temperature(self) -> float:
        """τ of `info_nce`."""


def info_nce(
    first: Tensor,
    second: Tensor,
    local: slice = slice(None),
    *,
    temperature: float = 1.0,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """InfoNCE of this rank's windows, the slice `local` of all M, as (Σ loss, their number).

    `first` and `second` [M, d] are the two views of each window. A view has to pick the other view of its window, by
    dot products over τ, among the 2M − 1 views other than itself (CL4SRec, Eq. 2–3; SimCLR's NT-Xent without
    normalised vectors); a window's loss is the mean of its two views'. Half-precision inputs are computed in fp32.
    Windows of weight 0 among `weights` [M] of 0 and 1 are padding: their views are no negatives, and they do not count.
    Takes memory for 2·|local| × 2M numbers. ValueError where the shapes differ or τ ≤ 0.
    """
    if first.shape != second.shape or first.dim() != 2 or not temperature > 0:
        raise ValueError(f"need two views [M, d] and temperature > 0: {first.shape}, {second.shape}, {temperature}")
    num_windows = len(first)
    windows = torch.arange(num_windows, device=first.device)[local]
    with torch.autocast(first.device.type, enabled=False):
        dtype = torch.promote_types(first.dtype, torch.float32)
        views = torch.cat([first, second]).to(dtype)
        selves = torch.cat([windows, windows + num_windows])
        partners = torch.cat([windows + num_windows, windows])
        similarities = views[selves] @ views.T / temperature
        others = similarities.scatter(1, selves.unsqueeze(1), -torch.inf)
        if weights is None:
            return F.cross_entropy(others, partners, reduction="sum") / 2, first.new_full((), len(windows), dtype=dtype)
        # Nobody meets padding windows but their own partners: their losses are finite, and weigh 0.
        hidden = (weights == 0).repeat(2).expand_as(others).scatter(1, partners.unsqueeze(1), False)
        losses = F.cross_entropy(others.masked_fill(hidden, -torch.inf), partners, reduction="none")
        counted = weights[local].to(dtype)
        return losses @ counted.repeat(2) / 2, counted.sum()
