"""The Triton kernels of the losses in Triton's interpreter, against float64, and compiled for a GPU that is not there.

In the interpreter all precisions multiply in fp32, but for fp16. What a GPU makes of them is tested on one.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from csrec_dist.distributed.catalog import CatalogSlice, PlainTable
from csrec_dist.losses import FactoredLabels, cross_entropy_parts, distillation_parts, fused
from csrec_dist.losses.configurations import Blocks, Configuration, configuration
from csrec_dist.losses.divergences import Reverse
from csrec_dist.losses.problem import Problem
from csrec_dist.losses.soft_labels import Tempered
from tests.helpers.catalog_ranks import mesh
from tests.helpers.ranks import run_ranks

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="Triton is not installed (it comes with torch for GPUs), or not interpreted",
)
ROOT = Path(__file__).resolve().parents[2]
LOSSES = ("cross_entropy", "reverse", "forward")
SHAPES = {
    "uneven": (45, 301, 24, 33),
    "one_item": (5, 1, 16, 16),
    "one_example": (1, 50, 7, 1),
    "fewer_items_than_a_tile": (70, 20, 64, 128),
    "several_splits": (10, 450, 16, 20),
    "wide": (9, 70, 256, 130),
}
"""N, V, d, K."""


def make(num_examples: int, num_items: int, width: int, label_width: int, size: float = 1.0) -> dict[str, Tensor]:
    """A random problem in float64, rounded to fp32; a third of the examples have no weight."""
    g = torch.Generator().manual_seed(num_items)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).double()

    given = {"states": size * normal(num_examples, width), "weight": normal(num_items, width)}
    given |= {"bias": normal(num_items), "label_states": size * normal(num_examples, label_width)}
    given |= {"label_weight": normal(num_items, label_width), "label_bias": normal(num_items)}
    given["targets"] = torch.randint(1, num_items + 1, (num_examples,), generator=g)
    given["weights"] = torch.rand(num_examples, generator=g).double()
    given["weights"][1::3] = 0
    return given


def oracle(given: dict[str, Tensor], loss: str, bias: bool, beta: float = 0.4) -> list[Tensor]:
    """Weighted sums of the loss, of CE and of KL, and gradients, by the definitions, dense, in float64."""
    leaves = [given[name].clone().requires_grad_() for name in ("states", "weight", "bias")]
    z = leaves[0] @ leaves[1].T + (leaves[2] if bias else 0)
    log_p, rows, target = z.log_softmax(1), torch.arange(len(z)), given["targets"] - 1
    one_hot = -log_p[rows, target]
    divergence = torch.zeros_like(one_hot)
    if loss != "cross_entropy":
        t = (given["label_states"] @ given["label_weight"].T + (given["label_bias"] if bias else 0)) / 2
        log_r = torch.nn.functional.one_hot(target, len(leaves[1])).double().log()
        log_r = torch.logaddexp(t.log_softmax(1), log_r) - math.log(2)
        a, b = (log_p, log_r) if loss == "reverse" else (log_r, log_p)
        divergence = (a.exp() * (a - b)).sum(1)
    else:
        beta = 0
    sums = [given["weights"] @ each for each in ((1 - beta) * one_hot + beta * divergence, one_hot, divergence)]
    gradients = torch.autograd.grad(sums[0], leaves[: 2 + bias])
    return [*(each.detach() for each in sums), *gradients]


def solve(given: dict[str, Tensor], loss: str, bias: bool, catalog: CatalogSlice, rows: slice) -> list[Tensor]:
    """The same by the code under test, in fp32, of some examples and a slice of the catalog."""
    single = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in given.items()}
    leaves = [single["states"][rows], *(single[name][catalog.rows] for name in ("weight", "bias"))]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    table = PlainTable(leaves[1], leaves[2] if bias else None, catalog)
    targets, weights = given["targets"][rows], single["weights"][rows]
    if loss == "cross_entropy":
        found = cross_entropy_parts(leaves[0], table, targets, weights=weights)
    else:
        factors = single["label_states"][rows], single["label_weight"][catalog.rows]
        labels = FactoredLabels(*factors, single["label_bias"][catalog.rows] if bias else None)
        options = {"temperature": 2.0, "beta": 0.4, "kl": loss}
        found = distillation_parts(leaves[0], table, targets, labels, **options, weights=weights)
    found.sum.backward()
    gradients = [leaf.grad for leaf in leaves[: 2 + bias]]
    return [found.sum.detach(), found.cross_entropy, found.divergence, *gradients]


def assert_near(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        scale = float(other.abs().max()) or 1.0
        torch.testing.assert_close(one.double() / scale, other / scale, rtol=0, atol=tolerance)


@pytest.fixture(autouse=True)
def _kernels_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits are of few items, since the interpreter is slow."""
    monkeypatch.setattr(fused, "takes", lambda problem: True)
    monkeypatch.setattr(fused, "ITEMS_OF_SPLIT", 200)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape: str, loss: str, bias: bool) -> None:
    given = make(*SHAPES[shape])
    catalog = CatalogSlice.whole(SHAPES[shape][1])
    found = solve(given, loss, bias, catalog, slice(None))
    assert_near(found, oracle(given, loss, bias))


