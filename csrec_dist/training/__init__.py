"""The training loop, one for teachers and students, and what it is made of."""

from typing import TYPE_CHECKING

from csrec_dist.lazy import attributes

if TYPE_CHECKING:
    from csrec_dist.training.step import LossFunction, TrainStep, one_hot, step_seed, student_loss
    from csrec_dist.training.stopping import Stopped, StopSignals
    from csrec_dist.training.trainer import Trainer

__all__ = ["LossFunction", "StopSignals", "Stopped", "TrainStep", "Trainer", "one_hot", "step_seed", "student_loss"]

__getattr__ = attributes(
    __name__,
    {
        "csrec_dist.training.step": ["LossFunction", "TrainStep", "one_hot", "step_seed", "student_loss"],
        "csrec_dist.training.stopping": ["Stopped", "StopSignals"],
        "csrec_dist.training.trainer": ["Trainer"],
    },
)
