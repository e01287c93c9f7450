"""A model's metrics on examples, the full catalog being ranked."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from csrec_dist.evaluation.metrics import MetricSums
from csrec_dist.evaluation.ranking import target_ranks
from csrec_dist.evaluation.scoring import EvaluationBatch, question
from csrec_dist.models import SequentialModel


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
            sums.update(_ranks(model, batch, exclude_seen), batch.weights)
    sums.tensor = reduce(sums.tensor)
    return sums.compute()


def _ranks(model: SequentialModel, batch: EvaluationBatch, exclude_seen: bool) -> Tensor:
    """Ranks [B] of the targets; rows that only fill the batch get some rank too."""
    histories, targets = question(batch)
    return target_ranks(
        model.encode_last(histories),
        model.item_table.weight,
        targets,
        item_bias=model.item_table.bias,
        seen=histories if exclude_seen else None,
        catalog=model.item_table.catalog,
    )


@contextmanager
def _evaluation_mode(model: SequentialModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
