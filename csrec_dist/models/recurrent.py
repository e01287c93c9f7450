"""A gated recurrent net (Cho et al., 2014) whose gradient on a CPU is written out: few operations for each position.

Shapes: L positions, B windows, d inputs, H hidden numbers. The arrays of a layer have the positions first.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from csrec_dist.process_state import small_products

LARGE_PRODUCT = 1 << 18
"""B · H², from which the library that multiplies large matrices fast is as fast with those of one position."""


class GRU(nn.GRU):
    """torch's GRU layers without bias: the same weights, and the same states but for rounding.

    The products of a position are small, as a batch has few windows, and each operation costs as much as it computes.
    torch goes back through a position by some twenty of them on a CPU; here they are three.
    """

    def __init__(self, width: int, hidden: int, num_layers: int) -> None:
        super().__init__(width, hidden, num_layers, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """States [B, L, H] of the last layer, of inputs [B, L, d]."""
        is_full = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(x.device.type)
        if not self.training or x.device.type != "cpu" or not is_full:
            states: Tensor = super().forward(x)[0]
            return states
        x = x.transpose(0, 1).contiguous()
        for layer in range(self.num_layers):
            weights = (self.get_parameter(f"weight_{kind}_l{layer}") for kind in ("ih", "hh"))
            x = _Layer.apply(x, *weights)
        return x.transpose(0, 1)


def _products(batch: int, hidden: int) -> AbstractContextManager[None]:
    """What the products of single positions are computed in."""
    return small_products() if batch * hidden**2 <= LARGE_PRODUCT else nullcontext()


class _Layer(torch.autograd.Function):
    """One layer, [L, B, d] → [L, B, H].

    Of an input x and the state h before, with a = W x and p = U h: r = σ(a_r + p_r), z = σ(a_z + p_z),
    n = tanh(a_n + r p_n), and the next state is n + z (h − n).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, recurrent: Tensor) -> Tensor:
        (length, batch, _), hidden = x.shape, recurrent.shape[1]
        # tanh y = 2 σ(2y) − 1, with the 2 in the weights: torch leaves tanh to MKL, which is slow on AMD's processors.
        doubled = x.new_ones(3 * hidden)
        doubled[2 * hidden :] = 2
        gates = (x.flatten(0, 1) @ (weight.T * doubled)).view(length, batch, 3 * hidden)
        recurrent_2 = recurrent.T * doubled
        past = torch.empty_like(gates)
        states = x.new_empty(length + 1, batch, hidden)
        states[0] = 0
        steps = [part.unbind() for part in (past, states[:-1], states[1:])]
        for array in (gates, past):
            steps += [part.unbind() for part in (array[..., : 2 * hidden], array[..., 2 * hidden :])]
        steps += [part.unbind() for part in gates[..., : 2 * hidden].split(hidden, -1)]
        with _products(batch, hidden):
            for p, state, next_state, r_z, n, p_r_z, p_n, r, z in zip(*steps, strict=True):
                torch.mm(state, recurrent_2, out=p)
                r_z.add_(p_r_z).sigmoid_()
                n.addcmul_(r, p_n).sigmoid_().mul_(2).sub_(1)
                torch.lerp(n, state, z, out=next_state)
        ctx.save_for_backward(x, weight, recurrent, gates, past, states)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        x, weight, recurrent, gates, past, states = ctx.saved_tensors
        (length, batch, _), hidden = x.shape, recurrent.shape[1]
        r, z, n = gates.split(hidden, -1)
        # The gradients of p are that of the next state times factors that are known for all positions beforehand: those
        # of p_n are r times those of the sum under tanh. `past` holds 2 p_n.
        of_sum = torch.addcmul(x.new_ones(()), n, n, value=-1).mul_(1 - z)
        of_past = x.new_empty(length, batch, 3, hidden)
        torch.mul(of_sum, r, out=of_past[:, :, 2])
        torch.mul(of_past[:, :, 2], past[..., 2 * hidden :], out=of_past[:, :, 0]).mul_(1 - r).mul_(0.5)
        torch.mul(states[:-1] - n, z, out=of_past[:, :, 1]).mul_(1 - z)
        rows = of_past.view(length, batch, 3 * hidden)
        of_states = gradient.clone(memory_format=torch.contiguous_format)
        steps = list(zip(of_past.unbind(), rows.unbind(), of_states.unbind(), z.unbind(), strict=True))
        with _products(batch, hidden):
            for (factors, row, of_state, update), earlier in zip(steps[:0:-1], of_states.unbind()[-2::-1], strict=True):
                factors.mul_(of_state.unsqueeze(1))
                earlier.addcmul_(of_state, update).addmm_(row, recurrent)
        of_past[0].mul_(of_states[0].unsqueeze(1))
        rows = rows.flatten(0, 1)
        of_gates = torch.cat([rows[:, : 2 * hidden], of_states.mul_(of_sum).flatten(0, 1)], dim=1)
        of_recurrent = rows.T @ states[:-1].flatten(0, 1)
        return (of_gates @ weight).view_as(x), of_gates.T @ x.flatten(0, 1), of_recurrent
