"""Scoring the catalog by one model, or by several together; metrics on validation.

Shapes: B examples of a batch, L positions.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from csrec_dist.data.batches import EvaluationBatch, question
from csrec_dist.distributed.catalog import SharedRows, TableLike
from csrec_dist.evaluation.logits import Logits, MeanOfProbabilities
from csrec_dist.evaluation.metrics import MetricSums
from csrec_dist.evaluation.ranking import target_ranks
from csrec_dist.evaluation.sweep import SweepRequest, sweep
from csrec_dist.models import SequentialModel


@dataclass(frozen=True)
class Ensemble:
    """How several models rank together: `labels.combine`, and the weight of each."""

    combine: str
    weights: Sequence[float]


def logits_of(
    models: Sequence[SequentialModel], histories: Tensor, shared: SharedRows, ensemble: Ensemble | None = None
) -> Logits:
    """The logits of one model, or of several together, for the examples of all ranks of the catalog group.

    The models are in evaluation mode, without gradients; `shared` is of these histories and the models' slice. Logits
    are averaged with the ensemble's weights (Alg. 1, line 7), or for prob_mean probabilities are.
    """
    states = [shared.gather(model.encode_last(histories)) for model in models]
    return ensemble_logits(states, [model.item_table for model in models], ensemble)


def ensemble_logits(states: Sequence[Tensor], tables: Sequence[TableLike], ensemble: Ensemble | None) -> Logits:
    """The logits of models with these states and tables; without an ensemble there is one model."""
    if ensemble is None:
        return Logits(states, tables)
    if ensemble.combine != "prob_mean":
        return Logits(states, tables, ensemble.weights)
    # A member without weight would add log 0.
    members = [member for member in zip(states, tables, ensemble.weights, strict=True) if member[2]]
    log_sums = [sweep(Logits([rows], [table]), SweepRequest(log_sums=True)).log_sums for rows, table, _ in members]
    states, tables, weights = zip(*members, strict=True)
    return MeanOfProbabilities(states, tables, weights, log_sums)


def evaluate(
    model: SequentialModel,
    batches: Iterable[EvaluationBatch],
    *,
    top_n: Sequence[int],
    exclude_seen: bool,
    reduce: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """Metrics of `model` by name: recall@n, ndcg@n, mrr@n for each n of `top_n`, and mrr.

    The model sees histories only, in evaluation mode, and is left in the mode it came in.

    Args:
        exclude_seen: whether the items of the history are kept out of the ranking.
        reduce: sums a tensor over the ranks that share the examples. It is called once, after the
            last batch, also on a rank without batches.

    Raises:
        ValueError: no rank has an example of positive weight.
    """
    sums = MetricSums(top_n, device=model.item_table.weight.device)
    with _evaluation_mode(model), torch.no_grad():
        for batch in batches:
            histories, targets = question(batch)  # rows that only fill the batch have weight 0, whatever their rank
            seen = histories if exclude_seen else None
            ranks = target_ranks(model.encode_last(histories), model.item_table, targets, seen=seen)
            sums.update(ranks, batch.weights)
    sums.tensor = reduce(sums.tensor)
    return sums.compute()


@contextmanager
def _evaluation_mode(model: SequentialModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
