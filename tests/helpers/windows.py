"""Training inputs of windows that a test gives as tensors."""

import torch
from torch import Tensor

from csrec_dist.data.batches import Batch
from csrec_dist.models import SequentialModel, TrainingInputs


def batch_of(items: Tensor, first_examples: Tensor | None = None) -> Batch:
    """Windows [B, L + 1], targets included; the id of each one's first example, by default with room between them."""
    num_rows, length = items.shape
    offsets = torch.arange(num_rows) * (length - 1) if first_examples is None else first_examples
    lengths, rows = (items != 0).sum(1), torch.arange(num_rows)
    return Batch(items, lengths, (lengths > 0).float(), rows, rows, offsets)


def inputs_of(
    model: SequentialModel,
    items: Tensor,
    seed: int = 1,
    first_examples: Tensor | None = None,
    *,
    padded: bool = False,
) -> TrainingInputs:
    """What the model trains on of these windows."""
    return model.inputs(batch_of(items, first_examples), seed, padded=padded)
