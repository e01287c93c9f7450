"""The training loop, one for teachers and students, and what it is made of."""

from csrec_dist.training.loop import Trainer
from csrec_dist.training.step import Objective, TrainStep, step_seed, training_inputs
from csrec_dist.training.stopping import Stopped, StopSignals

__all__ = ["Objective", "StopSignals", "Stopped", "TrainStep", "Trainer", "step_seed", "training_inputs"]
