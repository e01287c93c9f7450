"""The losses: cross-entropy, the student's and the robust teacher's, as pure functions of tensors.

A table (and what is [V] or [V, r] of the noise) may be this rank's slice of the catalog; the examples are this rank's
own, and what is returned is their loss over the whole catalog. All ranks of the catalog group call the same loss, each
with any number of examples, and go backward from it with the same factor. The gradient of a slice is then that of the
summed losses of the whole group. `cross_entropy` and `distillation` take tensors of whole tables.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from csrec_dist.distributed.catalog import CatalogSlice, PlainTable, TableLike
from csrec_dist.losses.autograd import DifferentiableLoss
from csrec_dist.losses.divergences import DIVERGENCES, Divergence, ForwardOfKept, OneHot, Robust
from csrec_dist.losses.problem import NoiseCosts, Problem
from csrec_dist.losses.soft_labels import DenseLabels, FactoredLabels, MixtureLabels, SoftLabels, TemperedLabels
from csrec_dist.losses.top_k_labels import TopKLabels
from csrec_dist.options import MatmulPrecision
from csrec_dist.process_state import matmul_precision


class Examples(NamedTuple):
    """N examples: states [N, d], targets [N] in 1…V, weights [N], labels, and M's rows at the targets [N, r].

    They are this rank's, or those of all ranks of a catalog group. `local_weights` [N] are 0 at other ranks' examples,
    so that each rank counts the losses of its own.
    """

    states: Tensor
    targets: Tensor
    weights: Tensor
    local_weights: Tensor
    labels: SoftLabels | None
    observed: Tensor | None

    def of_group(self, catalog: CatalogSlice) -> "Examples":
        """The examples of all ranks of the group, with their labels on this rank's slice.

        States and M's rows are gathered in the type of the weights, in which the backward pass sums their gradients
        over the slices. With one rank these are the same examples.
        """
        if catalog.is_whole:
            return self
        shared, dtype = catalog.share(len(self.states), self.states.device), self.weights.dtype
        return Examples(
            shared.gather(self.states.to(dtype)),
            shared.gather(self.targets),
            shared.gather(self.weights),
            shared.only_local(self.weights),
            None if self.labels is None else self.labels.shared(shared),
            None if self.observed is None else shared.gather(self.observed.to(dtype)),
        )


NEGLIGIBLE_BETA = 1e-12
"""A smaller β does not change the loss in either precision, and the labels are not read."""


INFINITE = "is infinite where labels are truncated: use the forward direction, or factored or dense labels"


class Loss(NamedTuple):
    """A loss as scalars: `sum` over the examples (differentiable) and `count` of them, both weighted.

    `cross_entropy` and `divergence` are the detached weighted sums of CE and KL, before (1−β) and β; of the robust
    loss, those of ℓ_ce and ℓ_r. The divergence is 0 where the labels were not read (β = 0, or no labels).
    """

    sum: Tensor
    count: Tensor  # type: ignore[assignment]
    cross_entropy: Tensor
    divergence: Tensor


class Noise(NamedTuple):
    """The noise matrix h̃ = M · Nᵀ of Eq. 11: h̃_ij is the logit of observing item i where j is preferred.

    `observed` is M [V, r], `preferred` is N [V, r], row i being item i+1's; `maxima` [V] is max_k h̃_kj for each
    preferred item j, or what stands in for it. Gradients go to all three.
    """

    observed: Tensor
    preferred: Tensor
    maxima: Tensor


def cross_entropy(
    states: Tensor,
    item_weight: Tensor,
    targets: Tensor,
    *,
    item_bias: Tensor | None = None,
    weights: Tensor | None = None,
    precision: MatmulPrecision = "highest",
) -> tuple[Tensor, Tensor]:
    """Softmax cross-entropy over the full catalog, as (Σ w_i CE_i, Σ w_i).

    `states` [N, d], `item_weight` [V, d] with item i+1 in row i, `targets` [N] in 1…V, `item_bias` [V], `weights`
    [N]. fp16 and bf16 inputs are computed and summed in fp32, also under autocast; float64 in float64. `precision` is
    that of fp32 products: "highest" (as exact as fp32), "high" (TF32 on a GPU) or "medium" (bf16 with fp32 sums, on
    GPUs and on CPUs that multiply it).
    Raises ValueError when shapes disagree, or targets lie outside 1…V (checked on the CPU only: on CUDA the host
    would wait for the device, which checks indices itself).
    """
    table = PlainTable.whole(item_weight, item_bias)
    loss = cross_entropy_parts(states, table, targets, weights=weights, precision=precision)
    return loss.sum, loss.count


def cross_entropy_parts(
    states: Tensor,
    table: TableLike,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    precision: MatmulPrecision = "highest",
) -> Loss:
    """`cross_entropy` over a table, whole or a slice, as a `Loss`."""
    return _loss(states, table, targets, None, weights, precision)


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
    precision: MatmulPrecision = "highest",
) -> tuple[Tensor, Tensor]:
    """The student's loss, as (Σ w_i [(1−β) CE_i + β KL_i], Σ w_i): the first two of `distillation_parts`."""
    table = PlainTable.whole(item_weight, item_bias)
    loss = distillation_parts(
        states,
        table,
        targets,
        labels,
        temperature=temperature,
        beta=beta,
        kl=kl,
        weights=weights,
        precision=precision,
    )
    return loss.sum, loss.count


