"""The recurrent net whose gradient is written out, against torch's in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from csrec_dist.models.recurrent import GRU, LARGE_PRODUCT

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def outcome(layer: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """The states, and the gradients of a sum of them in which each number weighs differently."""
    states = forward(x)
    weights = torch.linspace(-1, 2, states.numel(), dtype=states.dtype).view_as(states)
    return [states, *torch.autograd.grad((states * weights).sum(), [x, *layer.parameters()])]


def inputs(batch: int, length: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, width, generator=generator, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("batch", "hidden"), [(3, 5), (LARGE_PRODUCT // 64 + 1, 8)])
@pytest.mark.parametrize(("num_layers", "length"), [(1, 1), (1, 6), (2, 4)])
def test_a_recurrent_net_is_torchs(num_layers: int, length: int, batch: int, hidden: int) -> None:
    torch.manual_seed(0)
    layer, x = GRU(4, hidden, num_layers).double(), inputs(batch, length, 4)
    torchs = outcome(layer, lambda x: nn.GRU.forward(layer, x)[0], x)
    for ours, theirs in zip(outcome(layer, layer, x), torchs, strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    torch.testing.assert_close(layer.eval()(x), torchs[0], **CLOSE)


def test_its_states_do_not_change_under_autocast_more_than_bf16_does() -> None:
    torch.manual_seed(0)
    layer, x = GRU(4, 5, 2), inputs(3, 6, 4).float()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x)
    torch.testing.assert_close(rounded.float(), layer(x), rtol=0, atol=0.03)
