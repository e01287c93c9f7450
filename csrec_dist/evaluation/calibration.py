"""Calibration: whether a model's top-1 probability is the share of examples in which its top item is the target."""

from typing import Any

import torch
from torch import Tensor

NUM_BINS = 15


class CalibrationSums:
    """Sums over equal-width bins of confidence, which add up over batches and ranks.

    Bin k of 1…15 holds the confidences in ((k − 1)/15, k/15] (Guo et al., 2017, Eq. 3).
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.tensor = torch.zeros(NUM_BINS, 3, dtype=torch.float64, device=device)
        """[bins, 3]: of each bin the sum of weights, of confidences and of hits."""

    def update(self, logits: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Add examples with these logits [N, V] of the whole catalog, targets [N] in 1…V and weights [N]."""
        confidence, hit = confidences(logits, targets)
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


def confidences(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probability of softmax(logits) [N], and 1 where its item is the target, else 0 [N]; float64.

    Of items with equal logits the first is the top one. A row with NaN has confidence 1 and no hit.
    """
    best, column = logits.max(dim=1).values, logits.argmax(dim=1)
    confidence = (best - logits.logsumexp(dim=1)).double().exp()
    broken = confidence.isnan()
    return confidence.masked_fill(broken, 1.0), ((column == targets - 1) & ~broken).double()
