"""Adam's step size at every step of a training, a pure function of the step, so that a resumed run takes the same."""

import math
from collections.abc import Callable

from csrec_dist.config import LoopOptions

SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2,
}
"""Share of the step size by the share of the steps after warm-up that are done, 0 to 1."""


def learning_rate(options: LoopOptions, step: int, num_steps: int) -> float:
    """The step size of update `step` (0 … num_steps − 1) of a training of at most `num_steps`.

    It rises in equal parts over the first `warmup_steps` updates, then follows the shape of `schedule` towards 0,
    which it would reach one update after the last. Early stopping does not change it.
    """
    warmup = options.warmup_steps
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    return options.learning_rate * SHAPES[options.schedule]((step - warmup) / max(num_steps - warmup, 1))
