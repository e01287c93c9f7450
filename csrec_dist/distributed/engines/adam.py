"""Adam with torch's fused kernels. `torch.optim` has the same, but its first step imports torch's compiler: 2.7 s."""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Those of torch.optim.Adam."""

State = dict[str, Tensor]


def new_state(parameter: Tensor) -> State:
    """What torch's fused Adam makes of a parameter at its first step."""
    return {
        "step": torch.zeros((), device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


class FusedAdam:
    """Adam (Kingma and Ba, 2015) of parameters of one device and type each, with the bits of torch's `fused=True`.

    `state` has the count of steps and the moments of each parameter that has had a gradient.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parameters = list(parameters)
        self.state: dict[Tensor, State] = {}

    def make_states(self, parameters: Collection[Tensor]) -> None:
        """Make the states of parameters that have had a gradient before, for a checkpoint to fill."""
        self.state |= {parameter: new_state(parameter) for parameter in parameters}

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """A step of the parameters that have a gradient, which they then have no more."""
        by_type: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for parameter in self._parameters:
            if parameter.grad is not None:
                by_type.setdefault((parameter.device, parameter.dtype), []).append(parameter)
        for parameters in by_type.values():
            self.make_states([each for each in parameters if each not in self.state])
            states = [self.state[each] for each in parameters]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(
                parameters,
                [each.grad for each in parameters if each.grad is not None],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                steps,
                lr=learning_rate,
                beta1=BETAS[0],
                beta2=BETAS[1],
                weight_decay=0.0,
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
            )
            for each in parameters:
                each.grad = None
