"""What a training takes from the size of its log: good steps for any size, and never in the place of what was given."""

import itertools

import pytest

from csrec_dist.data.dataset import Split
from csrec_dist.training.defaults import resolve
from csrec_dist.training.options import ResolvedTraining, TrainingOptions

SIZES = [(windows, examples) for windows in (1, 7, 90, 1_500, 40_000, 3_000_000) for examples in (1, 9, 49, 199)]
"""Training windows, and examples in each."""


def split(windows: int, examples: int) -> Split:
    return Split("train", (windows,), (windows * examples,))


def steps_of(windows: int, chosen: ResolvedTraining) -> int:
    return -(-windows // chosen.batch_size)


@pytest.mark.parametrize(("windows", "examples"), SIZES)
def test_a_training_of_any_size_has_steps_to_learn_in_and_an_end(windows: int, examples: int) -> None:
    chosen = resolve(TrainingOptions(), split(windows, examples))
    steps = steps_of(windows, chosen)
    assert chosen.batch_size * examples <= 4096 or chosen.batch_size == 1, "windows that no step can split"
    assert steps >= min(windows, 8), "an epoch of few steps learns little"
    assert chosen.warmup_steps < steps * chosen.patience, "patience outlasts the warm-up"
    assert chosen.patience < chosen.max_epochs
    assert steps * chosen.max_epochs >= 1_000 or windows < 10


@pytest.mark.parametrize("examples", [1, 9, 49, 199])
def test_a_larger_log_has_no_smaller_batches_and_no_more_epochs(examples: int) -> None:
    for smaller, larger in itertools.pairwise((7, 90, 1_500, 40_000, 3_000_000)):
        less, more = (resolve(TrainingOptions(), split(windows, examples)) for windows in (smaller, larger))
        assert less.batch_size <= more.batch_size
        assert less.max_epochs >= more.max_epochs
        assert less.patience >= more.patience


@pytest.mark.parametrize(
    ("key", "value"),
    [("batch_size", 5), ("learning_rate", 0.5), ("warmup_steps", 0), ("max_epochs", 3), ("patience", 77)],
)
def test_what_is_given_is_kept(key: str, value: float) -> None:
    chosen = resolve(TrainingOptions.model_validate({key: value, "beta": 0.25}), split(1_500, 49))
    assert (getattr(chosen, key), chosen.beta) == (value, 0.25)


@pytest.mark.parametrize(("windows", "examples"), SIZES)
def test_what_was_chosen_is_chosen_again(windows: int, examples: int) -> None:
    once = resolve(TrainingOptions(), split(windows, examples))
    assert not TrainingOptions().is_resolved
    assert once.is_resolved
    assert resolve(once, split(12, 3)) == once, "a run's config says what it took, whatever there is now"
