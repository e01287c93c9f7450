"""When a training ends: a pure function of its limits and of its epochs' metrics; what else can end it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from csrec_dist.errors import SharedUserError
from csrec_dist.training.options import ResolvedTraining

SELECTION_METRIC = "ndcg@10"
Epochs = Sequence[Mapping[str, Any]]
AfterEpoch = Callable[[str, Epochs], None]
"""Called after each epoch with the stage of a training (`distill`) and all of its epochs so far, on all of its ranks.
What it raises, the same on each of them, ends the training; the checkpoint of the epoch is being written then."""


class FailedTrainingError(SharedUserError):
    """The loss or a weight of a training is no longer finite, or none of its examples weighs anything."""


ROUNDING = 1e-12
"""Sums of the same gains differ by less, in whatever order and on however many ranks they are added up."""


def is_better(metrics: Mapping[str, float], best: float) -> bool:
    """Whether an epoch's validation beats the best one before it; an equal one does not, however its sums round."""
    return metrics[SELECTION_METRIC] > best + ROUNDING


def num_epochs(epochs: Epochs, options: ResolvedTraining) -> int | None:
    """The number of these epochs after which a training with these limits ends; None if it goes on after all."""
    best, best_epoch = -1.0, 0
    for number, epoch in enumerate(epochs, 1):
        if is_better(epoch["valid"], best):
            best, best_epoch = epoch["valid"][SELECTION_METRIC], number
        is_impatient = best_epoch > 0 and number - best_epoch >= options.patience
        has_steps = options.max_steps is None or epoch["step"] < options.max_steps
        if number >= options.max_epochs or is_impatient or not has_steps:
            return number
    return None


def exceeded(epochs: Epochs, is_within: bool, options: ResolvedTraining) -> str | None:
    """The limit, in a few words, that these epochs (and a part of one more, if `is_within`) have exceeded; or None."""
    ended = num_epochs(epochs, options)
    if ended is None or (ended == len(epochs) and not is_within):
        return None
    name = "max_epochs" if ended >= options.max_epochs else "patience"
    return (
        f"training.{name} is {getattr(options, name)}, with which the training would have ended after {ended} epochs; "
        f"{len(epochs)} are done{' and a part of one' if is_within else ''}"
    )
