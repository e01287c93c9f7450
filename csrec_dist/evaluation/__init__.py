"""Ranks of targets in the full catalog, and the metrics made of them."""

from csrec_dist.evaluation.metrics import MetricSums, ndcg, recall, reciprocal_rank
from csrec_dist.evaluation.ranking import target_ranks, top_items
from csrec_dist.evaluation.scoring import EvaluationBatch, evaluate

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
