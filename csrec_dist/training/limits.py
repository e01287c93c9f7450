"""When a training ends: a pure function of its limits and of what its epochs have found."""

from collections.abc import Mapping, Sequence
from typing import Any

from csrec_dist.training.options import ResolvedTraining

SELECTION_METRIC = "ndcg@10"


def num_epochs(epochs: Sequence[Mapping[str, Any]], options: ResolvedTraining) -> int | None:
    """After how many of these epochs a training with these limits ends; None when it goes on after all of them."""
    best, best_epoch = -1.0, 0
    for number, epoch in enumerate(epochs, 1):
        if epoch["valid"][SELECTION_METRIC] > best:
            best, best_epoch = epoch["valid"][SELECTION_METRIC], number
        is_impatient = best_epoch > 0 and number - best_epoch >= options.patience
        has_steps = options.max_steps is None or epoch["step"] < options.max_steps
        if number >= options.max_epochs or is_impatient or not has_steps:
            return number
    return None


def exceeded(epochs: Sequence[Mapping[str, Any]], is_within: bool, options: ResolvedTraining) -> str | None:
    """The limit, in a few words, that these epochs (and a part of one more, `is_within`) have gone beyond; or None."""
    ended = num_epochs(epochs, options)
    if ended is None or (ended == len(epochs) and not is_within):
        return None
    name = "max_epochs" if ended >= options.max_epochs else "patience"
    return (
        f"training.{name} is {getattr(options, name)}, with which the training would have ended after {ended} epochs; "
        f"{len(epochs)} are done{' and a part of one' if is_within else ''}"
    )
