"""Weights by event: from the columns of a log to the examples of a dataset, and to the loss of a step."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from pydantic import ValidationError

from csrec_dist.config import parse_config
from csrec_dist.data.batches import Batch, to_batch
from csrec_dist.data.card import dataset_card
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare
from csrec_dist.data.reshard import reshard
from csrec_dist.data.tables import read_table
from csrec_dist.data.weights import ExampleWeights
from csrec_dist.distributed import Runtime
from csrec_dist.distributed.engines import DataParallel
from csrec_dist.distributed.groups import ALONE
from csrec_dist.distributed.layout import Layout
from csrec_dist.errors import UserError
from csrec_dist.files import read_json
from csrec_dist.models import MODELS
from csrec_dist.models.options import CONFIGS
from csrec_dist.runs.pipeline import execute
from csrec_dist.training import TrainStep
from csrec_dist.training.options import LoopOptions
from csrec_dist.training.step import one_hot
from csrec_dist.training.stepping import Stepper
from csrec_dist.training.stopping import Requests, StopSignals

EVENTS = ("view", "cart", "buy")
WEIGHTS = {"event": {"view": 0.25, "buy": 4}, "star": {"1": 0.5}}


def log(form: str, folder: Path) -> Path:
    """Twelve users of 9 interactions; the item tells event and star, so that a target tells its weight."""
    random = np.random.default_rng(0)
    rows = [(f"u{user}", int(item)) for user in range(12) for item in random.integers(0, 30, 9)]
    frame = pl.DataFrame(rows, ["user", "item"], orient="row").with_row_index("time")
    frame = frame.with_columns(
        event=pl.col("item").map_elements(lambda item: EVENTS[item % 3], pl.String), star=pl.col("item") % 2
    )
    path = folder / f"log.{form}"
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[form](path)
    return path


def weight_of(item: int) -> float:
    return {"view": 0.25, "cart": 1.0, "buy": 4.0}[EVENTS[item % 3]] * (0.5 if item % 2 == 1 else 1.0)


def dataset(folder: Path, form: str = "csv", **keys: Any) -> Dataset:
    source = str(log(form, folder))
    options = {"min_interactions": 1, "window": 6, "num_shards": 4, "weights": WEIGHTS, **keys}
    prepare(DatasetOptions(source=source, **options), folder / "dataset")
    return Dataset(folder / "dataset")


def raw_targets(data: Dataset, batch: Batch) -> list[int]:
    """The raw items of a batch's examples, in the order of their ids in it."""
    raw = pl.read_parquet(data.folder / "items.parquet")["raw"].to_list()
    return [raw[item - 1] for item in batch.targets[batch.targets > 0].tolist()]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_each_example_weighs_what_its_targets_interaction_does(tmp_path: Path, form: str) -> None:
    data = dataset(tmp_path, form)
    assert data.example_weights is not None
    expected = np.zeros(data.splits["train"].num_examples)
    for element in data.stream("train", batch_size=7):
        batch = to_batch(element)
        expected[batch.example_ids.numpy()] = [weight_of(item) for item in raw_targets(data, batch)]
    ids = np.random.default_rng(1).permutation(len(expected))
    np.testing.assert_allclose(data.example_weights.of(ids), (expected / expected.mean())[ids], rtol=1e-6)
    assert data.example_weights.of(np.array([-1])).tolist() == [1.0]


def test_a_view_and_a_purchase_at_one_time_are_no_row_written_twice(tmp_path: Path) -> None:
    """`exact` would keep the view and drop the purchase; of two views it drops one."""
    events = ("view", "view", "buy")
    days = [(f"u{user}", item, 0, event) for user in (0, 1) for item in range(4) for event in events]
    path = tmp_path / "days.csv"
    pl.DataFrame(days, ["user", "item", "time", "event"], orient="row").write_csv(path)
    weights = {"event": WEIGHTS["event"]}
    options = DatasetOptions(source=str(path), weights=weights, duplicates="exact", min_interactions=1, num_shards=1)
    statistics = prepare(options, tmp_path / "exact")["statistics"]
    assert statistics["dropped_as_duplicates"] == statistics["exact_duplicates"] == 8
    data = Dataset(tmp_path / "exact")
    assert data.example_weights is not None
    assert sorted(
        set((data.example_weights.of(np.arange(10)) / data.example_weights.of(np.arange(10)).min()).round(3))
    ) == [1, 16]


