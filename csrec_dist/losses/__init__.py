"""Training losses: tiled over examples × items, so that no tensor of that size ever exists."""

from collections.abc import Callable
from functools import partial

from csrec_dist.losses.divergences import DIVERGENCES
from csrec_dist.losses.losses import (
    Loss,
    Noise,
    cross_entropy,
    cross_entropy_parts,
    distillation,
    distillation_parts,
    robust,
)
from csrec_dist.losses.noise import NoiseMatrix, RobustLoss
from csrec_dist.losses.soft_labels import DenseLabels, FactoredLabels, MixtureLabels, SoftLabels
from csrec_dist.losses.top_k_labels import TopKLabels

soft_label_loss = distillation
"""The name of `distillation` outside of this package, where there is no other distillation to tell it from."""

LOSSES: dict[str, Callable] = {
    "cross_entropy": cross_entropy,
    "distillation_reverse": partial(distillation, kl="reverse"),
    "distillation_forward": partial(distillation, kl="forward"),
    "robust": robust,
}
"""Every loss by name. Those named distillation_… take `labels`, `temperature` and `beta` as well, `robust`
takes `labels`, `alpha` and `noise`, and a table in place of `item_weight`."""

__all__ = [
    "DIVERGENCES",
    "LOSSES",
    "DenseLabels",
    "FactoredLabels",
    "Loss",
    "MixtureLabels",
    "Noise",
    "NoiseMatrix",
    "RobustLoss",
    "SoftLabels",
    "TopKLabels",
    "cross_entropy",
    "cross_entropy_parts",
    "distillation",
    "distillation_parts",
    "robust",
    "soft_label_loss",
]
