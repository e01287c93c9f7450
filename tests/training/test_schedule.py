"""The learning rate: values by hand; every engine takes it; a resumed run goes on with it."""

import pytest
import torch

from csrec_dist.data.dataset import Split
from csrec_dist.distributed import Group
from csrec_dist.distributed.engines import DataParallel
from csrec_dist.distributed.layout import Layout
from csrec_dist.training.defaults import resolve
from csrec_dist.training.options import LoopOptions, TrainingOptions
from csrec_dist.training.trainer import SHAPES, learning_rate


def rates(num_steps: int, **options: object) -> list[float]:
    given = TrainingOptions.model_validate({"learning_rate": 0.8, "warmup_steps": 0, **options})
    chosen = resolve(given, Split("train", (9,), (9,)))
    return [learning_rate(chosen, step, num_steps) for step in range(num_steps)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.8, 0.8, 0.8, 0.8]),
        ({"warmup_steps": 2}, [0.4, 0.8, 0.8, 0.8]),
        ({"schedule": "linear"}, [0.8, 0.6, 0.4, 0.2]),
        ({"schedule": "cosine"}, [0.8, 0.4 + 0.4 * 2**-0.5, 0.4, 0.4 - 0.4 * 2**-0.5]),
        ({"schedule": "linear", "warmup_steps": 2}, [0.4, 0.8, 0.8, 0.4]),
        ({"schedule": "linear", "warmup_steps": 8}, [0.1, 0.2, 0.3, 0.4]),
    ],
)
def test_step_sizes_by_hand(options: dict[str, object], expected: list[float]) -> None:
    assert rates(4, **options) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", SHAPES)
def test_the_step_size_never_rises_after_warm_up_and_stays_above_0(schedule: str) -> None:
    found = rates(50, schedule=schedule, warmup_steps=7)
    assert found[:7] == sorted(found[:7])
    assert found[7:] == sorted(found[7:], reverse=True)
    assert max(found) == pytest.approx(0.8)
    assert min(found) > 0


def test_the_schema_and_the_shapes_name_the_same_schedules() -> None:
    assert set(SHAPES) == set(LoopOptions.model_fields["schedule"].annotation.__args__)  # type: ignore[union-attr]


@pytest.fixture
def engine() -> DataParallel:
    layout = Layout(*[Group((0,), 0)] * 3)
    return DataParallel(torch.nn.Linear(3, 1, bias=False), layout, torch.device("cpu"))


def test_an_update_is_as_long_as_the_step_size(engine: DataParallel) -> None:
    """Adam's update of a constant gradient is the learning rate in each coordinate."""
    for rate in (0.5, 0.125, 0.0):
        before = engine.module.weight.detach().clone()  # type: ignore[operator]
        engine.backward(engine.forward(torch.ones(1, 3)).sum())
        engine.step(rate)
        assert (before - engine.module.weight).tolist() == [pytest.approx([rate] * 3, abs=1e-6)]
