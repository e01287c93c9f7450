"""Every method from dataset to student: what is trained, what regularises it, and the same on any number of ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csrec_dist import models
from csrec_dist.config import Config, parse_config
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare
from csrec_dist.distributed import Runtime
from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.errors import UserError, is_of_all
from csrec_dist.files import read_json
from csrec_dist.labels import LabelCache, read_index
from csrec_dist.labels.weights import fit_weights, validation_states
from csrec_dist.models import config_class
from csrec_dist.runs.pipeline import execute
from csrec_dist.runs.stages import teach
from csrec_dist.runs.stages.active import ActiveRun
from tests.helpers.ranks import run_ranks


def small_config(output: Path | str, dataset: Path | str, method: str, **changes: Any) -> Config:
    raw = {
        "name": "small",
        "output": str(output),
        "dataset": {"path": str(dataset)},
        "model": {"name": "gru4rec", "width": 8, "hidden": 8, "dropout": 0},
        "method": method,
        "training": {"batch_size": 7, "max_epochs": 2, "learning_rate": 0.01},
    }
    return parse_config(raw | changes)


def done(output: Path, dataset: Path, method: str, **changes: Any) -> Path:
    return execute(small_config(output, dataset, method, **changes), Runtime.start()).folder


def trained_examples(folder: Path) -> float:
    """Examples of the first epoch, as the training counted them."""
    return read_json(folder / "metrics.json")["epochs"][0]["num_examples"]


def test_softrec_learns_from_popularity_without_teachers(small_dataset: Path, tmp_path: Path) -> None:
    run = done(tmp_path, small_dataset, "softrec")
    epoch = read_json(run / "student/metrics.json")["epochs"][0]
    assert epoch["divergence"] > 0
    assert not (run / "teachers").exists()
    assert not (run / "labels").exists()


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_a_contrastive_loss_is_weighed_with_the_one_hot_targets(
    small_dataset: Path, tmp_path: Path, beta: float
) -> None:
    """At β = 1 nothing trains the vector of masked items, which only the contrastive loss reads."""
    model = {"name": "cl4srec", "width": 8, "inner_width": 8, "dropout": 0}
    training = {"batch_size": 7, "max_epochs": 1, "learning_rate": 0.01, "beta": beta}
    run = done(tmp_path, small_dataset, "softrec", model=model, training=training)
    dataset = Dataset(small_dataset)
    drawn = models.build(config_class("cl4srec").model_validate(model), dataset.num_items, dataset.window - 1, 0)
    before, after = (each.state_dict()["mask_vector"] for each in (drawn, models.load(run / "student")))
    assert torch.equal(before, after) == (beta == 1)


def test_data_level_members_train_on_their_share(small_dataset: Path, tmp_path: Path) -> None:
    run = done(tmp_path, small_dataset, "data_level", teachers={"sample": 0.5})
    train = Dataset(small_dataset).splits["train"]
    for member in ("teacher-0", "teacher-1"):
        share = trained_examples(run / "teachers" / member) / train.num_examples
        assert share == pytest.approx(0.5, abs=0.1)
    assert trained_examples(run / "student") == train.num_examples
    assert [member.name for member in read_index(run / "labels").members] == ["teacher-0", "teacher-1"]


def test_each_data_level_member_has_a_sample_of_its_own(small_dataset: Path, tmp_path: Path) -> None:
    config = small_config(tmp_path, small_dataset, "data_level", teachers={"sample": 0.5, "seed": 3})
    run, num_rows = ActiveRun(config, Runtime.start()), Dataset(small_dataset).splits["train"].num_rows
    samples = [teach.row_sample(run, member) for member in config.module.members]
    seen = [each.rows(0, num_rows, num_rows // 2).tolist() for each in samples if each is not None]
    assert len(seen) == 2
    assert seen[0] != seen[1]
    again = small_config(tmp_path, small_dataset, "data_level", teachers={"sample": 0.5, "seed": 4})
    other = teach.row_sample(run, again.module.members[0])
    assert other is not None
    assert other.rows(0, num_rows, num_rows // 2).tolist() not in seen


def test_weights_of_examples_reach_the_training(small_log: Path, tmp_path: Path) -> None:
    students = set()
    for name, weights in (("plain", None), ("weighted", {"rating": {"1": 0.1, "2": 0.1}})):
        options = {"source": str(small_log), "min_interactions": 3, "window": 8, "num_shards": 4, "weights": weights}
        prepare(DatasetOptions.model_validate(options), tmp_path / name)
        students.add(
            (done(tmp_path / f"{name}-run", tmp_path / name, "base") / "student/model.safetensors").read_bytes()
        )
    assert len(students) == 2


def test_the_main_teachers_loss_is_that_of_its_options(small_dataset: Path, tmp_path: Path) -> None:
    teachers = {"alpha": 0.2, "noise_maximum": "norm", "noise_rank": 5}
    config = small_config(tmp_path, small_dataset, "training_level", teachers=teachers)
    run = ActiveRun(config, Runtime.start())
    (main,) = (each for each in config.module.members if each.regularised_by)
    loss = teach.main_teacher_loss(run, main, CatalogSlice.whole(run.dataset.num_items))
    assert loss.noise is not None
    assert (loss.alpha, loss.noise.maximum, loss.noise.observed.shape[1]) == (0.2, "norm", 5)


def test_the_main_teacher_labels_alone_and_leans_on_the_side_teacher(small_dataset: Path, tmp_path: Path) -> None:
    run = done(tmp_path / "a", small_dataset, "training_level")
    assert [member.name for member in read_index(run / "labels").members] == ["main"]
    assert [member.name for member in read_index(run / "teachers/side/labels").members] == ["side"]
    assert read_json(run / "teachers/main/metrics.json")["epochs"][0]["divergence"] > 0
    plain = done(tmp_path / "b", small_dataset, "training_level", teachers={"expectation": False})
    weights = [(each / "teachers/main/model.safetensors").read_bytes() for each in (run, plain)]
    assert weights[0] != weights[1]
    sides = [(each / "teachers/side/model.safetensors").read_bytes() for each in (run, plain)]
    assert sides[0] == sides[1]


@pytest.mark.parametrize("options", [{"combine": "prob_mean"}, {"combine": "weighted", "weights": "fitted"}])
def test_members_are_combined_as_asked(small_dataset: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    run = done(tmp_path, small_dataset, "model_level", labels=options)
    index = read_index(run / "labels")
    assert index.combine == options["combine"]
    if options["combine"] == "weighted":
        members = [models.load(run / f"teachers/teacher-{number}") for number in (0, 1)]
        states, targets = validation_states(members, Dataset(small_dataset), torch.device("cpu"))
        fitted = fit_weights(states, [member.item_table for member in members], targets).weights
        assert index.weights == pytest.approx(fitted, rel=1e-6)
        assert fitted[0] != pytest.approx(fitted[1], abs=1e-3)


def test_the_ensemble_ranks_by_the_weights_of_the_labels(small_dataset: Path, tmp_path: Path) -> None:
    run = done(tmp_path, small_dataset, "model_level", labels={"combine": "weighted", "weights": [1.0, 0.0]})
    found = read_json(run / "metrics.json")["models"]
    assert found["teachers"]["test"] == pytest.approx(found["teacher-0"]["test"])
    assert found["teachers"]["test"] != pytest.approx(found["teacher-1"]["test"])


def test_members_of_several_architectures_and_widths(small_dataset: Path, tmp_path: Path) -> None:
    mixture = [{"name": "gru4rec", "width": 8}, {"name": "sasrec", "width": 12}, {"name": "narm", "width": 4}]
    run = done(tmp_path, small_dataset, "model_level", teachers={"num": 3, "model": mixture})
    labels = LabelCache(run / "labels", Dataset(small_dataset)).rows(np.arange(3))
    assert torch.as_tensor(labels.states).shape == (3, 24)


def test_a_sample_without_rows_is_refused_by_all_ranks_before_a_member_is_begun(
    small_dataset: Path, tmp_path: Path
) -> None:
    config = small_config(tmp_path, small_dataset, "data_level", teachers={"sample": 0.001})
    run = execute(config, Runtime.start(), ["prepare"])
    with pytest.raises(UserError, match=r"teachers\.sample") as refusal:
        teach.check(run, {})
    assert is_of_all(refusal.value)


def on_ranks(rank: int, world_size: int, output: str, dataset: str, method: str) -> None:
    execute(small_config(output, dataset, method), Runtime.start())


@pytest.mark.parametrize("method", ["softrec", "data_level", "training_level"])
def test_two_ranks_train_what_one_does(small_dataset: Path, tmp_path: Path, method: str) -> None:
    for world_size in (1, 2):
        run_ranks(on_ranks, world_size, str(tmp_path / str(world_size)), str(small_dataset), method)
    alone, together = (tmp_path / size / "small" for size in ("1", "2"))
    for metrics in alone.glob("**/metrics.json"):
        expected, found = read_json(metrics), read_json(together / metrics.relative_to(alone))
        for one, two in zip(expected.get("epochs", []), found.get("epochs", []), strict=True):
            assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
    expected, found = (read_json(run / "metrics.json")["test"] for run in (alone, together))
    assert found["ndcg@10"] == pytest.approx(expected["ndcg@10"], abs=1e-6)