def test_without_weights_examples_have_none(tmp_path: Path) -> None:
    data = dataset(tmp_path, weights={})
    assert data.example_weights is None
    assert "weights" not in pl.read_parquet(data.shard_file("train", 0)).columns
    assert "weights" not in data.info["options"]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_weighs_its_states_by_their_targets(tmp_path: Path, name: str, padded: bool) -> None:
    """Also states that are no examples, such as BERT4Rec's masks amid items; the first item of a window weighs 1."""
    data = dataset(tmp_path)
    assert data.example_weights is not None
    model = MODELS[name](CONFIGS[name](width=8), data.num_items, data.window)
    batch = to_batch(next(iter(data.stream("train", batch_size=64))))
    inputs = model.inputs(batch, 3, padded=padded)
    weighted = inputs.weighted(data.example_weights)
    counts = inputs.weights > 0
    assert ((weighted.weights > 0) == counts).all()
    raw = pl.read_parquet(data.folder / "items.parquet")["raw"].to_list()
    mean = np.mean([weight_of(item) for item in _all_targets(data)])
    expected = torch.tensor([weight_of(raw[target - 1]) / mean for target in inputs.targets.tolist()]).float()
    is_first = inputs.predicted < 0
    assert (weighted.weights[counts & is_first] == 1).all()
    torch.testing.assert_close(weighted.weights[counts & ~is_first], expected[counts & ~is_first], rtol=1e-6, atol=0)


def _all_targets(data: Dataset) -> list[int]:
    return [item for element in data.stream("train", batch_size=64) for item in raw_targets(data, to_batch(element))]


def test_weights_are_said_as_they_are_given(tmp_path: Path) -> None:
    said: list[str] = []
    weights = {"event": {"view": 0.5, "veiw": 9}}
    options = DatasetOptions(source=str(log("csv", tmp_path)), min_interactions=1, weights=weights)
    prepare(options, tmp_path / "dataset", said.append)
    num_views = pl.read_csv(tmp_path / "log.csv")["event"].value_counts().filter(event="view")["count"].item()
    assert f"weights of interactions: 1 ({108 - num_views} rows), 0.5 ({num_views} rows)" in said


