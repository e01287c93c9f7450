"""What a training takes from the size of its log: good steps for any size, and never in the place of what was given."""

import doctest
import itertools

import pytest

from csrec_dist.data.dataset import Split
from csrec_dist.training import defaults
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
    assert chosen.batch_size * examples <= 2**0.5 * 2048, "the nearest power of two windows"
    assert 1e-3 <= chosen.learning_rate <= 4e-3
    assert steps >= min(windows / 2, 8), "an epoch of few steps learns little"
    assert chosen.batch_size >= 2, "windows that a model may contrast"
    assert chosen.warmup_steps < steps * chosen.patience, "patience outlasts the warm-up"
    assert chosen.patience < chosen.max_epochs
    assert steps * chosen.max_epochs >= 1_000 or windows < 10


@pytest.mark.parametrize("examples", [1, 9, 49, 199])
def test_a_larger_log_has_no_smaller_batches_and_no_more_epochs(examples: int) -> None:
    for smaller, larger in itertools.pairwise((7, 90, 1_500, 40_000, 3_000_000)):
        less, more = (resolve(TrainingOptions(), split(windows, examples)) for windows in (smaller, larger))
        assert less.batch_size <= more.batch_size
        assert less.learning_rate <= more.learning_rate
        assert less.max_epochs >= more.max_epochs
        assert less.patience >= more.patience


def test_the_example_of_the_docstring() -> None:
    assert doctest.testmod(defaults) == (0, 3)


def test_the_learning_rate_grows_with_the_root_of_a_given_batch() -> None:
    chosen = [resolve(TrainingOptions(batch_size=size), split(40_000, 32)) for size in (1, 16, 64, 256, 4096)]
    assert [each.learning_rate for each in chosen] == [1e-3, 1e-3, 2e-3, 4e-3, 4e-3]


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
