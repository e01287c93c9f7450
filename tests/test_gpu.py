"""On a GPU the same as on a CPU: losses, steps of every model and method, ranks, NCCL; graphs, and no waiting.

What the CPU's results are worth is shown elsewhere, against float64 oracles; here both devices compute in float64, but
for what is about bits. Whole runs are in tests/test_gpu_runs.py. This file needs torch, numpy, pyarrow, pydantic,
safetensors and accelerate alone.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from csrec_dist.data.batches import Batch
from csrec_dist.distributed import Group
from csrec_dist.distributed.catalog import CatalogSlice, PlainTable, embedding
from csrec_dist.distributed.engines import DataParallel, Engine, FullyShard, ZeRO
from csrec_dist.distributed.groups import ALONE
from csrec_dist.distributed.layout import Layout
from csrec_dist.evaluation import visit
from csrec_dist.evaluation.ranking import target_ranks, top_items
from csrec_dist.labels.cache import DeviceLabels, on_device
from csrec_dist.labels.format import TensorSpec
from csrec_dist.losses import (
    DenseLabels,
    FactoredLabels,
    MixtureLabels,
    NoiseMatrix,
    TopKLabels,
    cross_entropy,
    cross_entropy_parts,
    distillation_parts,
    robust,
    tiles,
)
from csrec_dist.losses.contrastive import info_nce
from csrec_dist.models import MODELS
from csrec_dist.models.inputs import SIZES
from csrec_dist.process_state import deterministic
from csrec_dist.training.checkpoints import EpochSums
from csrec_dist.training.meter import Meter
from csrec_dist.training.options import LoopOptions
from csrec_dist.training.stepping import Stepper
from csrec_dist.training.stopping import Requests, StopSignals
from tests.helpers.on_gpu import CPU, GPU, assert_near
from tests.helpers.ranks import free_port, run_ranks
from tests.helpers.training_steps import MAX_LENGTH, METHODS, NUM_WINDOWS, labels_for, make_step, windows

pytestmark = pytest.mark.gpu

NUM_EXAMPLES, NUM_ITEMS = 23, 117
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


PRECISIONS = {"highest": 1e-5, "high": 5e-3, "medium": 5e-2}
"""Of a product → the largest error of a loss or gradient, over its largest number."""


def solve_single(loss: str, precision: Any, shape: tuple[int, int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """Loss and gradients of a larger problem on the GPU: N, V, d, K."""
    problem, (num_examples, num_items, width, label_width) = Problem(CPU), shape
    given = [problem.normal(num_examples, width), problem.normal(num_items, width) * 0.3, problem.normal(num_items)]
    factors = problem.normal(num_examples, label_width), problem.normal(num_items, label_width) * 0.3
    leaves = [each.float().to(GPU, dtype).requires_grad_() for each in given]
    labels = FactoredLabels(*(each.float().to(GPU, dtype) for each in factors))
    targets = problem.integers(1, num_items + 1, num_examples).to(GPU)
    weights = problem.normal(num_examples).abs().float().to(GPU, dtype)
    weights[::3] = 0
    table = PlainTable.whole(leaves[1], leaves[2])
    if loss == "cross_entropy":
        found = cross_entropy_parts(leaves[0], table, targets, weights=weights, precision=precision)
    else:
        options = {"temperature": 2.0, "beta": 0.4, "kl": loss, "weights": weights, "precision": precision}
        found = distillation_parts(leaves[0], table, targets, labels, **options)
    return [found.sum.detach(), found.cross_entropy, found.divergence, *torch.autograd.grad(found.sum, leaves)]


@pytest.mark.parametrize(
    "shape", [(333, 5000, 64, 128), (70, 3001, 50, 33), (1, 1, 16, 1), (40, 900, 256, 300)], ids=str
)
@pytest.mark.parametrize("loss", ["cross_entropy", "reverse", "forward"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_kernels(precision: Any, loss: str, shape: tuple[int, int, int, int]) -> None:
    """Against the tiles in float64, and twice with the same bits."""
    pytest.importorskip("triton")
    found = solve_single(loss, precision, shape, torch.float32)
    expected = solve_single(loss, precision, shape, torch.float64)
    for one, other in zip(found, expected, strict=True):
        scale = max(float(other.abs().max()), 1e-3)
        assert float((one.double() - other).abs().max()) / scale < PRECISIONS[precision]
    assert all(
        torch.equal(*pair) for pair in zip(found, solve_single(loss, precision, shape, torch.float32), strict=True)
    )


def test_contrastive_loss() -> None:
    found = []
    for device in (CPU, GPU):
        problem = Problem(device)
        views = [problem.normal(7, 5).requires_grad_() for _ in range(2)]
        sums = info_nce(*views, slice(2, 6), temperature=0.4)
        found.append([*sums, *torch.autograd.grad(sums[0], views)])
    assert_near(*found)


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_ranks_and_lists(exclude_seen: bool, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are whole numbers, so ties are the same on both devices."""
    monkeypatch.setattr(visit, "KERNELS_ARE_ON", kernel)
    found = []
    for device in (CPU, GPU):
        problem = Problem(device)
        states, weight = problem.integers(-2, 3, 40, 4).float(), problem.integers(-2, 3, NUM_ITEMS, 4).float()
        targets, seen = problem.integers(1, NUM_ITEMS + 1, 40), problem.integers(0, NUM_ITEMS + 1, 40, 5)
        options = {"seen": seen if exclude_seen else None}
        table = PlainTable.whole(weight)
        found.append([target_ranks(states, table, targets, **options), *top_items(states, table, 10, **options)])
    assert_near(found[1], found[0], 0)


