"""The objectives: cross-entropy, and the student's loss from soft labels, as pure functions of tensors."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from csrec_dist.objectives.divergences import DIVERGENCES, OneHot
from csrec_dist.objectives.soft_labels import FactoredLabels, SoftLabels
from csrec_dist.objectives.tiled import Problem, evaluate

NEGLIGIBLE_BETA = 1e-12
"""A smaller β does not change the loss in either precision, and the labels are not read."""


class Loss(NamedTuple):
    """A loss as scalars: `sum` over the examples (differentiable) and `count` of them, both weighted.

    `cross_entropy` and `divergence` are the detached weighted sums of CE and KL, before (1−β) and β. The
    divergence is 0 where the labels were not read (β = 0, or no labels).
    """

    sum: Tensor
    count: Tensor  # type: ignore[assignment]
    cross_entropy: Tensor
    divergence: Tensor


class _Tiled(torch.autograd.Function):
    """Computes the loss and, where a gradient will be asked for, the gradients in the same go.

    So nothing of the examples × items problem is kept for the backward pass, which only multiplies.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        item_weight: Tensor,
        item_bias: Tensor | None,
        problem: Problem,
        with_gradients: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needed = tuple(with_gradients and need for need in ctx.needs_input_grad[:3])
        with torch.autocast(states.device.type, enabled=False):
            totals, gradients = evaluate(problem, needed)  # type: ignore[arg-type]
        ctx.save_for_backward(gradients.states, gradients.item_weight, gradients.item_bias)
        ctx.dtypes = tuple(None if x is None else x.dtype for x in (states, item_weight, item_bias))
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
        return (*scaled, None, None)


def cross_entropy(
    states: Tensor,
    item_weight: Tensor,
    targets: Tensor,
    *,
    item_bias: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy over the full catalog, as (Σ w_i CE_i, Σ w_i).

    `states` [N, d], `item_weight` [V, d] with item i+1 in row i, `targets` [N] in 1…V, `item_bias` [V], `weights`
    [N]. fp16 and bf16 inputs are computed and summed in fp32, also under autocast; float64 in float64.
    Raises ValueError when shapes disagree, or targets lie outside 1…V (looked at on the CPU only: on CUDA it
    would wait for the device, whose own index check answers instead).
    """
    loss = _loss(states, item_weight, targets, None, item_bias, weights)
    return loss.sum, loss.count


def distillation(
    states: Tensor,
    item_weight: Tensor,
    targets: Tensor,
    labels: SoftLabels,
    *,
    temperature: float,
    beta: float,
    kl: str = "reverse",
    item_bias: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The student's loss, as (Σ w_i [(1−β) CE_i + β KL_i], Σ w_i): the first two of `distillation_parts`."""
    return distillation_parts(
        states, item_weight, targets, labels,
        temperature=temperature, beta=beta, kl=kl, item_bias=item_bias, weights=weights,
    )[:2]  # fmt: skip


def distillation_parts(
    states: Tensor,
    item_weight: Tensor,
    targets: Tensor,
    labels: SoftLabels,
    *,
    temperature: float,
    beta: float,
    kl: str = "reverse",
    item_bias: Tensor | None = None,
    weights: Tensor | None = None,
) -> Loss:
    """The student's loss (paper, Eq. 19 and 20) with its parts.

    Soft labels r = ½(softmax(e/T) + onehot(target)), where e are the logits of `labels` and T the `temperature`,
    on the labels only. `kl` is "reverse" for KL(p ‖ r) as in Eq. 20, or "forward" for KL(r ‖ p). No gradient
    goes to `labels`. Shapes, types and errors are those of `cross_entropy`; ValueError also for T ≤ 0, β outside
    0…1, an unknown `kl`, and labels of another N or V.
    """
    if not temperature > 0 or not 0 <= beta <= 1:
        raise ValueError(f"need temperature > 0 and 0 <= beta <= 1, got {temperature} and {beta}")
    if kl not in DIVERGENCES:
        raise ValueError(f"kl must be one of {', '.join(DIVERGENCES)}, got {kl!r}")
    if (labels.num_examples, labels.num_items) != (states.shape[0], item_weight.shape[0]):
        raise ValueError(
            f"labels of {labels.num_examples} examples x {labels.num_items} items do not fit states "
            f"{list(states.shape)} and item_weight {list(item_weight.shape)}"
        )
    if beta < NEGLIGIBLE_BETA:
        return _loss(states, item_weight, targets, None, item_bias, weights)
    return _loss(states, item_weight, targets, labels, item_bias, weights, kl, temperature, beta)


def _loss(
    states: Tensor,
    item_weight: Tensor,
    targets: Tensor,
    labels: SoftLabels | None,
    item_bias: Tensor | None,
    weights: Tensor | None,
    kl: str = "reverse",
    temperature: float = 1.0,
    beta: float = 0.0,
) -> Loss:
    _check(states, item_weight, targets, item_bias, weights)
    dtype = torch.promote_types(torch.float32, torch.promote_types(states.dtype, item_weight.dtype))
    factors = (states, item_weight, item_bias)
    student = FactoredLabels(*(None if f is None else f.detach().to(dtype) for f in factors))  # type: ignore[arg-type]
    weights = states.new_ones(states.shape[0], dtype=dtype) if weights is None else weights.detach().to(dtype)
    divergence = OneHot if labels is None else DIVERGENCES[kl]
    problem = Problem(student, targets.long() - 1, weights, labels, divergence, 1 / temperature, beta)
    parts = _Tiled.apply(states, item_weight, item_bias, problem, torch.is_grad_enabled())
    return Loss(parts[0], weights.sum(), *parts[1:])


def _check(
    states: Tensor, item_weight: Tensor, targets: Tensor, item_bias: Tensor | None, weights: Tensor | None
) -> None:
    fits = states.ndim == 2 and item_weight.ndim == 2 and states.shape[1] == item_weight.shape[1]
    fits = fits and targets.shape == states.shape[:1] and item_weight.shape[0] > 0
    fits = fits and (weights is None or weights.shape == states.shape[:1])
    fits = fits and (item_bias is None or item_bias.shape == item_weight.shape[:1])
    if not fits:
        given = ("states", states), ("item_weight", item_weight), ("targets", targets)
        given += ("item_bias", item_bias), ("weights", weights)  # type: ignore[assignment]
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in given if x is not None)
        raise ValueError(f"need states [N, d], item_weight [V, d], targets [N], bias [V], weights [N]: {shapes}")
    if targets.device.type == "cpu" and targets.numel() > 0:
        least, largest = torch.aminmax(targets)
        if least < 1 or largest > item_weight.shape[0]:
            raise ValueError(
                f"targets [{len(targets)}] must lie in 1…{item_weight.shape[0]}, the rows of item_weight "
                f"{list(item_weight.shape)}; got {int(least)}…{int(largest)}"
            )
