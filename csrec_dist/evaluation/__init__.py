"""Ranks of targets in the full catalog, and the metrics made of them."""

from typing import TYPE_CHECKING

from csrec_dist.lazy import attributes

if TYPE_CHECKING:
    from csrec_dist.data.batches import EvaluationBatch
    from csrec_dist.evaluation.metrics import MetricSums, ndcg, recall, reciprocal_rank
    from csrec_dist.evaluation.ranking import target_ranks, top_items
    from csrec_dist.evaluation.scoring import evaluate

__all__ = [
    "EvaluationBatch",
    "MetricSums",
    "evaluate",
    "ndcg",
    "recall",
    "reciprocal_rank",
    "target_ranks",
    "top_items",
]

__getattr__ = attributes(
    __name__,
    {
        "csrec_dist.data.batches": ["EvaluationBatch"],
        "csrec_dist.evaluation.metrics": ["MetricSums", "ndcg", "recall", "reciprocal_rank"],
        "csrec_dist.evaluation.ranking": ["target_ranks", "top_items"],
        "csrec_dist.evaluation.scoring": ["evaluate"],
    },
)
