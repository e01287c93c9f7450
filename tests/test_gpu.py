"""On a GPU the same as on a CPU: losses, models, ranks, whole runs, NCCL and two ranks that share the device.

What the CPU's results are worth is shown elsewhere, against float64 oracles; here both devices compute in float64.
"""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from csrec_dist.config import parse_config
from csrec_dist.data.batches import to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed import Group, Runtime
from csrec_dist.distributed.catalog import CatalogSlice, PlainTable
from csrec_dist.distributed.engines import DataParallel
from csrec_dist.evaluation.ranking import target_ranks, top_items
from csrec_dist.files import read_json
from csrec_dist.losses import (
    DenseLabels,
    FactoredLabels,
    Loss,
    MixtureLabels,
    NoiseMatrix,
    TopKLabels,
    cross_entropy,
    distillation_parts,
    robust,
    tiles,
)
from csrec_dist.losses.contrastive import info_nce
from csrec_dist.models import MODELS, TrainingInputs, build, config_class, load
from csrec_dist.runs.pipeline import execute
from csrec_dist.runs.run import Run
from csrec_dist.training import TrainStep
from csrec_dist.training.step import seed_draws, training_inputs
from tests.helpers.ranks import free_port, run_ranks
from tests.helpers.training_streams import at_each_batch

pytestmark = pytest.mark.gpu

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ROOT = Path(__file__).resolve().parents[1]
NUM_EXAMPLES, NUM_ITEMS, MAX_LENGTH = 23, 117, 11
CASES: dict[str, dict[str, Any]] = {
    "cross_entropy": {},
    **{
        f"{kl}_{form}": {"kl": kl, "form": form}
        for kl in ("reverse", "forward")
        for form in ("factored", "dense", "mixture", "top_k")
        if (kl, form) != ("reverse", "top_k")
    },
    "robust": {"form": "factored", "maximum": None},
    "robust_mixture": {"form": "mixture", "maximum": "norm"},
    "robust_exact": {"form": "dense", "maximum": "exact"},
}


