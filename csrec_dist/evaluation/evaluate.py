"""A model's metrics on examples, the full catalog being ranked."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from csrec_dist.evaluation.metrics import MetricSums
from csrec_dist.evaluation.ranking import target_ranks
from csrec_dist.models import SequentialModel


class EvaluationBatch(Protocol):
    """Rows of a history followed by its target, on the model's device."""

    @property
    def items(self) -> Tensor:
        """[B, L] int64, right-padded with 0; the last item of a row is its target."""

    @property
    def lengths(self) -> Tensor:
        """[B] int64, targets included: at least 2 where the weight is not 0."""

    @property
    def weights(self) -> Tensor:
        """[B] float; 0 for rows that only fill the batch."""


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
    assert bool(((batch.lengths >= 2) | (batch.weights == 0)).all())
    last = (batch.lengths - 1).clamp(min=1).unsqueeze(1)
    targets = batch.items.gather(1, last).squeeze(1).clamp(min=1)
    histories = batch.items.scatter(1, last, 0)[:, :-1]
    return target_ranks(
        model.encode_last(histories),
        model.item_table.weight,
        targets,
        item_bias=model.item_table.bias,
        seen=histories if exclude_seen else None,
    )


@contextmanager
def _evaluation_mode(model: SequentialModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
