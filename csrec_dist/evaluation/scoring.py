"""What ranks the catalog: a model or several together, read one block of logits at a time; metrics on validation.

Shapes: B examples of a batch, R of a block, L positions, V items. Where the models hold slices of the catalog, logits
[R, V] are those of this rank's slice for the examples of all ranks of its group.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from csrec_dist.distributed.catalog import CatalogSlice, SharedRows
from csrec_dist.evaluation.metrics import MetricSums
from csrec_dist.evaluation.ranking import rows_in_block, target_ranks
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


class Question(NamedTuple):
    """Histories [B, L−1] without their targets, and the targets [B] in 1…V (any item where the weight is 0)."""

    histories: Tensor
    targets: Tensor


def question(batch: EvaluationBatch) -> Question:
    """What a model is shown of a batch, and what it should have said."""
    assert bool(((batch.lengths >= 2) | (batch.weights == 0)).all())
    last = (batch.lengths - 1).clamp(min=1).unsqueeze(1)
    targets = batch.items.gather(1, last).squeeze(1).clamp(min=1)
    return Question(batch.items.scatter(1, last, 0)[:, :-1], targets)


def logits_by_block(
    models: Sequence[SequentialModel], histories: Tensor, shared: SharedRows
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Slices of the examples with the logits [R, V] of each model, in at least single precision.

    The logits of all models together take `BLOCK_BYTES`, or one row each if that is more. The models are in
    evaluation mode, without gradients. The slices are of the examples that the ranks of the catalog group bring
    together; `shared` is of these histories and the models' slice.
    """
    states = [shared.gather(model.encode_last(histories)) for model in models]
    num_items = shared.part.most_rows * len(models)
    num_rows = rows_in_block(num_items, torch.float32.itemsize, histories.device)
    for start in range(0, len(states[0]), num_rows):
        rows = slice(start, min(start + num_rows, len(states[0])))
        yield rows, [_logits(model, part[rows]) for model, part in zip(models, states, strict=True)]


def alone(logits: Sequence[Tensor]) -> Tensor:
    """The logits of the one model there is."""
    (own,) = logits
    return own


def mean_of_logits(logits: Sequence[Tensor], weights: Sequence[float], catalog: CatalogSlice) -> Tensor:
    """The logits [R, V] of members whose logits are averaged with these weights (Alg. 1, line 7)."""
    return sum((part * weight for part, weight in zip(logits, weights, strict=True)), torch.zeros_like(logits[0]))


def mean_of_probabilities(logits: Sequence[Tensor], weights: Sequence[float], catalog: CatalogSlice) -> Tensor:
    """Logits [R, V] of members whose probabilities are averaged with these weights: the logarithm of the mean."""
    pairs = zip(logits, weights, strict=True)
    logs = [catalog.log_softmax(part) + math.log(weight) for part, weight in pairs if weight]
    return torch.stack(logs).logsumexp(0)


COMBINE = {"logit_mean": mean_of_logits, "weighted": mean_of_logits, "prob_mean": mean_of_probabilities}


def _logits(model: SequentialModel, states: Tensor) -> Tensor:
    table, dtype = model.item_table, torch.promote_types(states.dtype, torch.float32)
    bias = None if table.bias is None else table.bias.to(dtype)
    return F.linear(states.to(dtype), table.weight.to(dtype), bias)


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
    seen = histories if exclude_seen else None
    return target_ranks(model.encode_last(histories), model.item_table, targets, seen=seen)


@contextmanager
def _evaluation_mode(model: SequentialModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
