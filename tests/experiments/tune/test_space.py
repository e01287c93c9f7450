"""The space of a search: what is read, what is refused, and how Optuna's parameters become values."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csrec_dist.config import read_yaml
from csrec_dist.errors import UserError
from csrec_dist.experiments.tune.space import MOST_COMBINATIONS, Range, Space, read_space

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
RAW = {"name": "r", "dataset": {"source": "log.csv"}, "model": {"name": "gru4rec", "width": 16}}


def space_of(dimensions: dict[str, Any]) -> Space:
    return read_space(dimensions, RAW)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("training.temprature", [1, 3], "training.temprature: unknown key; did you mean temperature?"),
        ("trainng.beta", [0.5], "trainng: unknown key; did you mean training?"),
        ("model.widht", [8], "model.widht: unknown key; did you mean width?"),
        ("model.name", ["grurec"], "model.name: 'grurec' is not a model; did you mean gru4rec?"),
        ("training.beta", [0.5, 2], "training.beta: Input should be less than or equal to 1 (received 2)"),
        ("training.beta", {"low": 0.5, "high": 1.5}, "training.beta: Input should be less than or equal to 1"),
        ("training.kl", ["reverse", "backward"], "(received 'backward')"),
        ("training.beta", {"low": 0.5, "hihg": 1}, "training.beta: high: missing, but required. hihg: unknown key"),
        ("training.beta", {"low": 0.5, "high": 0.5}, "training.beta: low is 0.5 and high is 0.5"),
        ("training.beta", {"low": 0, "high": 1, "log": True}, "log needs a low above 0, not 0"),
        ("training.beta", {"low": 0.1, "high": 1, "log": True, "step": 0.1}, "log and step exclude each other"),
        ("training.beta", {"low": 0.5, "high": 1, "step": 0.6}, "step must be above 0 and at most high - low, not 0.6"),
        ("training.beta", [], "training.beta: an empty list"),
        ("training.kl", ["reverse", "reverse"], "training.kl: 'reverse' stands there twice"),
        ("training.beta", 0.5, "training.beta: give a list of values or {low: …, high: …}, not 0.5"),
        ("training", {"beta": [0.5]}, "training: name the keys of a section with a dot, such as training.beta"),
        ("seed", [0, 1], "seed: a search would choose the luckiest seed"),
        ("teachers.seed", [0, 1], "teachers.seed: a search would choose the luckiest seed"),
        ("training.log_steps", [5], "training.log_steps: it decides no result"),
        ("output", ["a", "b"], "output: it decides no result"),
        ("dataset.window", [5, 10], "dataset.window: it decides what trials are measured by"),
        ("evaluation.exclude_seen", [True], "evaluation.exclude_seen: it decides what trials are measured by"),
        ("baseline", [True, False], "baseline: it decides what trials are measured by"),
    ],
)
def test_what_is_wrong_with_a_key_is_said(key: str, value: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        space_of({key: value})
    assert said in str(error.value)
    assert "1 mistake:" in str(error.value)


def test_all_mistakes_are_said_at_once_and_the_right_keys_not_named() -> None:
    with pytest.raises(UserError, match="has 2 mistakes") as error:
        space_of({"training.betta": [0.5], "model.width": [8, 16], "training.kl": ["back"]})
    assert "model.width" not in str(error.value)


def test_a_section_and_a_key_in_it_are_not_both_searched() -> None:
    with pytest.raises(UserError, match=r"1 mistake:\n  - model would undo model\.width: give one of them\."):
        space_of({"model.width": [8, 16], "model": ["sasrec", "gru4rec"]})


@pytest.mark.parametrize("path", sorted((CONFIGS / "spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_spaces_are_of_the_demo(path: Path) -> None:
    assert read_space(path, read_yaml(CONFIGS / "experiments/demo.yaml")).combinations


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(UserError, match="is empty; give at least one key"):
        space_of({})


def test_values_may_exclude_each_other_in_some_combinations() -> None:
    """A trial of such a combination fails; the others are searched."""
    space = space_of({"labels.form": ["factored", "topk"], "training.kl": ["reverse", "forward"]})
    assert len(space.combinations or []) == 4


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"low": 1, "high": 3}, [1, 2, 3]),
        ({"low": 2, "high": 9, "step": 3}, [2, 5, 8]),
        ({"low": 0.1, "high": 0.4, "step": 0.1}, [0.1, 0.2, 0.3, 0.4]),
        ({"low": 0.25, "high": 0.8, "step": 0.25}, [0.25, 0.5, 0.75]),
        ({"low": 1.0, "high": 3.0}, None),
        ({"low": 0.001, "high": 0.1, "log": True}, None),
        ({"low": 1, "high": MOST_COMBINATIONS + 1}, None),
        ({"low": "1e-4", "high": "1e-2", "log": True}, None),
        ({"low": "1e-1", "high": 0.3, "step": "1e-1"}, [0.1, 0.2, 0.3]),
    ],
)
def test_the_values_of_a_range(options: dict[str, Any], values: list[float] | None) -> None:
    assert Range.model_validate(options).values == values


def test_the_key_decides_whether_only_whole_numbers_are_tried() -> None:
    ends = {"low": 0, "high": 1}
    space = space_of(
        {
            "training.beta": ends,
            "model.width": {"low": 8, "high": 10},
            "training.temperature": {**ends, "high": 9, "low": 1, "step": 4},
        }
    )
    values = {key: each.values for key, each in space.dimensions.items() if isinstance(each, Range)}
    assert values == {"training.beta": None, "model.width": [8, 9, 10], "training.temperature": [1, 5, 9]}
    drawn = space.values({"training.beta": 0.37512, "model.width": 9, "training.temperature": 5})
    assert drawn["training.beta"] == 0.3751


def test_a_finite_space_has_all_its_combinations() -> None:
    space = space_of({"training.beta": [0.25, 0.5], "model.width": {"low": 8, "high": 24, "step": 8}})
    assert space.combinations == [
        {"training.beta": beta, "model.width": width} for beta in (0.25, 0.5) for width in (8, 16, 24)
    ]
    assert space_of({"training.beta": {"low": 0.0, "high": 1.0}, "model.width": [8]}).combinations is None


@given(seed=st.integers(0, 2**31 - 1))
def test_what_optuna_draws_lies_in_the_space(seed: int) -> None:
    space = space_of(
        {
            "model": [{"name": "gru4rec", "width": 8}, "sasrec"],
            "training.clip_norm": [None, 1, "5"],
            "training.learning_rate": {"low": 0.0012345, "high": 0.0076543, "log": True},
            "training.beta": {"low": 0.1, "high": 0.75, "step": 0.1},
            "training.batch_size": {"low": 8, "high": 64, "log": True},
        }
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    values = space.values(study.ask(space.distributions()).params)
    assert values["model"] in [{"name": "gru4rec", "width": 8}, "sasrec"]
    assert values["training.clip_norm"] in [None, 1, "5"]
    assert 0.0012345 <= values["training.learning_rate"] <= 0.0076543
    assert len(repr(values["training.learning_rate"])) <= len("0.0012345"), "few digits, for people"
    assert values["training.beta"] in [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert values["training.batch_size"] in range(8, 65)


def test_optunas_parameters_of_values_give_the_values_again() -> None:
    space = space_of(
        {"model": [{"name": "gru4rec"}, "sasrec"], "training.beta": {"low": 0.1, "high": 0.4, "step": 0.1}}
    )
    for values in space.combinations or []:
        parameters = space.parameters(values)
        assert space.values(parameters) == values