@pytest.mark.parametrize("loss", LOSSES)
def test_logits_of_ten_thousand(loss: str) -> None:
    """Rounding of such logits to fp32 is about 1e-3, and so is what it does to the loss's gradient."""
    given = make(20, 130, 16, 16, size=2500.0)
    found = solve(given, loss, True, CatalogSlice.whole(130), slice(None))
    assert float((given["states"] @ given["weight"].T).abs().max()) > 1e4
    assert_near(found, oracle(given, loss, True), 5e-3)


def test_labels_of_16_bits_are_read_as_they_are() -> None:
    given = make(12, 40, 16, 32)
    halves = {name: given[name].half() for name in ("label_states", "label_weight", "label_bias")}
    states, weight = (given[name].float().requires_grad_() for name in ("states", "weight"))
    found = distillation_parts(
        states,
        PlainTable.whole(weight),
        given["targets"],
        FactoredLabels(*halves.values()),
        temperature=2.0,
        beta=0.4,
        weights=given["weights"].float(),
    )
    given |= {name: half.double() for name, half in halves.items()}
    given["bias"] = torch.zeros(40).double()
    expected = oracle(given, "reverse", True)
    assert_near([found.sum, *torch.autograd.grad(found.sum, [states, weight])], [expected[0], *expected[3:5]])


def test_no_examples() -> None:
    given = {name: tensor[:0] if "states" in name else tensor for name, tensor in make(3, 9, 4, 4).items()}
    given |= {"targets": given["targets"][:0], "weights": given["weights"][:0]}
    for each in solve(given, "reverse", True, CatalogSlice.whole(9), slice(None)):
        assert float(each.abs().sum()) == 0


def on_rank(rank: int, world_size: int, num_items: int) -> dict[str, list[Any]]:
    """This rank's sums and gradients of every loss, its catalog being a slice."""
    fused.takes = lambda problem: True
    _, group = mesh(rank, world_size, world_size)
    catalog = CatalogSlice.of(num_items, group)
    given = make(11, num_items, 12, 20)
    rows = slice(0, 4) if rank == 0 else slice(4, 11) if rank == 1 else slice(0, 0)
    return {loss: [each.numpy() for each in solve(given, loss, True, catalog, rows)] for loss in LOSSES}


@pytest.mark.parametrize(("world_size", "num_items"), [(2, 67), (3, 4)])
def test_slices_of_the_catalog(world_size: int, num_items: int) -> None:
    """Of four items on three ranks the last has none."""
    ranks = run_ranks(on_rank, world_size, num_items)
    given = make(11, num_items, 12, 20)
    for loss in LOSSES:
        parts = [[torch.from_numpy(each) for each in found[loss]] for found in ranks]
        sums = [sum(each) for each in zip(*(part[:3] for part in parts), strict=True)]
        whole = [torch.cat(each) for each in zip(*(part[3:] for part in parts), strict=True)]
        assert_near([*sums, *whole], oracle(given, loss, True))


def asked_on_rank(rank: int, world_size: int) -> list[bool]:
    _, group = mesh(rank, world_size, world_size)
    catalog = CatalogSlice.of(9, group)
    return [fused.on_all_ranks(catalog, has, torch.device("cpu")) for has in (True, rank == 0, False)]


