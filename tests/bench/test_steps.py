"""Times of steps: what counts after the warm-up adds up to what passed."""

from types import SimpleNamespace
from typing import Any

import pytest

from csrec_dist.bench.steps import Mark, trainings


def log_of(stage: str, ends: list[float]) -> Any:
    """A log whose steps ended then, each with as many examples as its number."""
    return SimpleNamespace(
        stage=stage, marks=[Mark(None, end / 10, end / 5, number, end) for number, end in enumerate(ends, 1)]
    )


def test_the_first_steps_do_not_count_and_the_others_fill_the_time() -> None:
    (found,) = trainings([log_of("distill", [5.0, 6.0, 8.0, 11.0])], "distill", warmup=2)
    assert found.seconds == [2.0, 3.0]
    assert (found.examples, found.counted_examples) == (10, 7)
    assert (found.data_wait, found.rank_wait) == pytest.approx((0.5, 1.0))


def test_a_stage_has_the_trainings_of_its_own_logs() -> None:
    logs = [log_of("teach/a", [1.0, 2.0]), log_of("teach/b", [1.0, 4.0]), log_of("distill", [1.0, 2.0])]
    logs.append(log_of("teach/a/labels", []))
    assert [each.name for each in trainings(logs, "teach", warmup=1)] == ["teach/a", "teach/b"]
