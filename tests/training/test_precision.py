"""bf16: every model trains under autocast, with fp32 states, gradients and weights, near the gradient of fp32."""

from pathlib import Path

import pytest
import torch

from csrec_dist import models
from csrec_dist.data.batches import to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.training import TrainStep
from csrec_dist.training.step import Precision, one_hot


def trained(name: str, precision: Precision, folder: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of a batch, and its gradients."""
    dataset = Dataset(folder)
    config = models.config_class(name).model_validate({"name": name, "width": 16, "dropout": 0})
    step = TrainStep(models.build(config, dataset.num_items, dataset.window - 1, seed=0), one_hot, precision=precision)
    stream = dataset.stream("train", batch_size=16, epoch=0, seed=1)
    batch = to_batch(next(iter(stream)))
    torch.manual_seed(0)
    loss = step(step.model.inputs(batch, seed=3), None)
    loss.sum.backward()
    return loss.sum.detach(), {n: p.grad for n, p in step.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_trains_in_bf16(name: str, small_dataset: Path) -> None:
    (loss, gradients), (expected, exact) = (trained(name, each, small_dataset) for each in ("bf16", "fp32"))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.01, atol=0)
    assert gradients.keys() == exact.keys()
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    whole, whole_exact = (torch.cat([g.flatten() for g in each.values()]) for each in (gradients, exact))
    assert not torch.allclose(whole, whole_exact, rtol=1e-4), "bf16 would not differ so little"
    assert torch.cosine_similarity(whole, whole_exact, dim=0) > 0.99
