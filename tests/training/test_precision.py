"""bf16: every model trains under autocast, with fp32 states, gradients and weights, near the gradient of fp32."""

from pathlib import Path

import pytest
import torch

from csrec_dist import models
from csrec_dist.data.batches import to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed.engines import DataParallel
from csrec_dist.distributed.groups import ALONE
from csrec_dist.distributed.layout import Layout
from csrec_dist.training import StopSignals, TrainStep
from csrec_dist.training.options import LoopOptions
from csrec_dist.training.step import Precision, one_hot
from csrec_dist.training.stepping import Stepper
from csrec_dist.training.stopping import Requests
from tests.helpers.training_steps import MAX_LENGTH, make_step, windows


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


@pytest.mark.parametrize(("name", "expected"), [("sasrec", "bf16"), ("gru4rec", "bf16"), ("bert4rec", "ieee")])
def test_training_multiplies_by_onednn_where_sizes_recur(
    name: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csrec_dist.process_state.onednn_is_as_exact", lambda: True)
    backend, device = torch.backends.mkldnn.matmul, torch.device("cpu")
    before, seen = backend.fp32_precision, []
    backend.fp32_precision = "ieee"
    try:
        step, batch = make_step(name, "base", dtype=torch.float32), windows()
        for module in step.model.modules():
            module.register_forward_hook(lambda *_: seen.append(backend.fp32_precision))
        for parameter in step.model.parameters():
            parameter.register_hook(lambda _: seen.append(backend.fp32_precision))
        engine = DataParallel(step, Layout(ALONE, ALONE, ALONE), device)
        stepper = Stepper(engine, LoopOptions(), None, 5, MAX_LENGTH + 1, lambda line: None)
        stepper.train(stepper.prepare(batch, 0, len(batch.rows)), 0, 1e-2, Requests(ALONE, StopSignals(), 10, device))
    finally:
        backend.fp32_precision = before
    assert set(seen) == {expected}
