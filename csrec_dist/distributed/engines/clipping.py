"""The norm of a gradient that ranks hold together, and its limit."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from csrec_dist.distributed.groups import Group


def clip_gradients(whole: Sequence[Tensor], slices: Sequence[Tensor], group: Group, limit: float) -> None:
    """Scale gradients in place to the norm `limit` where that of all together is larger.

    Every rank holds those in `whole`; those in `slices` are its parts of tensors that the ranks of `group` hold
    together. Every rank of the group calls this.
    """
    gradients = [*whole, *slices]
    if not gradients:
        return
    device = gradients[0].device
    norm = (_squares(whole, device) + group.all_reduce_sum(_squares(slices, device))).sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)


def _squares(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    total = torch.zeros((), device=device)
    for tensor in tensors:
        total += tensor.float().square().sum()
    return total
