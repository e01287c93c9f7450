"""What decides a stage follows from what the keys of the schema say."""

from typing import Annotated, Any

import pytest

from csrec_dist.config import Config, parse_config
from csrec_dist.data.options import DatasetOptions
from csrec_dist.files import changed_keys, flatten
from csrec_dist.options import NOTHING, RANKS, STAGES, Options, undeciding
from csrec_dist.runs.inputs import deciding, labels_key, marks_of, member_key, members_of, repeated_settings, settings
from csrec_dist.training.options import TrainingOptions

BASE: dict[str, Any] = {"name": "x", "dataset": {"source": "log.csv"}, "model": {"name": "sasrec"}}
TRAINED = {"teach", "distill", "baseline"}


def config_of(changes: dict[str, Any]) -> Config:
    """`changes` by dotted keys."""
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in BASE.items()}
    for key, value in changes.items():
        section, dot, name = key.partition(".")
        if dot:
            values.setdefault(section, {})[name] = value
        else:
            values[section] = value
    return parse_config(values)


def decided(config: Config, stage: str) -> dict[str, Any]:
    """All that a stage compares of the config, `teach` its members too."""
    return flatten(deciding(config, stage) | ({"members": members_of(config)} if stage == "teach" else {}))


@pytest.mark.parametrize(
    ("key", "value", "others", "stages"),
    [
        ("name", "y", {}, set()),
        ("seed", 1, {}, TRAINED),
        ("seed", 1, {"teachers.seed": 0}, {"distill", "baseline"}),
        ("dataset.source", "other.csv", {}, set()),
        ("dataset.window", 9, {}, {"prepare"}),
        ("dataset.noise", {"rate": 0.1}, {}, {"prepare"}),
        ("model", {"name": "sasrec", "width": 8}, {}, TRAINED),
        ("model", {"name": "sasrec", "width": 8}, {"teachers.model": {"name": "narm"}}, {"distill", "baseline"}),
        ("method", "data_level", {}, {"teach", "distill"}),
        ("teachers.num", 3, {}, {"teach"}),
        ("teachers.sample", 0.5, {}, set()),
        ("teachers.sample", 0.5, {"method": "data_level"}, {"teach"}),
        ("teachers.alpha", 0.25, {}, set()),
        ("teachers.alpha", 0.25, {"method": "training_level"}, {"teach"}),
        ("labels.combine", "prob_mean", {}, {"label"}),
        ("labels.keep", 9, {}, set()),
        ("labels.keep", 9, {"labels.form": "topk", "training.kl": "forward"}, {"label"}),
        ("labels.copy_to", "/disk", {}, set()),
        ("training.learning_rate", 0.5, {}, TRAINED),
        ("training.log_steps", 7, {}, set()),
        ("training.checkpoint_steps", 7, {}, set()),
        ("training.patience", 7, {}, set()),
        ("training.max_epochs", 7, {}, set()),
        ("training.max_epochs", 7, {"training.schedule": "linear"}, TRAINED),
        ("training.temperature", 9.0, {}, {"distill"}),
        ("training.temperature", 9.0, {"labels.form": "topk", "training.kl": "forward"}, {"distill", "label"}),
        ("training.temperature", 9.0, {"method": "base"}, set()),
        ("training.kl", "forward", {"labels.dtype": "auto"}, {"distill", "label"}),
        ("evaluation.top_n", [3], {}, {"evaluate"}),
        ("evaluation.exclude_seen", True, {}, {"evaluate", *TRAINED}),
        ("distributed.engine", "fsdp", {}, set()),
    ],
)
def test_a_key_decides_the_stages_it_should(key: str, value: object, others: dict[str, Any], stages: set[str]) -> None:
    before, after = config_of(others), config_of(others | {key: value})
    assert before != after
    assert {stage for stage in STAGES if decided(before, stage) != decided(after, stage)} == stages


def test_a_dataset_has_the_fingerprint_of_what_decides_it_and_not_of_its_place() -> None:
    assert undeciding(DatasetOptions) == {
        "source",
        "valid_source",
        "test_source",
        "path",
        "expected",
        "max_unpacked_gib",
    }


def test_what_differs_is_named_by_its_key() -> None:
    before, after = config_of({}), config_of({"training.learning_rate": 0.5, "training.clip_norm": 1.0})
    names = ["training.clip_norm", "training.learning_rate"]
    assert changed_keys(decided(before, "distill"), decided(after, "distill")) == names


class MoreTraining(TrainingOptions):
    """The section with a key that does not say what it decides."""

    momentum: float = 0.9


class Marked(TrainingOptions):
    """The section with a key that says so."""

    momentum: Annotated[float, NOTHING] = 0.9


def schema_with(section: type[TrainingOptions]) -> type[Options]:
    """A config whose section `training` is this one."""

    class Whole(Config):
        training: section = section()  # type: ignore[valid-type]

    return Whole


def test_a_key_that_does_not_say_what_it_decides_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^training\.momentum does not say which stages it decides"):
        marks_of(schema_with(MoreTraining))
    assert marks_of(schema_with(Marked))["training", "momentum"] == (NOTHING,)


def test_limits_that_can_rise_are_compared_where_results_are_shared() -> None:
    before, after = config_of({}), config_of({"training.patience": 7})
    assert deciding(before, "teach") == deciding(after, "teach")
    assert labels_key(before) != labels_key(after)
    assert settings(before) != settings(after)
    first, other = (member_key(config, config.module.members[0]) for config in (before, after))
    assert first != other


def test_the_student_and_its_loss_do_not_decide_the_labels() -> None:
    student = {"training.beta": 0.25, "training.temperature": 9.0, "model": {"name": "gru4rec"}}
    teachers = {"teachers.model": {"name": "narm"}, "teachers.seed": 3}
    assert labels_key(config_of(teachers)) == labels_key(config_of(teachers | student | {"seed": 5}))


@pytest.mark.parametrize(
    ("changes", "is_repetition"),
    [
        ({"seed": 1, "name": "y", "output": "elsewhere", "training.log_steps": 7, "labels.copy_to": "/disk"}, True),
        ({"training.learning_rate": 0.5}, False),
        ({"training.patience": 7}, False),
        ({"teachers.seed": 3}, False),
        ({"dataset.source": "other.csv"}, False),
    ],
)
def test_runs_repeat_each_other_if_seed_and_undeciding_keys_differ_alone(
    changes: dict[str, Any], is_repetition: bool
) -> None:
    same = repeated_settings(config_of({})) == repeated_settings(config_of(changes))
    assert same == is_repetition


def test_ranks_depend_on_what_is_ranked_and_not_on_the_metrics_made_of_them() -> None:
    names = {"evaluation.exclude_seen", "evaluation.matmul_precision", "evaluation.min_rating"}
    assert flatten(deciding(config_of({}), "evaluate", RANKS)).keys() == names
