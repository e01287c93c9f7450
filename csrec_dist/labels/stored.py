"""The number types that labels are kept in: rounding, and what does not fit them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from csrec_dist.errors import UserError
from csrec_dist.labels.index import TORCH_TYPES, DType, LabelMember


def stored_states(states: Tensor, members: Sequence[LabelMember], dtype: DType) -> Tensor:
    """States [n, D] of the members side by side in the type they are kept in; UserError for what does not fit it."""
    found = states.to(TORCH_TYPES[dtype])
    if not bool(found.isfinite().all()):
        for member, part in zip(members, states.split([member.width for member in members], 1), strict=True):
            _check(part, f"member {member.name} gives states", dtype)
    return found


def stored_logits(logits: Tensor, members: Sequence[LabelMember], dtype: DType) -> Tensor:
    """Logits of the members together in the type they are kept in; UserError for what does not fit it."""
    found = logits.to(TORCH_TYPES[dtype])
    if not bool(found.isfinite().all()):
        _check(logits, f"the members {', '.join(member.name for member in members)} give logits", dtype)
    return found


def _check(numbers: Tensor, who: str, dtype: DType) -> None:
    if not bool(numbers.isfinite().all()):
        raise UserError(f"labels: {who} that are not finite: look at the curves of their trainings, and teach again.")
    largest, most = float(numbers.abs().max()), torch.finfo(TORCH_TYPES[dtype]).max
    if not bool(numbers.to(TORCH_TYPES[dtype]).isfinite().all()):
        raise UserError(
            f"labels.dtype: {who} up to {largest:.4g}; {dtype} ends at {most:.4g}. Choose bfloat16, which has fewer "
            "digits, or float32."
        )