def assert_near(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Tensors on any device, in nests of dictionaries and lists."""
    torch.testing.assert_close(to_cpu(found), to_cpu(expected), rtol=tolerance, atol=tolerance)


def to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: to_cpu(each) for key, each in value.items()}
    return [to_cpu(each) for each in value] if isinstance(value, list | tuple) else value


class Problem:
    """Random tensors, the same on every device."""

    def __init__(self, device: torch.device) -> None:
        self._generator, self._device = torch.Generator().manual_seed(3), device

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, dtype=torch.float64).to(self._device)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self._generator).to(self._device)


def labels_of(problem: Problem, form: str) -> Any:
    parts = [
        FactoredLabels(problem.normal(NUM_EXAMPLES, 8), problem.normal(NUM_ITEMS, 8), problem.normal(NUM_ITEMS))
        for _ in range(2)
    ]
    logits = problem.normal(NUM_EXAMPLES, NUM_ITEMS)
    if form == "top_k":
        kept = logits.topk(9, dim=1)
        return TopKLabels(kept.values, (kept.indices + 1).int(), (logits / 2).logsumexp(1), 2.0, NUM_ITEMS)
    return {"factored": parts[0], "dense": DenseLabels(logits), "mixture": MixtureLabels(tuple(parts), (0.3, 0.7))}[
        form
    ]


def solve(case: dict[str, Any], device: torch.device) -> list[Tensor]:
    """The sums and gradients of one loss."""
    problem = Problem(device)
    states, weight, bias = problem.normal(NUM_EXAMPLES, 6), problem.normal(NUM_ITEMS, 6), problem.normal(NUM_ITEMS)
    labels = labels_of(problem, case["form"]) if case else None
    targets = problem.integers(1, NUM_ITEMS + 1, NUM_EXAMPLES)
    if isinstance(labels, TopKLabels):
        targets = labels.items[:, 4].long()
    weights = problem.normal(NUM_EXAMPLES).abs()
    leaves = [each.requires_grad_() for each in (states, weight, bias)]
    table = PlainTable.whole(weight, bias)
    if not case:
        sums = list(cross_entropy(states, weight, targets, item_bias=bias, weights=weights))
    elif "kl" in case:
        options = {"temperature": 2.0, "beta": 0.4, "kl": case["kl"]}
        sums = list(distillation_parts(states, table, targets, labels, **options, weights=weights))
    else:
        noise = None
        if case["maximum"]:
            matrix = NoiseMatrix(CatalogSlice.whole(NUM_ITEMS), 3, seed=5, maximum=case["maximum"]).double().to(device)
            leaves += list(matrix.parameters())
            noise = matrix()
        sums = list(robust(states, table, targets, labels, alpha=0.3, noise=noise, weights=weights))
    return [*sums, *torch.autograd.grad(sums[0], leaves)]


@pytest.mark.parametrize("kept", [0, 1 << 26])
@pytest.mark.parametrize("case", CASES)
def test_objectives(monkeypatch: pytest.MonkeyPatch, case: str, kept: int) -> None:
    for device in ("cpu", "cuda"):
        for table, value in (
            ("TILE_BYTES", 8 * 5 * 32),
            ("KEPT_BYTES", kept),
            ("KEPT_ROWS", 5),
            ("RECOMPUTED_ROWS", 4),
        ):
            monkeypatch.setitem(getattr(tiles, table), device, value)
    assert_near(solve(CASES[case], GPU), solve(CASES[case], CPU))


def test_objectives_with_the_tiles_of_each_device() -> None:
    for case in CASES.values():
        assert_near(solve(case, GPU), solve(case, CPU))


def test_contrastive_loss() -> None:
    found = []
    for device in (CPU, GPU):
        problem = Problem(device)
        views = [problem.normal(7, 5).requires_grad_() for _ in range(2)]
        sums = info_nce(*views, slice(2, 6), temperature=0.4)
        found.append([*sums, *torch.autograd.grad(sums[0], views)])
    assert_near(*found)


def make_step(name: str, device: torch.device, dropout: float = 0.0) -> TrainStep:
    """A model in training mode with weights far from zero, and cross-entropy."""

    def loss_function(states: Tensor, table: Any, targets: Tensor, labels: Any) -> Any:
        total, count = cross_entropy(states, table.weight, targets, item_bias=table.bias)
        return Loss(total, count, total.detach(), torch.zeros_like(count))

    kind = config_class(name)
    keys = {key: dropout for key in kind.model_fields if key.endswith("dropout")}
    config = kind.model_validate({"width": 16, **keys})
    model = build(config, NUM_ITEMS, MAX_LENGTH, 1).double()
    problem = Problem(CPU)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * problem.normal(*parameter.shape))
    return TrainStep(model, loss_function).to(device).train()


def windows(device: torch.device) -> Tensor:
    """Padded windows of different lengths, targets included."""
    items = Problem(CPU).integers(1, NUM_ITEMS + 1, 6, MAX_LENGTH + 1)
    lengths = torch.tensor([MAX_LENGTH + 1, 2, 5, 9, MAX_LENGTH + 1, 3])
    return items.masked_fill(torch.arange(MAX_LENGTH + 1) >= lengths.unsqueeze(1), 0).to(device)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_models(name: str) -> None:
    found: list[dict[str, Any]] = []
    for device in (CPU, GPU):
        step, items = make_step(name, device), windows(device)
        examples = torch.arange(items[:, 1:].numel(), device=device).view(items[:, 1:].shape)
        loss = step(TrainingInputs(items[:, :-1], items[:, 1:], examples, 7), None)
        loss.sum.backward()
        gradients = {key: value.grad for key, value in step.named_parameters() if value.grad is not None}
        step.eval()
        with torch.no_grad():
            states = step.model.encode_last(items[:, :-1])
        found.append({"sums": [loss.sum, loss.count], "states": states, **gradients})
    assert len(found[0]) > 3
    assert_near(found[1], found[0], 1e-8)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_step_is_the_same_when_its_seed_is(name: str) -> None:
    """A resumed run draws what the uninterrupted one drew, dropout included."""
    step, items = make_step(name, GPU, dropout=0.5), windows(GPU)
    examples = torch.arange(items[:, 1:].numel(), device=GPU).view(items[:, 1:].shape)

    def loss(seed: int) -> float:
        seed_draws(seed, GPU)
        return float(step(TrainingInputs(items[:, :-1], items[:, 1:], examples, 7), None).sum.detach())

    assert loss(1) == pytest.approx(loss(1), rel=1e-12)
    assert loss(1) != pytest.approx(loss(2), rel=1e-6)


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_ranks_and_lists(exclude_seen: bool) -> None:
    """Scores are whole numbers, so ties are the same on both devices."""
    found = []
    for device in (CPU, GPU):
        problem = Problem(device)
        states, weight = problem.integers(-2, 3, 40, 4).float(), problem.integers(-2, 3, NUM_ITEMS, 4).float()
        targets, seen = problem.integers(1, NUM_ITEMS + 1, 40), problem.integers(0, NUM_ITEMS + 1, 40, 5)
        options = {"seen": seen if exclude_seen else None}
        table = PlainTable.whole(weight)
        found.append([target_ranks(states, table, targets, **options), *top_items(states, table, 10, **options)])
    assert_near(found[1], found[0], 0)


RUNS: dict[str, dict[str, Any]] = {
    "softrec": {"method": "softrec"},
    "model_level": {"method": "model_level", "model": {"name": "sasrec", "width": 16, "dropout": 0}},
    "weighted": {
        "method": "model_level",
        "labels": {"combine": "weighted", "weights": [0.3, 0.7]},
        "model": {"name": "srgnn", "width": 8},
    },
    "data_level": {"method": "data_level", "labels": {"combine": "prob_mean"}},
    "training_level": {"method": "training_level", "teachers": {"noise_rank": 4, "noise_refresh": 3}},
    "top_k": {"method": "model_level", "labels": {"form": "topk", "keep": 9}, "training": {"kl": "forward"}},
    "cl4srec": {"method": "softrec", "model": {"name": "cl4srec", "width": 16, "dropout": 0}},
    "dreamrec": {"method": "base", "model": {"name": "dreamrec", "width": 16, "dropout": 0}},
}


def config_values(folder: Path | str, dataset: Path, changes: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "run",
        "output": str(folder),
        "dataset": {"path": str(dataset)},
        "model": {"name": "gru4rec", "width": 16, "dropout": 0},
        "training": {"batch_size": 7, "max_epochs": 2, "learning_rate": 0.01, "schedule": "linear", "log_steps": 1},
    }
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(values.get(key), dict) and key != "model" else value
    return values


def by_command(folder: Path, dataset: Path, changes: dict[str, Any], *, gpu: bool) -> Path:
    """A whole run in a process of its own, with or without the GPU; its folder."""
    config = parse_config(config_values(folder, dataset, changes))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config.to_yaml())
    environment = {key: value for key, value in os.environ.items() if key not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
    environment |= {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "csrec_dist", "run", "--config", str(folder / "config.yaml")]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    return Run.of(config).folder


def curve(run: Path) -> Tensor:
    epochs = read_json(run / "student" / "metrics.json")["epochs"]
    return torch.tensor([[each["loss"], each["cross_entropy"], each["divergence"]] for each in epochs])


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_the_gpu_is_the_run_on_the_cpu(tmp_path: Path, small_dataset: Path, name: str) -> None:
    gpu, cpu = (by_command(tmp_path / str(gpu), small_dataset, RUNS[name], gpu=gpu) for gpu in (True, False))
    assert_near(curve(gpu), curve(cpu), 1e-3)
    weights, expected = (load_file(run / "student/model.safetensors") for run in (gpu, cpu))
    assert_near(weights, expected, 2e-2)
    assert (gpu / "report/report.md").exists()


class CutOffError(Exception):
    """What ends a training in its middle."""


def test_a_cut_off_run_goes_on_where_it_was(tmp_path: Path, small_dataset: Path) -> None:
    """Checkpoints are copied from the device while it trains on, and read back to it; dropout is drawn there."""
    model = {"name": "sasrec", "width": 16, "dropout": 0.5}
    changes = {"method": "base", "model": model, "training": {"checkpoint_steps": 4, "max_epochs": 3}}
    whole, cut = (parse_config(config_values(tmp_path / name, small_dataset, changes)) for name in ("whole", "cut"))
    execute(whole, Runtime.start())
    left = 9

    def count() -> None:
        nonlocal left
        if left == 0:
            raise CutOffError
        left -= 1

    with at_each_batch(count), pytest.raises(CutOffError):
        execute(cut, Runtime.start(), ["prepare", "distill"])
    assert list((cut.folder / "checkpoints/distill").glob("step-*"))
    execute(cut, Runtime.start())
    weights = [(Run.of(config).folder / "student/model.safetensors").read_bytes() for config in (cut, whole)]
    assert weights[0] == weights[1]


GROUPED: dict[str, Callable[[Group, Tensor], Tensor]] = {
    "all_reduce_sum": lambda group, rows: group.all_reduce_sum(rows.clone()),
    "begin_sum": lambda group, rows: group.begin_sum(rows.clone())(),
    "all_gather": lambda group, rows: group.all_gather(rows)[0],
    "reduce_scatter_sum": lambda group, rows: group.reduce_scatter_sum(rows.unsqueeze(0)),
    "gather_rows": lambda group, rows: group.gather_rows(rows)[0],
}


def on_nccl(rank: int, world_size: int) -> dict[str, Any]:
    """Every collective of a group of one rank, over NCCL."""
    import torch.distributed as dist

    os.environ["ACCELERATE_USE_CPU"] = "false"
    torch.cuda.set_device(0)
    os.environ["MASTER_PORT"] = str(free_port())
    dist.init_process_group("nccl", rank=0, world_size=1)
    group, found = Group((0,), 0, dist.group.WORLD), {}
    for dtype in (torch.float32, torch.float64, torch.int64, torch.bfloat16):
        rows = torch.arange(6, device=GPU).view(3, 2).to(dtype)
        for name, collective in GROUPED.items():
            if dtype.is_floating_point or name != "gather_rows":
                found[f"{name} {dtype}"] = bool(torch.equal(collective(group, rows), rows))
    found["objects"] = group.gather_objects({"a": [1, "ü"]}) == [{"a": [1, "ü"]}]
    group.barrier()
    return found


def test_collectives_of_one_rank_over_nccl() -> None:
    found = run_ranks(on_nccl, 1)[0]
    assert len(found) == 20
    assert all(found.values()), found


SHARED: dict[str, dict[str, Any]] = {
    "ddp": {"method": "model_level"},
    "catalog": {"method": "model_level", "distributed": {"catalog_parallel": 2}},
    "cl4srec": {"method": "base", "model": {"name": "cl4srec", "width": 16, "dropout": 0}},
    "training_level": {"method": "training_level", "distributed": {"catalog_parallel": 2}},
}


def on_two(rank: int, world_size: int, folder: str, dataset: str) -> list[str]:
    """Runs of two ranks on one device; NCCL would refuse that, gloo does not."""
    os.environ["ACCELERATE_USE_CPU"] = "false"
    runtime, devices = Runtime.start(), []
    for name, changes in SHARED.items():
        execute(parse_config(config_values(f"{folder}/{name}", Path(dataset), changes)), runtime)
        devices.append(str(runtime.device))
    return devices


@pytest.fixture(scope="module")
def of_two(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    devices = run_ranks(on_two, 2, str(folder), str(small_dataset), timeout=300)
    assert devices == [["cuda:0"] * len(SHARED)] * 2
    return folder


@pytest.mark.parametrize("name", SHARED)
def test_two_ranks_on_the_gpu_are_one(of_two: Path, tmp_path: Path, small_dataset: Path, name: str) -> None:
    changes = {key: value for key, value in SHARED[name].items() if key != "distributed"}
    one = by_command(tmp_path, small_dataset, changes, gpu=True)
    assert_near(curve(of_two / name / "run"), curve(one), 1e-3)


def test_the_host_waits_twice_in_a_step(small_dataset: Path) -> None:
    """Of GRU4Rec: to learn how many examples there are, and whether their logits need a shift."""
    dataset = Dataset(small_dataset)
    config = config_class("gru4rec").model_validate({"width": 16})
    step = TrainStep(build(config, dataset.num_items, dataset.window - 1, 1), make_step("gru4rec", GPU).loss_function)
    runtime = Runtime.start()
    layout = runtime.layout([(0,)], 1)
    engine = DataParallel(step.to(GPU), layout, GPU)
    batch = to_batch(next(iter(dataset.stream("train", batch_size=8, shards=[0])))).to(GPU)

    def train(seed: int) -> None:
        loss = engine.forward(training_inputs(batch, seed), None)
        engine.backward(loss.sum / loss.count)
        engine.step(1e-3)

    train(0)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            train(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [f"{Path(each.filename).name}:{each.lineno}" for each in waits if "synchroniz" in str(each.message)]
    assert len(found) == 2, found


def test_a_model_trained_on_the_gpu_is_read_without_one(tmp_path: Path, small_dataset: Path) -> None:
    run = by_command(tmp_path, small_dataset, {"method": "base"}, gpu=True)
    model = load(run / "student")
    assert next(model.parameters()).device == CPU
    assert model.encode_last(torch.tensor([[1, 2, 3]])).isfinite().all()
