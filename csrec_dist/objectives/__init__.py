"""Training objectives: tiled over examples × items, so that no tensor of that size ever exists."""

from collections.abc import Callable
from functools import partial

from csrec_dist.objectives.divergences import DIVERGENCES
from csrec_dist.objectives.losses import Loss, Noise, cross_entropy, distillation, distillation_parts, robust
from csrec_dist.objectives.noise_matrix import NoiseMatrix, RobustObjective
from csrec_dist.objectives.soft_labels import DenseLabels, FactoredLabels, MixtureLabels, SoftLabels
from csrec_dist.objectives.top_k_labels import TopKLabels

OBJECTIVES: dict[str, Callable] = {
    "cross_entropy": cross_entropy,
    "distillation_reverse": partial(distillation, kl="reverse"),
    "distillation_forward": partial(distillation, kl="forward"),
    "robust": robust,
}
"""Every objective by name. Those named distillation_… take `labels`, `temperature` and `beta` as well, `robust`
takes `labels`, `alpha` and `noise`."""

__all__ = [
    "DIVERGENCES",
    "OBJECTIVES",
    "DenseLabels",
    "FactoredLabels",
    "Loss",
    "MixtureLabels",
    "Noise",
    "NoiseMatrix",
    "RobustObjective",
    "SoftLabels",
    "TopKLabels",
    "cross_entropy",
    "distillation",
    "distillation_parts",
    "robust",
]
