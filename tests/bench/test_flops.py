"""Operations by count: formulas against plain PyTorch, and encoders against the products that they are made of."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from csrec_dist.bench.flops import encoder_flops, loss_flops
from csrec_dist.data.batches import Batch, to_batch
from csrec_dist.models import config_class
from csrec_dist.models.registry import MODELS

N, V, D = 12, 40, 6


def windows(num_rows: int, length: int) -> Batch:
    """Rows of `length` random items."""
    items = np.random.default_rng(0).integers(1, 60, (num_rows, length))
    columns = {"items": items, "lengths": np.full(num_rows, length), "weights": np.ones(num_rows, np.float32)}
    numbers = np.arange(num_rows)
    return to_batch(columns | {"rows": numbers, "users": numbers, "example_offsets": (length - 1) * numbers})


@pytest.mark.parametrize(("label_width", "noise_rank"), [(0, 0), (10, 0), (10, 4)])
def test_a_loss_takes_the_products_of_its_plain_form(label_width: int, noise_rank: int) -> None:
    states, table = torch.randn(N, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    observed, preferred = (torch.randn(V, noise_rank, requires_grad=True) for _ in range(2))
    targets = torch.randint(V, (N,))
    with FlopCounterMode(display=False) as counter:
        logits = states @ table.T
        loss = torch.nn.functional.cross_entropy(logits, targets)
        if label_width:
            soft = (torch.randn(N, label_width) @ torch.randn(label_width, V)).softmax(1)
            loss = loss - (soft * logits.log_softmax(1)).sum()
        if noise_rank:
            loss = loss + (logits.softmax(1) * (observed[targets] @ preferred.T)).sum()
        loss.backward()
    assert counter.get_total_flops() == N * loss_flops(V, D, label_width, noise_rank)


def test_an_encoder_takes_the_products_of_its_layers() -> None:
    width, inner, layers, length = 16, 48, 3, 7
    config = config_class("sasrec").model_validate(
        {"name": "sasrec", "width": width, "inner_width": inner, "num_layers": layers}
    )
    found = encoder_flops(config, windows(20, length + 1), windows(20, length + 1), length + 2)
    projections, feed_forward, attention = 4 * 2 * width**2, 2 * 2 * width * inner, 2 * 2 * length * width
    of_position = layers * (projections + feed_forward + attention)
    assert found.labelling == of_position
    assert found.training == 3 * of_position
    assert found.ranking == length * of_position


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_has_operations_that_do_not_depend_on_the_number_of_rows(name: str) -> None:
    config = config_class(name).model_validate({"name": name, "width": 16})
    few, many = (encoder_flops(config, windows(rows, 9), windows(rows, 10), 11) for rows in (200, 400))
    assert min(few.training, few.labelling, few.ranking) > 0
    assert few.training > few.labelling / 2
    assert (many.training, many.labelling) == pytest.approx((few.training, few.labelling), rel=0.1)
