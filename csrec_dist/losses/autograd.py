"""A loss as one differentiable operation, computed by kernels where there are some and by tiles elsewhere."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from csrec_dist.losses import fused, tiled
from csrec_dist.losses.problem import Problem
from csrec_dist.process_state import matmul_precision


class DifferentiableLoss(torch.autograd.Function):
    """Computes the loss and, where a gradient is needed, the gradients in the same forward pass.

    Nothing of the size of examples × items is thus saved for the backward pass, which only multiplies. `factors` are
    the tensors whose gradients `losses_and_gradients` returns, in its order; `problem` has detached copies of them.
    """

    @staticmethod
    def forward(
        ctx: Any, problem: Problem, with_gradients: bool, *factors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        needed = [with_gradients and need for need in ctx.needs_input_grad[2:]]
        device = problem.weights.device
        with torch.autocast(device.type, enabled=False), matmul_precision(problem.precision):
            totals, gradients = (fused if fused.takes(problem) else tiled).losses_and_gradients(problem, needed)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if factor is None else factor.dtype for factor in factors]
        total, cross_entropy, divergence = totals.unbind()
        ctx.mark_non_differentiable(cross_entropy, divergence)
        return total.clone(), cross_entropy, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (
            None if gradient is None else (gradient * grads[0]).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return None, None, *scaled
