"""Training steps of every model with every kind of loss and labels, on windows of different lengths."""

from typing import Any

import torch
from torch import Tensor

from csrec_dist.data.batches import Batch
from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.labels.popularity import popularity_labels
from csrec_dist.losses import DenseLabels, FactoredLabels, MixtureLabels, NoiseMatrix, RobustLoss, TopKLabels
from csrec_dist.losses.soft_labels import CPU
from csrec_dist.models import build, config_class
from csrec_dist.training import TrainStep
from csrec_dist.training.options import TrainingOptions
from csrec_dist.training.step import one_hot, student_loss
from tests.helpers.windows import batch_of

NUM_ITEMS, MAX_LENGTH, NUM_WINDOWS = 117, 11, 24
METHODS = ("base", "model_level", "weighted", "data_level", "dense", "top_k", "softrec", "training_level", "norm")
"""Losses and labels: prob_mean is that of data_level here, and training_level has the exact maxima, norm a bound."""
KEYS: dict[str, dict[str, Any]] = {"bert4rec": {"prefixes": 3}, "dreamrec": {"num_steps": 20}}


def windows(num: int = NUM_WINDOWS, longest: int = MAX_LENGTH + 1, seed: int = 0) -> Batch:
    """Windows of 2 to `longest` items, and one of none, as a rank without rows has; each seed has its own examples."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(1, NUM_ITEMS + 1, (num, longest), generator=generator)
    lengths = torch.randint(2, longest + 1, (num,), generator=generator)
    lengths[0], lengths[-1] = longest, 0
    first_examples = (seed * NUM_WINDOWS + torch.arange(num)) * MAX_LENGTH
    return batch_of(items.masked_fill(torch.arange(longest) >= lengths.unsqueeze(1), 0), first_examples)


class Labels:
    """A label reader whose rows are made of examples' ids and targets, in the form of a method; float32 or float64."""

    def __init__(self, method: str, targets: Tensor, dtype: torch.dtype = torch.float32) -> None:
        """`targets` [N] are those of examples 0 … N − 1; any where an id has no example."""
        generator = torch.Generator().manual_seed(3)
        self._method, num = method, len(targets)
        self._rows = torch.randn(num, 10, generator=generator).to(dtype)
        self._table = torch.randn(NUM_ITEMS, 10, generator=generator).to(dtype)
        self._bias = torch.randn(NUM_ITEMS, generator=generator).to(dtype)
        self._counts = torch.randint(0, 50, (NUM_ITEMS,), generator=generator)
        logits = self._rows @ self._table.T + self._bias
        self._logits = logits.scatter(1, (targets - 1).clamp(min=0).unsqueeze(1), 20.0)

    def fields(self, example_ids: Any) -> dict[str, Tensor]:
        """The examples' own part."""
        ids = torch.as_tensor(example_ids)
        if self._method == "softrec":
            return {"states": torch.ones(len(ids), 1, dtype=self._rows.dtype)}
        if self._method == "dense":
            return {"logits": self._logits[ids]}
        if self._method == "top_k":
            kept = self._logits.topk(9, dim=1)
            sums = (self._logits / TEMPERATURE).logsumexp(1)
            return {"values": kept.values[ids], "items": (kept.indices[ids] + 1).int(), "logsumexp": sums[ids]}
        return {"states": self._rows[ids]}

    def labels(self, fields: Any, device: torch.device = CPU) -> Any:
        """The labels of what `fields` gave."""
        fields = {name: field.to(device, non_blocking=True) for name, field in fields.items()}
        if self._method == "dense":
            return DenseLabels(fields["logits"])
        if self._method == "top_k":
            return TopKLabels(fields["values"], fields["items"], fields["logsumexp"], TEMPERATURE, NUM_ITEMS)
        if self._table.device != device:  # once: later steps must not wait for a copy
            self._table, self._bias = self._table.to(device), self._bias.to(device)
            self._popularity = popularity_labels(self._counts, 0, device).item_weight.to(self._table.dtype)
        if self._method == "softrec":
            if not hasattr(self, "_popularity"):
                self._popularity = popularity_labels(self._counts, 0).item_weight.to(self._table.dtype)
            return FactoredLabels(fields["states"], self._popularity)
        if self._method != "data_level":
            return FactoredLabels(fields["states"], self._table, self._bias)
        halves = zip(fields["states"].split(5, 1), self._table.split(5, 1), strict=True)
        return MixtureLabels(tuple(FactoredLabels(*half) for half in halves), (0.4, 0.6))


TEMPERATURE = 2.0


def make_step(
    name: str,
    method: str,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float64,
    max_length: int = MAX_LENGTH,
    **keys: Any,
) -> TrainStep:
    """A model in training mode with weights far from zero, and the loss of a method."""
    kind = config_class(name)
    rates = {key: dropout for key in kind.model_fields if key.endswith("dropout")}
    config = kind.model_validate({"width": 16, **rates, **KEYS.get(name, {}), **keys})
    model = build(config, NUM_ITEMS, max_length, 1)
    loss_function: Any = one_hot
    if method in ("training_level", "norm"):
        maximum: Any = "exact" if method == "training_level" else "norm"
        noise = NoiseMatrix(CatalogSlice.whole(NUM_ITEMS), 3, seed=5, maximum=maximum, refresh=2)
        loss_function = RobustLoss(0.3, noise)
    elif method != "base":
        kl: Any = "forward" if method == "top_k" else "reverse"
        loss_function = student_loss(TrainingOptions(temperature=TEMPERATURE, kl=kl))
    step = TrainStep(model, loss_function).to(dtype).train()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in step.parameters():
            # Wide recurrent layers with such weights would be chaotic: in long windows rounding grows to any size.
            size = 0.3 * (16 / max(parameter.shape[-1], 16)) ** 0.5
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype))
    return step


def labels_for(method: str, *batches: Batch, dtype: torch.dtype = torch.float64) -> Labels | None:
    """The label reader of a method for the examples of these batches; None for `base`."""
    if method == "base":
        return None
    targets = torch.zeros(1 + max(int(batch.examples.max()) for batch in batches), dtype=torch.int64)
    for batch in batches:
        targets[batch.example_ids] = batch.targets[batch.targets > 0]
    return Labels(method, targets, dtype)
