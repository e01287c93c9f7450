"""The engine's Adam has the bits of torch's."""

import torch

from csrec_dist.distributed.engines.adam import FusedAdam


def test_steps_have_the_bits_of_torchs_fused_adam() -> None:
    """Parameters of two types, one of which gets its first gradient later, and none at one step."""
    g = torch.Generator().manual_seed(0)
    shapes = {(5, 3): torch.float32, (7,): torch.float32, (2, 2): torch.float64}
    first = [torch.randn(shape, generator=g).to(dtype).requires_grad_() for shape, dtype in shapes.items()]
    second = [parameter.detach().clone().requires_grad_() for parameter in first]
    adam, torchs = FusedAdam(first), torch.optim.Adam(second, fused=True)
    for step in range(6):
        torchs.param_groups[0]["lr"] = learning_rate = 0.1 / (step + 1)
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            if number != 1 or step not in (0, 3):
                gradient = torch.randn(one.shape, generator=g).to(one.dtype)
                one.grad, other.grad = gradient, gradient.clone()
        adam.step(learning_rate)
        torchs.step()
        torchs.zero_grad()
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one, other)
            assert one.grad is None
    for one, other in zip(first, second, strict=True):
        assert adam.state[one].keys() == torchs.state[other].keys()
        for name, value in torchs.state[other].items():
            assert torch.equal(adam.state[one][name], value)
