"""The training loop, one for teachers and students, and what it is made of."""

from typing import TYPE_CHECKING

from csrec_dist.lazy import attributes

if TYPE_CHECKING:
    from csrec_dist.training.step import LossFunction, TrainStep, step_seed, training_inputs
    from csrec_dist.training.stopping import Stopped, StopSignals
    from csrec_dist.training.trainer import Trainer

__all__ = ["LossFunction", "StopSignals", "Stopped", "TrainStep", "Trainer", "step_seed", "training_inputs"]

__getattr__ = attributes(
    __name__,
    {
        "csrec_dist.training.step": ["LossFunction", "TrainStep", "step_seed", "training_inputs"],
        "csrec_dist.training.stopping": ["Stopped", "StopSignals"],
        "csrec_dist.training.trainer": ["Trainer"],
    },
)