def test_the_card_names_the_columns_that_the_files_have(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    columns = dataset_card(data).partition("## Columns")[2].partition("##")[0]
    named = {
        line.split(" | ")[0].removeprefix("| ").replace("\\", "") for line in columns.splitlines() if " | " in line
    }
    assert named - {"column", "---"} == set(pl.read_parquet(data.shard_file("train", 0)).columns)


def test_weights_decide_what_a_dataset_is(tmp_path: Path) -> None:
    source = str(log("csv", tmp_path))
    options = [DatasetOptions(source=source, min_interactions=1, weights=weights) for weights in (WEIGHTS, {})]
    first, second = (prepare(each, tmp_path / str(number))["fingerprint"] for number, each in enumerate(options))
    assert first != second


def test_weights_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        DatasetOptions(source="x", weights={"event": {"view": -1}})
    with pytest.raises(UserError, match=r"no column 'evnt' \(dataset\.weights\) \(did you mean 'event'\?\)"):
        dataset(tmp_path, weights={"evnt": {"view": 2}})
    with pytest.raises(UserError, match=r"every training example has weight 0; change dataset\.weights"):
        dataset(tmp_path, weights={"event": dict.fromkeys(EVENTS, 0)})


def test_weights_stay_with_their_examples_in_another_number_of_shards(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    reshard(data, tmp_path / "more", 7)
    more = Dataset(tmp_path / "more")
    again = prepare(DatasetOptions.model_validate(data.info["options"] | {"num_shards": 7}), tmp_path / "again")
    assert again["fingerprint"] == more.fingerprint
    ids = np.arange(data.splits["train"].num_examples)
    assert more.example_weights is not None
    expected = Dataset(tmp_path / "again").example_weights
    assert expected is not None
    np.testing.assert_array_equal(more.example_weights.of(ids), expected.of(ids))


def test_a_step_multiplies_each_examples_loss_by_its_weight(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    weights = data.example_weights
    assert weights is not None
    model = MODELS["gru4rec"](CONFIGS["gru4rec"](width=8, dropout=0), data.num_items, data.window)
    batch = to_batch(next(iter(data.stream("train", batch_size=9))))
    logits = model.item_table.logits(model.encode(batch.histories))[batch.targets > 0]
    losses = torch.nn.functional.cross_entropy(logits.double(), batch.targets[batch.targets > 0] - 1, reduction="none")
    expected = losses @ torch.from_numpy(weights.of(batch.example_ids.numpy())).double()
    (gradient,) = torch.autograd.grad(expected / batch.num_examples, model.item_table.weight)
    device = torch.device("cpu")
    engine = DataParallel(TrainStep(model, one_hot), Layout(ALONE, ALONE, ALONE), device)
    stepper = Stepper(engine, LoopOptions(), None, 5, data.window, lambda line: None, weights)
    loss = stepper.train(stepper.prepare(batch, 0, 9), 0, 1e-2, Requests(ALONE, StopSignals(), 10, device))
    torch.testing.assert_close(loss.sum.double(), expected.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.count.item(), float(weights.of(batch.example_ids.numpy()).sum()), rtol=1e-5, atol=0)
    # Weights are 1 in the mean over all examples, so a batch of heavy ones is a larger step.
    moment = engine.held_moments()["model.item_table.weight.exp_avg"].numbers
    torch.testing.assert_close(moment, 0.1 * gradient.flatten(), rtol=1e-4, atol=1e-8)


def test_values_may_be_written_as_yaml_reads_them(tmp_path: Path) -> None:
    values = yaml.safe_load("{active: {true: 2, false: 0.5}, stars: {5: 3, 1.5: 0.1}, date: {2020-01-01: 7}}")
    options = DatasetOptions(source="log.csv", weights=values)
    assert options.weights == {
        "active": {"true": 2, "false": 0.5}, "stars": {"5": 3, "1.5": 0.1}, "date": {"2020-01-01": 7}
    }  # fmt: skip
    frame = pl.DataFrame({"user": ["a"] * 4, "item": ["b", "c", "d", "e"], "active": ["True", "false", "1", ""]})
    for log in (frame, frame.with_columns(active=pl.Series([True, False, True, None]))):
        columns = {"timestamp": "none"}
        table = DatasetOptions(source="x", columns=columns, weights={"active": {True: 2, False: 0.5}})
        assert read_table(log, table.layout, Path("x")).frame["weight"].to_list() == [2, 0.5, 2, 1]


def trained(data: Dataset, folder: Path) -> dict[str, Any]:
    """A training of one epoch, as its metrics.json has it."""
    values = {"name": "r", "output": str(folder), "dataset": {"path": str(data.folder)}, "method": "base"}
    values |= {"model": {"name": "gru4rec", "width": 8}, "training": {"batch_size": 5, "max_epochs": 1}}
    execute(parse_config(values), Runtime.start())
    return read_json(folder / "r/student/metrics.json")["epochs"][0]


def test_the_number_of_examples_is_not_their_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(tmp_path)
    assert data.example_weights is not None
    weight = data.example_weights.of(np.arange(data.splits["train"].num_examples)).sum()
    assert weight == pytest.approx(data.splits["train"].num_examples)
    monkeypatch.setattr(ExampleWeights, "of", lambda self, ids: np.full(len(ids), 3, np.float32))
    epoch = trained(data, tmp_path)
    assert epoch["num_examples"] == data.splits["train"].num_examples
    assert 0 < epoch["loss"] < 2 * np.log(data.num_items), "an average"


def test_a_training_whose_examples_all_weigh_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a small sample may, where the log has some that weigh something."""
    monkeypatch.setattr(ExampleWeights, "of", lambda self, ids: np.zeros(len(ids), np.float32))
    with pytest.raises(UserError, match=r"distill: all of its training examples weigh 0.*teachers\.sample"):
        trained(dataset(tmp_path), tmp_path)