def distillation_parts(
    states: Tensor,
    table: TableLike,
    targets: Tensor,
    labels: SoftLabels,
    *,
    temperature: float,
    beta: float,
    kl: str = "reverse",
    weights: Tensor | None = None,
    precision: MatmulPrecision = "highest",
) -> Loss:
    """The student's loss (paper, Eq. 19 and 20) with its parts.

    Soft labels r = ½(softmax(e/T) + onehot(target)), where e are the logits of `labels` and T the `temperature`,
    on the labels only. `kl` is "reverse" for KL(p ‖ r) as in Eq. 20, or "forward" for KL(r ‖ p). No gradient
    goes to `labels`. Shapes, types and errors are those of `cross_entropy`; ValueError also for T ≤ 0, β outside
    0…1, an unknown `kl`, labels of another N or V, and (checked on the CPU) dense labels that are not finite.

    For top-k labels, KL is that of the kept items and of all others as one (`ForwardOfKept`); ValueError for the
    reverse direction, for another temperature than theirs, and (checked on the CPU; on CUDA the loss is NaN) for a
    target that is not kept.
    """
    if not temperature > 0 or not 0 <= beta <= 1:
        raise ValueError(f"need temperature > 0 and 0 <= beta <= 1, got {temperature} and {beta}")
    if kl not in DIVERGENCES:
        raise ValueError(f"kl must be one of {', '.join(DIVERGENCES)}, got {kl!r}")
    _check_labels(labels, states, table)
    if beta < NEGLIGIBLE_BETA:
        return _loss(states, table, targets, None, weights, precision)
    _check_finite(labels)
    divergence: Divergence = DIVERGENCES[kl](beta)
    if isinstance(labels, TopKLabels):
        _check_top_k(labels, targets, temperature, kl)
        divergence = ForwardOfKept(beta, bool(labels.is_whole))
    return _loss(states, table, targets, labels, weights, precision, divergence, 1 / temperature)


def robust(
    states: Tensor,
    table: TableLike,
    targets: Tensor,
    labels: SoftLabels,
    *,
    alpha: float,
    noise: Noise | None = None,
    weights: Tensor | None = None,
    precision: MatmulPrecision = "highest",
) -> Loss:
    """The main teacher's loss ℓ_t = ℓ_ce + ℓ_r (paper, Eq. 17 and 18), ℓ_r being the `divergence` of the result.

    ℓ_r = α KL(q ‖ p) + (1−α) KL(p ‖ q) + Σ_j [log(1 + exp(−h̃_yj)) + log V + max_k h̃_kj] p_j, where q is the
    softmax of `labels`, the side teacher's untempered logits, and y the target. Without `noise` the last term, the
    expectation, is left out. Gradients go to states, item weight, bias and noise. Shapes, types and errors are those
    of `cross_entropy`; ValueError also for α outside 0…1, labels of another N or V, and noise of another V.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"need 0 <= alpha <= 1, got {alpha}")
    if isinstance(labels, TopKLabels):
        raise ValueError(f"the robust loss has both directions of KL, of which the reverse {INFINITE}")
    _check_labels(labels, states, table)
    _check_finite(labels)
    divergence = Robust(alpha, noise is not None)
    if noise is None:
        return _loss(states, table, targets, labels, weights, precision, divergence)
    _check_noise(noise, table.weight)
    _check(states, table, targets, weights)
    return _loss(states, table, targets, labels, weights, precision, divergence, noise=noise)


def _loss(
    states: Tensor,
    table: TableLike,
    targets: Tensor,
    labels: SoftLabels | None,
    weights: Tensor | None,
    precision: MatmulPrecision,
    divergence: Divergence | None = None,
    scale: float = 1.0,
    noise: Noise | None = None,
) -> Loss:
    """The loss of a divergence, with the costs of the noise if it has any."""
    _check(states, table, targets, weights)
    item_weight, item_bias, catalog, targets = table.weight, table.bias, table.catalog, targets.long()
    dtype = torch.promote_types(torch.float32, torch.promote_types(states.dtype, item_weight.dtype))
    weights = states.new_ones(states.shape[0], dtype=dtype) if weights is None else weights.detach().to(dtype)
    observed = None if noise is None else catalog.rows_at(noise.observed, targets - 1)
    examples = Examples(states, targets, weights, weights, labels, observed).of_group(catalog)
    index, is_local = catalog.local_rows(examples.targets)
    costs = () if noise is None else (examples.observed, noise.preferred, noise.maxima)
    factors = (examples.states, item_weight, item_bias, *costs)
    computed = [None if f is None else f.detach().to(dtype) for f in factors]
    problem = Problem(
        catalog,
        FactoredLabels(*computed[:3]),  # type: ignore[arg-type]
        index,
        is_local,
        examples.weights,
        examples.local_weights,
        _labels_at(examples, scale, precision, catalog),
        divergence or OneHot(),
        NoiseCosts(*computed[3:], num_items=catalog.num_items) if costs else None,  # type: ignore
        precision,
    )
    parts = DifferentiableLoss.apply(problem, torch.is_grad_enabled(), *factors)
    return Loss(parts[0], weights.sum(), *parts[1:])


def _labels_at(
    examples: Examples, scale: float, precision: MatmulPrecision, catalog: CatalogSlice
) -> TemperedLabels | None:
    """The examples' labels at temperature 1/scale, if they have some; mixtures multiply with the tables here."""
    if examples.labels is None:
        return None
    with torch.no_grad(), torch.autocast(examples.weights.device.type, enabled=False), matmul_precision(precision):
        return examples.labels.tempered(scale, examples.weights, catalog)


