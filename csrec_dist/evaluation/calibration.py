"""Calibration: whether a model's top-1 probability is the share of examples in which its top item is the target."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from csrec_dist.evaluation.ranking import best_in
from csrec_dist.evaluation.scoring import log_sum_exp

if TYPE_CHECKING:
    from csrec_dist.distributed.catalog import CatalogShard

NUM_BINS = 15


class CalibrationSums:
    """Sums over equal-width bins of confidence, which add up over batches and ranks.

    Bin k of 1…15 holds the confidences in ((k − 1)/15, k/15] (Guo et al., 2017, Eq. 3).
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.tensor = torch.zeros(NUM_BINS, 3, dtype=torch.float64, device=device)
        """[bins, 3]: of each bin the sum of weights, of confidences and of hits."""

    def update(self, logits: Tensor, targets: Tensor, weights: Tensor, catalog: "CatalogShard | None" = None) -> None:
        """Add examples with logits [N, V] of the whole catalog or of a slice, targets [N] in 1…V and weights [N]."""
        confidence, hit = confidences(logits, targets, catalog)
        bins = (confidence * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
        held = (bins.unsqueeze(1) == torch.arange(NUM_BINS, device=bins.device)) * weights.double().unsqueeze(1)
        self.tensor += held.T @ torch.stack([torch.ones_like(confidence), confidence, hit], dim=1)

    def compute(self) -> dict[str, Any]:
        """The expected calibration error Σ share · |accuracy − confidence|, both means, and the filled bins."""
        count = float(self.tensor[:, 0].sum())
        bins = [
            {"bin": place, "count": round(number), "confidence": confidence / number, "accuracy": hits / number}
            for place, (number, confidence, hits) in enumerate(self.tensor.tolist(), 1)
            if number > 0
        ]
        _, confidence, accuracy = (self.tensor.sum(0) / count).tolist()
        error = float((self.tensor[:, 1] - self.tensor[:, 2]).abs().sum()) / count
        return {"ece": error, "confidence": confidence, "accuracy": accuracy, "count": round(count), "bins": bins}


def confidences(logits: Tensor, targets: Tensor, catalog: "CatalogShard | None" = None) -> tuple[Tensor, Tensor]:
    """The largest probability of softmax(logits) [N], and 1 where its item is the target, else 0 [N]; float64.

    Of items with equal logits the first is the top one. A row with NaN has confidence 1 and no hit. Of a slice, all
    ranks of its group have the logits of the same examples.
    """
    (items, best) = (part.squeeze(1) for part in best_in(logits, 1, catalog))
    confidence = (best - log_sum_exp(logits, catalog)).double().exp()
    broken = confidence.isnan()
    return confidence.masked_fill(broken, 1.0), ((items == targets) & ~broken).double()
