"""CUDA graphs, as far as a CPU can show: when there are none and why, and that what is captured is the eager step.

tests/test_gpu.py has the rest: that a replayed step is the eager one to the last bit.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from csrec_dist.config import load_config
from csrec_dist.distributed import Runtime
from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.distributed.engines import DataParallel, FullyShard
from csrec_dist.distributed.engines.ddp import average
from csrec_dist.files import read_json
from csrec_dist.models import MODELS
from csrec_dist.runs.pipeline import execute
from csrec_dist.training import graphs
from csrec_dist.training.options import LoopOptions
from csrec_dist.training.step import seed_dropout
from tests.helpers.ranks import run_ranks
from tests.helpers.training_steps import METHODS, labels_for, make_step, windows

CPU = torch.device("cpu")


def engine_of(
    model: str = "gru4rec", method: str = "base", kind: type = DataParallel, ranks: int = 1, slices: int = 1
) -> Any:
    """What is asked of an engine on a GPU; none is needed for that."""
    engine = object.__new__(kind)
    engine.module, engine.device = make_step(model, method), torch.device("cuda")
    engine.layout = SimpleNamespace(group=SimpleNamespace(size=ranks), catalog=SimpleNamespace(size=slices))
    return engine


@pytest.mark.parametrize(
    ("engine", "keys", "reason"),
    [
        ({"kind": FullyShard, "ranks": 2}, {}, "engine fsdp exchanges gradients or parameters"),
        ({"ranks": 2, "slices": 2}, {}, "slices of the catalog"),
        ({}, {"accumulate": 2}, "training.accumulate is 2"),
        ({"model": "cl4srec", "ranks": 2}, {}, "windows of all ranks"),
        ({"method": "training_level"}, {}, "teachers.noise_maximum"),
    ],
)
def test_what_cannot_be_captured_is_named(engine: dict[str, Any], keys: dict[str, Any], reason: str) -> None:
    options, said = LoopOptions.model_validate({"cuda_graph": "on", **keys}), list[str]()
    made = engine_of(**engine)
    assert reason in (graphs.obstacle(made, options) or "")
    assert graphs.graphs_of(made, options, None, said.append) is None
    assert len(said) == 1
    assert reason in said[0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", [method for method in METHODS if method != "training_level"])
def test_every_model_and_method_can_be_captured_on_one_rank(name: str, method: str) -> None:
    assert graphs.obstacle(engine_of(name, method), LoopOptions()) is None


def test_auto_means_numbers_of_ranks_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[Any]()
    monkeypatch.setattr(graphs, "StepGraphs", lambda engine, labels: made.append(engine) or "graphs")
    for choice, measured, expected in (
        ("on", set(), "graphs"),
        ("auto", set(), None),
        ("auto", {1}, "graphs"),
        ("auto", {2}, None),
        ("off", {1}, None),
    ):
        monkeypatch.setattr(graphs, "MEASURED_RANKS", frozenset(measured))
        options, said = LoopOptions.model_validate({"cuda_graph": choice}), list[str]()
        assert graphs.graphs_of(engine_of(), options, None, said.append) == expected
        assert not said


def test_auto_says_nothing_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MEASURED_RANKS", frozenset({1}))
    engine, said = engine_of(), list[str]()
    engine.device = CPU
    assert graphs.graphs_of(engine, LoopOptions(), None, said.append) is None
    assert not said
    assert graphs.graphs_of(engine, LoopOptions(cuda_graph="on"), None, said.append) is None
    assert "does not run on a GPU" in said[0]


@pytest.mark.parametrize("method", ["base", "model_level", "norm"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_captured_is_the_eager_step(name: str, method: str) -> None:
    step, batch = make_step(name, method, dropout=0.3, dtype=torch.float32), windows()
    runtime = Runtime.start()
    engine = DataParallel(step, runtime.layout([(0,)], 1), CPU)
    reader, inputs = labels_for(method, batch, dtype=torch.float32), step.model.inputs(batch, 7, padded=True)
    labels, factor = reader.labels(reader.fields(inputs.examples)) if reader else None, torch.tensor(0.01)
    seed_dropout(3, CPU)
    loss, gradients = graphs.loss_and_gradients(step, inputs, labels, factor)
    assert all(parameter.grad is None for parameter in step.parameters())
    seed_dropout(3, CPU)
    expected = engine.forward(inputs, labels)
    engine.backward(expected.sum * factor)
    assert all(map(torch.equal, loss, expected))
    for gradient, parameter in zip(gradients, step.parameters(), strict=True):
        assert (gradient is None) == (parameter.grad is None)
        assert gradient is None or torch.equal(gradient, parameter.grad)  # type: ignore[arg-type]


def averaged(rank: int, world_size: int, bucket_bytes: int) -> list[list[float]]:
    """Gradients of different shapes, of which rank r has r + 1 times those of rank 0."""
    from csrec_dist.distributed.engines import ddp

    ddp.BUCKET_BYTES = bucket_bytes
    gradients = [(rank + 1) * torch.arange(float(size)).view(-1, 2).T for size in (4, 10, 2, 6)]
    average(gradients, Runtime.start().world)
    return [gradient.tolist() for gradient in gradients]


@pytest.mark.parametrize("bucket_bytes", [1, 50, 1 << 20])
def test_gradients_that_no_wrapper_has_averaged_are_averaged(bucket_bytes: int) -> None:
    for found in run_ranks(averaged, 3, bucket_bytes):
        assert found == [(2 * torch.arange(float(size)).view(-1, 2).T).tolist() for size in (4, 10, 2, 6)]


def test_the_key_decides_no_result(small_dataset: Path, tmp_path: Path) -> None:
    """A run that was begun without graphs goes on with them, to a second epoch."""
    (tmp_path / "config.yaml").write_text(
        f"name: small\ndataset: {{path: {small_dataset}}}\nmodel: {{name: gru4rec, width: 8}}\nmethod: base\n"
        "training: {max_epochs: 1}\n"
    )
    runtime, epochs = Runtime.start(), []
    for choice, most in (("off", 1), ("on", 2)):
        settings = [f"output={tmp_path}", f"training.cuda_graph={choice}", f"training.max_epochs={most}"]
        run = execute(load_config(tmp_path / "config.yaml", settings), runtime)
        epochs.append([epoch["loss"] for epoch in read_json(run.folder / "student/metrics.json")["epochs"]])
    assert [len(each) for each in epochs] == [1, 2]
    assert epochs[1][:1] == epochs[0]


def test_the_count_of_a_search_follows_a_checkpoint() -> None:
    """The host counts the steps of the noise matrix itself, so as not to ask the device for them."""
    from csrec_dist.losses import NoiseMatrix

    searched, noise = [], NoiseMatrix(CatalogSlice.whole(9), 2, seed=1, refresh=3)
    states = []
    for _ in range(7):
        noise.get_buffer("maximisers").fill_(8)
        noise()
        searched.append(bool((noise.get_buffer("maximisers") != 8).any()))
        states.append({name: tensor.clone() for name, tensor in noise.state_dict().items()})
    assert searched == [True, False, False, True, False, False, True]
    noise.load_state_dict(states[1])  # two steps are done: the third is without a search
    for expected in (False, True):
        noise.get_buffer("maximisers").fill_(8)
        noise()
        assert bool((noise.get_buffer("maximisers") != 8).any()) is expected