def _check_labels(labels: SoftLabels, states: Tensor, table: TableLike) -> None:
    if labels.num_examples != len(states) or labels.num_items not in {len(table.weight), table.catalog.num_items}:
        raise ValueError(
            f"labels of {labels.num_examples} examples x {labels.num_items} items do not fit states "
            f"{list(states.shape)} and item_weight {list(table.weight.shape)}"
        )


def _check_finite(labels: SoftLabels) -> None:
    """Of stored logits on a CPU: KL is infinite or undefined where one is, and elsewhere the loss shows it."""
    for part in labels.parts if isinstance(labels, MixtureLabels) else (labels,):
        if isinstance(part, DenseLabels) and part.logits.device.type == "cpu" and not part.bound().isfinite():
            raise ValueError("dense labels need finite logits: give an item that a teacher excludes -1e4, not -inf")


def _check_top_k(labels: TopKLabels, targets: Tensor, temperature: float, kl: str) -> None:
    if kl != "forward":
        raise ValueError(f"the {kl} direction {INFINITE}")
    if not math.isclose(temperature, labels.temperature):
        raise ValueError(
            f"top-k labels of temperature {labels.temperature} were read at {temperature}: the sum over the items that "
            "are not kept is known at their own alone"
        )
    if targets.device.type == "cpu" and targets.shape == labels.items.shape[:1] and not labels.keep(targets).all():
        raise ValueError("a target is not among the kept items of its example: these labels belong to other targets")


def _check_noise(noise: Noise, item_weight: Tensor) -> None:
    num_items = item_weight.shape[0]
    fits = noise.observed.ndim == 2 and noise.observed.shape == noise.preferred.shape
    if not fits or len(noise.observed) != num_items or noise.maxima.shape != (num_items,):
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in noise._asdict().items())
        raise ValueError(f"need noise observed [V, r], preferred [V, r] and maxima [V] with V = {num_items}: {shapes}")


def _check(states: Tensor, table: TableLike, targets: Tensor, weights: Tensor | None) -> None:
    item_weight, item_bias, num_items = table.weight, table.bias, table.catalog.num_items
    fits = states.ndim == 2 and item_weight.ndim == 2 and states.shape[1] == item_weight.shape[1]
    fits = fits and targets.shape == states.shape[:1] and num_items > 0
    fits = fits and item_weight.shape[0] == table.catalog.num_rows
    fits = fits and (weights is None or weights.shape == states.shape[:1])
    fits = fits and (item_bias is None or item_bias.shape == item_weight.shape[:1])
    if not fits:
        given = ("states", states), ("item_weight", item_weight), ("targets", targets)
        given += ("item_bias", item_bias), ("weights", weights)  # type: ignore[assignment]
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in given if x is not None)
        raise ValueError(f"need states [N, d], item_weight [V, d], targets [N], bias [V], weights [N]: {shapes}")
    if targets.device.type == "cpu" and targets.numel() > 0:
        least, largest = torch.aminmax(targets)
        if least < 1 or largest > num_items:
            raise ValueError(
                f"targets [{len(targets)}] must lie in 1…{num_items}, with item_weight {list(item_weight.shape)}; "
                f"got {int(least)}…{int(largest)}"
            )