def test_ranks_that_share_a_catalog_all_use_kernels_or_none() -> None:
    assert run_ranks(asked_on_rank, 2) == [[True, False, False]] * 2
    assert fused.on_all_ranks(CatalogSlice.whole(9), True, torch.device("cpu"))


def asked_at_each_step(rank: int, world_size: int) -> tuple[list[bool], int]:
    """What three steps hear, on ranks of which the first alone has kernels, and the collectives that they take."""
    _, group = mesh(rank, world_size, world_size)
    catalog, asked, ask = CatalogSlice.of(9, group), [], fused.on_all_ranks
    fused.kernels.run_on = lambda device: rank == 0
    fused.on_all_ranks = lambda *arguments: asked.append(arguments) or ask(*arguments)
    return [fused.group_has_kernels(catalog, torch.device("cpu")) for _ in range(3)], len(asked)


def test_ranks_that_share_a_catalog_ask_each_other_once() -> None:
    assert run_ranks(asked_at_each_step, 2) == [([False] * 3, 1)] * 2


@pytest.mark.parametrize("mode", ["tf32", "fp16"])
def test_products_of_rounded_factors(mode: str) -> None:
    """fp32 sums of products of rounded numbers: near float64, but not as near as fp32."""
    given = make(40, 90, 32, 32)
    float32 = {name: tensor.float() for name, tensor in given.items()}
    labels = Tempered(FactoredLabels(float32["label_states"], float32["label_weight"]), 0.5)
    student = FactoredLabels(float32["states"], float32["weight"])
    index, weights = given["targets"] - 1, float32["weights"]
    problem = Problem(
        CatalogSlice.whole(90), student, index, index >= 0, weights, weights, labels, Reverse(0.4), None
    )  # fmt: skip
    blocks = Blocks(mode, 16, 32, 16, 4, 1)
    _, statistics = fused.Kernels(problem, Configuration(blocks, blocks)).statistics()
    found = problem.sums(problem.divergence.combine(statistics), slice(0, 40))
    expected = torch.stack(oracle(given, "reverse", False)[:3])
    error = float(((found - expected) / expected).abs().max())
    assert 1e-6 < error < 1e-2


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    """What each kernel of the table takes of a GPU of compute capability 9.0."""
    command = [sys.executable, "-m", "tests.helpers.compiled_kernels"]
    environ = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_kernels_fit_the_gpu(compiled: list[dict[str, Any]]) -> None:
    """At most 227 KiB of shared memory and few registers spilled; products are those of the tensor cores."""
    from tests.helpers.compiled_kernels import fits  # needs Triton

    assert len(compiled) == 3 * 4 * 2 + 2 + 3
    assert [about for about in compiled if not fits(about)] == []


def test_wider_tables_than_the_chip_has_room_for_are_left_to_the_tiles() -> None:
    assert configuration("highest", 256, 1024) is not None
    assert configuration("highest", 257, 0) is None
    assert configuration("highest", 64, 1025) is None


def test_splits_of_the_sums_follow_from_the_items_alone() -> None:
    """Two batches of other sizes add up each example's row in the same order."""
    given = make(70, 520, 16, 16)
    rows, catalog = slice(0, 9), CatalogSlice.whole(520)
    sums = [
        solve(given | {"weights": given["weights"].clone()}, "reverse", True, catalog, some)
        for some in (slice(None), rows)
    ]
    assert torch.equal(sums[0][3][rows], sums[1][3])


def test_single_logits_are_of_the_factors_that_kernels_multiply() -> None:
    """In bf16 for `medium`, exact otherwise: against float64."""
    states, weight, bias = torch.randn(3, 5), torch.randn(7, 5), torch.randn(7)
    rows, items = slice(1, 3), torch.tensor([6, 0])
    for is_rounded in (False, True):
        left, right = (x.bfloat16() if is_rounded else x for x in (states[rows], weight[items]))
        expected = 0.5 * ((left.double() * right.double()).sum(1) + bias[items].double())
        found = fused.SingleLogits(states, weight, bias, 0.5, is_rounded).at(rows, items, torch.float32)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