@pytest.mark.parametrize(("num_rows", "num_items"), [(1, 1), (300, 9001), (4096, 70_000)])
def test_one_visit_to_a_tile(num_rows: int, num_items: int) -> None:
    """By the kernel; what it compares is exact, and sums are those of float64."""
    num_columns = -(-num_items // visit.LANES) * visit.LANES
    tile = torch.full((num_rows, num_columns), -torch.inf, device=GPU)
    tile[:, :num_items] = 3 * torch.randn(num_rows, num_items, device=GPU)
    tile[num_rows // 2, num_items // 2] = 1e4
    tile[-1] = -torch.inf
    limits = tile[:, [0, num_items - 1]].clone()
    found, logits = visit.visit(tile, num_items, limits, None, chunks=True, log_sums=True), tile[:, :num_items]
    assert torch.equal(found.chunks, tile.view(num_rows, visit.LANES, -1).amax(1))
    assert torch.equal(found.below, torch.stack([(logits < limit[:, None]).sum(1) for limit in limits.T], dim=1))
    exact = torch.cat([rows.double().logsumexp(1) for rows in logits.split(512)])
    torch.testing.assert_close(found.log_sums.double().logsumexp(0), exact, rtol=1e-6, atol=1e-6)


def batches(num: int = 10) -> list[Batch]:
    """Windows of different lengths and numbers, so that padded steps have several sizes; the last has no row."""
    shapes = [(NUM_WINDOWS, MAX_LENGTH + 1), (NUM_WINDOWS, 6), (5, MAX_LENGTH + 1), (NUM_WINDOWS, 9), (2, 3)]
    made = [windows(*shapes[number % len(shapes)], seed=number) for number in range(num - 1)]
    return [*made, windows(1)]


class Training:
    """What the loop does with a batch, on one rank: the steps of a run without its files."""

    def __init__(
        self,
        name: str,
        method: str,
        *,
        graphs: bool = False,
        device: torch.device = GPU,
        dropout: float = 0.3,
        precision: str = "fp32",
        dtype: torch.dtype = torch.float32,
        **keys: Any,
    ) -> None:
        step = make_step(name, method, dropout, dtype, **keys).to(device)
        step.precision = precision  # type: ignore[assignment]
        self.engine = DataParallel(step, Layout(ALONE, ALONE, ALONE), device)
        labels, said = labels_for(method, *batches(10), dtype=dtype), list[str]()
        options = LoopOptions(cuda_graph="on" if graphs else "off")
        self._stepper = Stepper(self.engine, options, labels, 5, MAX_LENGTH + 1, said.append)
        self.graphs = self._stepper.graphs
        assert (self.graphs is not None) == graphs, said
        self._requests = Requests(ALONE, StopSignals(), 10, device)
        self.meter = Meter(ALONE, EpochSums(), 50, device)

    def prepared(self, batch: Batch, step: int) -> Any:
        """What the reading thread does."""
        return self._stepper.prepare(batch, step, NUM_WINDOWS)

    def train(self, micro_batches: Any, step: int) -> Any:
        """What the main thread does; the losses."""
        loss = self._stepper.train(micro_batches, step, 1e-2, self._requests)
        self.meter.add(loss)
        self._requests.agreed()
        return loss

    def parameters(self) -> dict[str, Tensor]:
        """Copies."""
        return {name: parameter.detach().clone() for name, parameter in self.engine.module.named_parameters()}


@pytest.fixture(autouse=True)
def own_stream() -> Iterator[None]:
    """What a failed test leaves behind is none of the next one's business."""
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.set_stream(torch.cuda.default_stream())


@pytest.fixture
def in_order() -> Iterator[None]:
    """As in a run: sums are taken in the same order every time, and what cannot be is refused."""
    with deterministic(True):
        yield


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", sorted(MODELS))
def test_steps_are_those_of_the_cpu(name: str, method: str) -> None:
    """Three updates in float64: of padded steps on the GPU, and of steps without padding on the CPU."""
    found = []
    for device in (CPU, GPU):
        training = Training(name, method, device=device, dropout=0.0, dtype=torch.float64)
        losses = [training.train(training.prepared(batch, step), step) for step, batch in enumerate(batches(4)[:3])]
        found.append([[list(loss) for loss in losses], training.parameters()])
    assert_near(found[1][0], found[0][0], 1e-7)
    # Adam divides by the root of tiny numbers: what is 1e-12 apart in a gradient is not in an update.
    assert_near(found[1][1], found[0][1], 1e-3)


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("length", [50, 200])
def test_long_windows(name: str, length: int) -> None:
    found = []
    for device in (CPU, GPU):
        step = make_step(name, "base", max_length=length).to(device)
        batch = windows(6, length + 1)
        inputs = step.model.inputs(batch, 7, padded=device.type == "cuda").to(device)
        loss = step(inputs, None)
        loss.sum.backward()
        gradients = {key: value.grad for key, value in step.named_parameters() if value.grad is not None}
        with torch.no_grad():
            states = step.eval().model.encode_last(batch.histories.to(device))
        found.append({"sums": [loss.sum, loss.count], "states": states, **gradients})
    assert len(found[0]) > 3
    assert_near(found[1], found[0], 1e-7)


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("name", sorted(MODELS))
def test_bf16_is_near_fp32(name: str) -> None:
    found = []
    for precision in ("fp32", "bf16"):
        step = make_step(name, "model_level", dtype=torch.float32).to(GPU)
        step.precision = precision  # type: ignore[assignment]
        batch = windows()
        labels = labels_for("model_level", batch, dtype=torch.float32)
        assert labels is not None
        inputs = step.model.inputs(batch, 7, padded=True)
        loss = step(inputs.to(GPU), labels.labels(labels.fields(inputs.examples), GPU))
        loss.sum.backward()
        gradients = [p.grad.flatten() for p in step.parameters() if p.grad is not None]
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
        found.append((loss.sum.detach(), torch.cat(gradients)))
    (loss, gradient), (expected, exact) = found[1], found[0]
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    assert not torch.equal(gradient, exact), "bf16 was not used"
    assert torch.cosine_similarity(gradient, exact, dim=0) > 0.95


@pytest.mark.parametrize("num", [1, 300, 3072, 3073, 20_000])
def test_the_gradient_of_a_table_is_summed_in_order(num: int) -> None:
    with deterministic(True):
        problem, grads = Problem(GPU), []
        index, table = problem.integers(0, 50, num), problem.normal(NUM_ITEMS, 64).requires_grad_()
        weights = problem.normal(num, 64)
        for _ in range(5):
            vectors = embedding(index, table)
            assert torch.equal(vectors, table[index])
            grads += torch.autograd.grad((vectors * weights).sum(), [table])
    expected = torch.zeros(NUM_ITEMS, 64, dtype=torch.float64).index_add_(0, index.cpu(), weights.cpu())
    assert_near(grads[0], expected, 1e-10)
    assert all(torch.equal(grad, grads[0]) for grad in grads)


def waits_for_nothing(training: Training, batch: Batch) -> None:
    """Two steps, and a third in which nothing may have the host wait."""
    for step in range(2):
        training.train(training.prepared(batch, step), step)
    micro_batches = training.prepared(batch, 2)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.train(micro_batches, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_step_waits_for_nothing(name: str, method: str) -> None:
    waits_for_nothing(Training(name, method), windows())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_step_waits_for_nothing_where_sums_are_taken_as_they_come(name: str) -> None:
    waits_for_nothing(Training(name, "model_level"), windows())


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_step_in_bf16_waits_for_nothing(name: str) -> None:
    waits_for_nothing(Training(name, "model_level", precision="bf16"), windows())


@pytest.mark.usefixtures("in_order")
def test_a_clipped_step_and_one_of_a_graph_with_several_steps_wait_for_nothing() -> None:
    training = Training("srgnn", "model_level", num_steps=2)
    training.engine.clip_norm = 0.1
    waits_for_nothing(training, windows())


class HalfCache:
    """A cache of two shards, as `DeviceLabels` reads it: states in fp16, and a table that is on the GPU."""

    num_examples = 40
    index = SimpleNamespace(
        shards=[SimpleNamespace(first_example=first, num_examples=10) for first in range(0, 40, 10)],
        label_tensors=lambda num: {"states": TensorSpec("float16", (num, 6))},
    )

    def __init__(self) -> None:
        self.states = torch.arange(40 * 6).view(40, 6).half()
        self._table = torch.ones(NUM_ITEMS, 6, device=GPU)

    def shard_fields(self, shard: int) -> dict[str, Tensor]:
        return {"states": self.states[10 * shard : 10 * shard + 10]}

    def labels(self, fields: Any, device: torch.device) -> FactoredLabels:
        return FactoredLabels(fields["states"].to(device).float(), self._table)


def test_labels_that_the_gpu_keeps_are_those_of_the_cache() -> None:
    cache: Any = HalfCache()
    labels = on_device(cache, [3, 1], GPU, 240)
    assert isinstance(labels, DeviceLabels)
    assert on_device(cache, [3, 1], GPU, 239) is cache
    ids = torch.cat([torch.arange(30, 40), torch.arange(10, 20).flip(0)]).repeat(2)
    fields = {name: field.pin_memory() for name, field in labels.fields(ids).items()}
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = labels.labels(fields, GPU)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert isinstance(found, FactoredLabels)
    assert torch.equal(found.states.cpu(), cache.states[ids].float())


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


def on_one(rank: int, world_size: int, kind: str) -> dict[str, Any]:
    """Losses of five steps with an engine on a process group of one rank, and without a group."""
    import torch.distributed as dist

    os.environ["ACCELERATE_USE_CPU"] = "false"
    os.environ["MASTER_PORT"] = str(free_port())
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", rank=0, world_size=1, device_id=GPU)
    group, found = Group((0,), 0, dist.group.WORLD), {}
    for name in ("plain", kind):
        step = make_step("sasrec", "base", dtype=torch.float32).to(GPU)
        layout = Layout(ALONE if name == "plain" else group, ALONE, ALONE if name == "plain" else group)
        engine: Engine
        if name == "fsdp":
            engine = FullyShard(step, layout, GPU)
        elif name == "plain":
            engine = DataParallel(step, layout, GPU)
        else:
            settings = {"zero_optimization": {"stage": int(kind[-1])}}
            engine = ZeRO(step, layout, GPU, None, 1, settings)
        found[name] = []
        for number, batch in enumerate(batches(6)[:5]):
            inputs = step.model.inputs(batch, number, padded=True).to(GPU)
            loss = engine.forward(inputs, None)
            engine.backward(loss.sum / loss.count)
            engine.step(1e-2)
            found[name].append(float(loss.sum.detach()))
    return found


@pytest.mark.parametrize("kind", ["fsdp", "zero1", "zero2", "zero3"])
def test_engines_train_on_one_rank_as_none_does(kind: str) -> None:
    if kind != "fsdp":
        pytest.importorskip("deepspeed", reason="ZeRO needs deepspeed, which is not installed")
    found = run_ranks(on_one, 1, kind, timeout=180)[0]
    assert found[kind] == pytest.approx(found["plain"], rel=1e-3)


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_replayed_step_waits_for_nothing(name: str) -> None:
    waits_for_nothing(Training(name, "model_level", graphs=True), windows())


def assert_graphs_are_eager(name: str, method: str, **keys: Any) -> None:
    """Ten steps of several sizes, dropout included: every loss and every parameter, bit by bit."""
    eager, graphed = (Training(name, method, graphs=graphs, **keys) for graphs in (False, True))
    wrong = []
    for step, batch in enumerate(batches(10)):
        losses = [each.train(each.prepared(batch, step), step) for each in (eager, graphed)]
        differing = [
            f"loss {part}: {float(a)!r} and {float(b)!r}"
            for part, a, b in zip(losses[0]._fields, *losses, strict=True)
            if not torch.equal(a, b)
        ]
        other = graphed.parameters()
        differing += [
            f"{key}: {int((value != other[key]).sum())} of {value.numel()} numbers, by at most "
            f"{float((value - other[key]).abs().max()):.3g}"
            for key, value in eager.parameters().items()
            if not torch.equal(value, other[key])
        ]
        wrong += [f"step {step} (eager and replayed): {each}" for each in differing]
    assert graphed.graphs is not None
    assert 3 <= graphed.graphs.num_graphs <= SIZES + 1
    assert not wrong, "\n".join(wrong[:12])


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_replayed_step_is_the_eager_step(name: str) -> None:
    assert_graphs_are_eager(name, "model_level")


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("model_level", "training_level")])
@pytest.mark.parametrize("name", ["bert4rec", "gru4rec"])
def test_a_replayed_step_of_every_method_is_the_eager_step(name: str, method: str) -> None:
    assert_graphs_are_eager(name, method)


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_replayed_step_in_bf16_is_the_eager_step(name: str) -> None:
    assert_graphs_are_eager(name, "model_level", precision="bf16")


@pytest.mark.usefixtures("in_order")
def test_a_replayed_step_of_a_graph_with_several_steps_is_the_eager_step() -> None:
    assert_graphs_are_eager("srgnn", "base", num_steps=2)


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_step_is_the_same_when_its_number_is(name: str, graphs: bool) -> None:
    """A resumed run draws what the uninterrupted one drew, dropout included; and two trainings have equal bits."""
    first, second = (Training(name, "base", graphs=graphs, dropout=0.5) for _ in range(2))
    batch = windows()
    losses = [each.train(each.prepared(batch, 3), 3).sum for each in (first, second)]
    assert torch.equal(*losses)
    assert all(map(torch.equal, first.parameters().values(), second.parameters().values()))
    again = Training(name, "base", graphs=graphs, dropout=0.5)
    assert not torch.equal(again.train(again.prepared(batch, 4), 4).sum, losses[0])


@pytest.mark.usefixtures("in_order")
@pytest.mark.parametrize("name", ["bert4rec", "gru4rec", "sasrec"])
def test_memory_does_not_grow(name: str) -> None:
    training, allocated, reserved = Training(name, "model_level", graphs=True), [], []
    for _ in range(6):
        for number, batch in enumerate(batches(10)):
            training.train(training.prepared(batch, number), number)
        torch.cuda.synchronize()
        allocated.append(torch.cuda.memory_allocated())
        reserved.append(torch.cuda.memory_reserved())
    assert allocated[1:] == [allocated[1]] * 5, allocated
    assert reserved[1:] == [reserved[1]] * 5, reserved


@pytest.mark.usefixtures("in_order")
def test_another_thread_may_pin_memory_while_steps_are_captured() -> None:
    """The reading thread does; its blocks are of new sizes, so that CUDA is asked for them."""
    is_over, pinned = threading.Event(), []

    def pin() -> None:
        size = 1 << 12
        while not is_over.is_set():
            pinned.append(torch.empty(size).pin_memory().is_pinned())
            size = size + (1 << 12) if size < 1 << 22 else 1 << 12
            time.sleep(0)

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        assert_graphs_are_eager("sasrec", "model_level")
    finally:
        is_over.set()
        thread.join()
    assert len(pinned) > 10
    assert all(pinned)
