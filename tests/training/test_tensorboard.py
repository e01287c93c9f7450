"""What a run writes for TensorBoard, read back: tags, HParams, and the loss curve of metrics.json."""

import warnings
from itertools import pairwise
from pathlib import Path

import pytest

from csrec_dist.config import load_config
from csrec_dist.distributed import Runtime
from csrec_dist.files import read_json
from csrec_dist.runs.pipeline import execute
from csrec_dist.runs.run import Run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

TRAINED = {"distill": "student", "teach/teacher-0": "teachers/teacher-0", "teach/teacher-1": "teachers/teacher-1"}
TRAIN_TAGS = {"train/loss", "train/cross_entropy", "train/divergence"}
EPOCH_TAGS = {
    "valid/ndcg@10",
    "epoch/examples_per_second",
    "epoch/data_wait_share",
    "memory/peak_mib",
    "optimizer/learning_rate",
}
RUN = """
name: logged
dataset: {path: %s}
model: {name: gru4rec, width: 8}
training: {batch_size: 7, max_epochs: 3, learning_rate: 0.01, log_steps: %d}
"""


def run(folder: Path, dataset: Path, log_steps: int) -> Path:
    (folder / "config.yaml").write_text(RUN % (dataset, log_steps))
    config = load_config(folder / "config.yaml", [f"output={folder}"])
    execute(config, Runtime.start())
    return Run.of(config).folder


@pytest.fixture(scope="module")
def finished(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that writes one point of the loss curve an epoch, at its end."""
    return run(tmp_path_factory.mktemp("tensorboard"), small_dataset, log_steps=1000)


def events(run: Path, stage: str) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard" / stage)).Reload()


def points(run: Path, stage: str, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(run, stage).Scalars(tag)]


@pytest.mark.parametrize("stage", TRAINED)
def test_a_training_logs_its_curves(finished: Path, stage: str) -> None:
    assert set(events(finished, stage).Tags()["scalars"]) >= TRAIN_TAGS | EPOCH_TAGS
    for tag in EPOCH_TAGS:
        assert len(points(finished, stage, tag)) == 3, tag
    assert [value for _, value in points(finished, stage, "optimizer/learning_rate")] == pytest.approx([0.01] * 3)
    assert all(value > 0 for _, value in points(finished, stage, "memory/peak_mib"))


@pytest.mark.parametrize(("stage", "model"), TRAINED.items())
def test_the_logged_curve_is_that_of_metrics_json(finished: Path, stage: str, model: str) -> None:
    epochs = read_json(finished / model / "metrics.json")["epochs"]
    assert len(epochs) == 3
    logged = {f"train/{name}": [epoch[name] for epoch in epochs] for name in ("loss", "cross_entropy", "divergence")}
    logged["valid/ndcg@10"] = [epoch["valid"]["ndcg@10"] for epoch in epochs]
    for tag, values in logged.items():
        found = points(finished, stage, tag)
        assert [step for step, _ in found] == [epoch["step"] for epoch in epochs]
        assert [value for _, value in found] == pytest.approx(values, rel=1e-6, abs=1e-9), tag


def test_a_point_is_written_every_few_steps_and_at_the_end_of_an_epoch(small_dataset: Path, tmp_path: Path) -> None:
    folder = run(tmp_path, small_dataset, log_steps=2)
    ends = [epoch["step"] for epoch in read_json(folder / "student" / "metrics.json")["epochs"]]
    expected = {min(step, end) for start, end in pairwise([0, *ends]) for step in range(start + 2, end + 2, 2)}
    assert [step for step, _ in points(folder, "distill", "train/loss")] == sorted(expected)


def test_evaluation_writes_the_hparams_page(finished: Path) -> None:
    log = events(finished, "evaluate")
    found = {}
    for tag in log.PluginTagToContent("hparams"):
        found[tag] = HParamsPluginData.FromString(log.SummaryMetadata(tag).plugin_data.content)
    settings = found["_hparams_/session_start_info"].session_start_info.hparams
    assert settings["method"].string_value == "model_level"
    assert settings["training.learning_rate"].number_value == 0.01
    metrics = {metric.name.tag for metric in found["_hparams_/experiment"].experiment.metric_infos}
    assert "hparams/ndcg@10" in metrics
    test = read_json(finished / "metrics.json")["test"]
    for tag in ("hparams/ndcg@10", "test/ndcg@10"):
        assert [event.value for event in log.Scalars(tag)] == [pytest.approx(test["ndcg@10"], rel=1e-6)]
