"""What a run writes for TensorBoard, read back: tags, HParams, and the loss curve of metrics.json; and its logs."""

import errno
import math
import os
import re
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from csrec_dist.config import load_config, parse_config
from csrec_dist.distributed import Runtime, SoleProcess
from csrec_dist.files import read_json
from csrec_dist.losses import SoftLabels
from csrec_dist.runs.pipeline import execute
from csrec_dist.runs.run import Run
from csrec_dist.runs.stages.active import ActiveRun
from csrec_dist.training import trainer
from csrec_dist.training.telemetry import StageLog

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
    from tensorboard.plugins.hparams.api_pb2 import ListSessionGroupsRequest, Status
    from tensorboard.plugins.hparams.backend_context import Context
    from tensorboard.plugins.hparams.list_session_groups import Handler as ListSessionGroups
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
    return EventAccumulator(str(run / "tensorboard" / stage), {"histograms": 0}).Reload()


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
    assert found.keys() == {"_hparams_/session_start_info", "_hparams_/session_end_info"}, "columns are TensorBoard's"
    settings = found["_hparams_/session_start_info"].session_start_info.hparams
    assert settings["method"].string_value == "model_level"
    assert settings["training.learning_rate"].number_value == 0.01
    assert settings["teachers.num"].number_value == 2
    assert settings["training.beta"].number_value == 0.5
    test = read_json(finished / "metrics.json")["test"]
    assert [event.value for event in log.Scalars("test/ndcg@10")] == [pytest.approx(test["ndcg@10"], rel=1e-6)]
    assert len(list((finished / "tensorboard/evaluate").iterdir())) == 1, "one event file, and no folder"


def table_of(logdir: Path) -> list[dict[str, Any]]:
    """The rows of the HParams table that TensorBoard makes of a folder: settings and metrics by name."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(logdir)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(logdir))
    known, context = RequestContext(), Context(TBContext(data_provider=provider, logdir=str(logdir)))
    request = ListSessionGroupsRequest(slice_size=100, allowed_statuses=[Status.STATUS_SUCCESS])
    groups = ListSessionGroups(known, context, "", request).run().session_groups
    settings = [
        {name: value.number_value or value.string_value for name, value in group.hparams.items()} for group in groups
    ]
    metrics = [{metric.name.tag: metric.value for metric in group.metric_values} for group in groups]
    return [one | other for one, other in zip(settings, metrics, strict=True)]


def test_the_hparams_table_has_a_row_for_each_run(finished: Path) -> None:
    (row,) = table_of(finished / "tensorboard")
    test = read_json(finished / "metrics.json")["test"]
    assert row["method"] == "model_level"
    assert row["test/ndcg@10"] == pytest.approx(test["ndcg@10"], rel=1e-6)


def test_the_entropy_of_the_labels_is_a_histogram_of_each_epoch(finished: Path) -> None:
    log = events(finished, "distill")
    epochs = read_json(finished / "student/metrics.json")["epochs"]
    pictures = log.Histograms("labels/entropy_nats")
    assert [picture.step for picture in pictures] == [epoch["step"] for epoch in epochs]
    num_items = Run.open(finished).dataset.num_items
    for picture in pictures:
        assert 0 < picture.histogram_value.num <= 256
        assert 0 < picture.histogram_value.min <= picture.histogram_value.max <= math.log(num_items) + 1e-5
    assert "labels/entropy_nats" not in events(finished, "teach/teacher-0").Tags()["histograms"]


def test_the_entropy_of_a_side_teachers_labels_is_that_of_its_own_probabilities(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The robust loss reads them at T = 1, whatever training.temperature is; the student reads the main teacher's."""
    seen: list[float] = []
    real = trainer.label_entropy

    def label_entropy(labels: SoftLabels, temperature: float) -> torch.Tensor:
        seen.append(temperature)
        return real(labels, temperature)

    monkeypatch.setattr(trainer, "label_entropy", label_entropy)
    (tmp_path / "config.yaml").write_text(RUN % (small_dataset, 9) + "method: training_level\n")
    settings = [f"output={tmp_path}", "training.temperature=5", "training.max_epochs=1"]
    execute(load_config(tmp_path / "config.yaml", settings), Runtime.start())
    assert seen == [1, 5]


@pytest.mark.parametrize("stage", TRAINED)
def test_charts_of_several_scalars_name_scalars_that_are_there(finished: Path, stage: str) -> None:
    log = events(finished, stage)
    layout = Layout.FromString(log.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    named = [tag for category in layout.category for chart in category.chart for tag in chart.multiline.tag]
    named += [
        tag
        for category in layout.category
        for chart in category.chart
        for series in chart.margin.series
        for tag in (series.value, series.lower, series.upper)
    ]
    scalars = log.Tags()["scalars"]
    assert len(named) == 14
    for tag in named:
        assert any(re.fullmatch(tag, scalar) for scalar in scalars), tag


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENOENT])
def test_a_failing_disk_of_logs_is_said_once_and_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    file, opened = tmp_path / "rank-00003.log", open

    def full(path: Any, *arguments: Any, **options: Any) -> Any:
        if path == file:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *arguments, **options)

    with StageLog("distill", None, show=False, file=file) as log:
        log.say("written")
        monkeypatch.setattr("builtins.open", full)
        log.say("not written")
    with pytest.raises(ZeroDivisionError), StageLog("evaluate", None, show=False, file=file):
        raise ZeroDivisionError
    said = capsys.readouterr().err
    for stage in ("distill", "evaluate"):
        assert said.count(f"{os.strerror(number)}; stage {stage} goes on without it.") == 1
    assert [line.split(" ", 1)[1] for line in file.read_text().splitlines()] == ["distill begins", "distill written"]


def test_a_failing_disk_of_tensorboard_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with StageLog("distill", tmp_path, show=False) as log:
        log.scalars({"train/loss": 1.0}, 1)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.close", fail)
    with pytest.raises(ZeroDivisionError), log:
        raise ZeroDivisionError


def test_the_log_of_a_rank_is_named_by_its_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is alone may be started where a variable of a launcher is left."""
    config = parse_config({"name": "r", "dataset": {"source": "x"}, "distributed": {"log_dir": str(tmp_path / "logs")}})
    run = ActiveRun(config, SoleProcess())
    monkeypatch.setenv("RANK", "7")
    with run.log("prepare"):
        pass
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["rank-00000.log"]
