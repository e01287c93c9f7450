"""Forward KL on top-k labels against a dense float64 oracle of the coarse divergence, and what it promises."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from csrec_dist.distributed.catalog import CatalogSlice, PlainTable
from csrec_dist.distributed.groups import ALONE, Group
from csrec_dist.losses import FactoredLabels, TopKLabels, distillation, distillation_parts, robust, tiles
from tests.helpers.catalog_ranks import mesh
from tests.helpers.ranks import run_ranks

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}
T = 2.0


def make(
    num_examples: int = 19,
    num_items: int = 97,
    keep: int = 8,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    size: float = 1.0,
    ties: bool = False,
) -> dict[str, Any]:
    """A student, whole rows of label logits, and what is kept: the largest, the last giving way to the target."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    p: dict[str, Any] = {"states": normal(num_examples, 6) * size, "weight": normal(num_items, 6)}
    p |= {"bias": normal(num_items), "targets": torch.randint(1, num_items + 1, (num_examples,), generator=g)}
    p["logits"] = normal(num_examples, num_items) * 3 * size
    if ties:
        p["logits"] = p["logits"].round()
    kept = p["logits"].topk(keep, dim=1).indices + 1
    for row, target in zip(kept, p["targets"], strict=True):
        if target not in row:
            row[-1] = target
    sums = (p["logits"].double() / T).logsumexp(1).to(dtype)
    values = p["logits"].gather(1, kept - 1)
    return p | {"labels": TopKLabels(values, kept.int(), sums, T, num_items)}


def oracle(p: dict[str, Any], beta: float) -> list[torch.Tensor]:
    """Loss and gradients by loops over the classes {each kept item, all others}, in float64."""
    leaves = [p[k].double().requires_grad_() for k in ("states", "weight", "bias")]
    log_p = (leaves[0] @ leaves[1].T + leaves[2]).log_softmax(1)
    q = (p["logits"].double() / T).softmax(1)
    total = torch.zeros((), dtype=torch.float64)
    for i, target in enumerate((p["targets"] - 1).tolist()):
        kept = (p["labels"].items[i] - 1).tolist()
        others = [j for j in range(q.shape[1]) if j not in kept]
        classes = [[j] for j in kept] + ([others] if others else [])
        for members in classes:
            r = q[i, members].sum() / 2 + (0.5 if target in members else 0.0)
            if r > 0:
                total = total + beta * r * (r.log() - log_p[i, members].logsumexp(0))
        total = total - (1 - beta) * log_p[i, target]
    return [total.detach(), *torch.autograd.grad(total, leaves)]


def tiled(p: dict[str, Any], beta: float, labels: Any = None, group: Group = ALONE) -> list[torch.Tensor]:
    leaves = [p[k].clone().requires_grad_() for k in ("states", "weight", "bias")]
    states, weight, bias = leaves
    labels = labels or p["labels"]
    table = PlainTable(weight, bias, CatalogSlice.of(labels.num_items, group))
    total = distillation_parts(states, table, p["targets"], labels, temperature=T, beta=beta, kl="forward").sum
    return [total.detach(), *torch.autograd.grad(total, leaves)]


def assert_near(got: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    for name, a, b in zip(("loss", "states", "weight", "bias"), got, expected, strict=True):
        error = (a.double() - b).abs().max() / b.abs().max().clamp_min(1e-3)
        assert error <= tolerance, (name, float(error))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("keep", [1, 2, 8, 96, 97])
@pytest.mark.parametrize("ties", [False, True])
def test_value_and_gradients(dtype: torch.dtype, keep: int, ties: bool) -> None:
    for beta in (0.25, 1.0):
        p = make(keep=keep, dtype=dtype, ties=ties)
        assert_near(tiled(p, beta), oracle(p, beta), TOLERANCE[dtype])


def test_tiles_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(3)
    for seed in range(12):
        monkeypatch.setitem(tiles.TILE_BYTES, "cpu", 8 * int(draw.integers(1, 2000)))
        monkeypatch.setitem(tiles.KEPT_BYTES, "cpu", int(draw.integers(2)) << 26)
        num_items = int(draw.integers(1, 150))
        p = make(int(draw.integers(1, 30)), num_items, int(draw.integers(1, num_items + 1)), seed)
        assert_near(tiled(p, 0.5), oracle(p, 0.5), 1e-10)


@pytest.mark.parametrize("size", [12, 25])
@pytest.mark.parametrize("kept", [0, 1 << 26])
def test_large_logits(monkeypatch: pytest.MonkeyPatch, size: float, kept: int) -> None:
    """The student's are shifted, the labels' need not be; q of kept items underflows, p of the others nearly."""
    monkeypatch.setitem(tiles.KEPT_BYTES, "cpu", kept)
    p = make(size=size, keep=5)
    p["states"] /= 2
    got = tiled(p, 0.5)
    assert all(tensor.isfinite().all() for tensor in got)
    assert_near(got, oracle(p, 0.5), 1e-9)


def test_all_items_kept_is_the_whole_divergence() -> None:
    p = make(keep=97, size=2.0)
    whole = FactoredLabels(p["logits"], torch.eye(97, dtype=torch.float64))
    assert_near(tiled(p, 0.5), tiled(p, 0.5, whole), 1e-10)


def test_the_divergence_is_at_least_0_and_at_most_the_whole_one_and_grows_with_what_is_kept() -> None:
    found = []
    for keep in (1, 3, 30, 97):
        p = make(keep=keep)
        args = p["states"], PlainTable.whole(p["weight"]), p["targets"]
        found.append(distillation_parts(*args, p["labels"], temperature=T, beta=0.5, kl="forward").divergence)
    whole = FactoredLabels(p["logits"], torch.eye(97, dtype=torch.float64))
    found.append(distillation_parts(*args, whole, temperature=T, beta=0.5, kl="forward").divergence)
    assert found[0] > 0
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(found))


def test_a_student_that_knows_the_kept_items_is_taught_nothing() -> None:
    """Its divergence is 0 whatever it does with the other items, in fp32 too."""
    p = make(num_examples=6, keep=4, dtype=torch.float32)
    r = (p["logits"].double() / T).softmax(1) / 2
    r[torch.arange(6), p["targets"] - 1] += 0.5
    noise = torch.rand(6, 97, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = torch.zeros(6, 97, dtype=torch.bool).scatter(1, p["labels"].items.long() - 1, True)
    others = noise.masked_fill(kept, 0)
    prob = torch.where(kept, r, others / others.sum(1, keepdim=True) * r.masked_fill(kept, 0).sum(1, keepdim=True))
    p |= {"states": prob.log().float(), "weight": torch.eye(97), "bias": torch.zeros(97)}
    total, of_states, *_ = tiled(p, 1.0)
    assert abs(float(total)) < 1e-5
    assert of_states.abs().max() < 1e-6


def test_some_rows_and_no_rows() -> None:
    p = make()
    rows = torch.tensor([3, 0, 3, 15])
    some = p | {name: p[name][rows] for name in ("states", "targets", "logits", "labels")}
    assert_near(tiled(some, 0.5), oracle(some, 0.5), 1e-10)
    none = p | {name: p[name][:0] for name in ("states", "targets", "labels")}
    assert all((tensor == 0).all() for tensor in tiled(none, 0.5))


def test_what_has_no_meaning_is_refused() -> None:
    p = make()
    args = p["states"], p["weight"], p["targets"]
    with pytest.raises(ValueError, match="reverse direction is infinite"):
        distillation(*args, p["labels"], temperature=T, beta=0.5, kl="reverse")
    with pytest.raises(ValueError, match="robust loss has both directions"):
        robust(p["states"], PlainTable.whole(p["weight"]), p["targets"], p["labels"], alpha=0.5)
    with pytest.raises(ValueError, match=r"temperature 2\.0 were read at 3\.0"):
        distillation(*args, p["labels"], temperature=3.0, beta=0.5, kl="forward")
    other = p["targets"].clone()
    other[4] = next(item for item in range(1, 98) if item not in p["labels"].items[4].tolist())
    with pytest.raises(ValueError, match="belong to other targets"):
        distillation(p["states"], p["weight"], other, p["labels"], temperature=T, beta=0.5, kl="forward")
    tempered = p["labels"].tempered(1 / T, p["states"], CatalogSlice.whole(97))
    assert math.isnan(tempered.at(slice(4, 5), other[4:5] - 1, torch.float64))


@pytest.mark.parametrize("shapes", [((4, 3), (4, 2), (4,), 9), ((4, 3), (4, 3), (3,), 9), ((4, 3), (4, 3), (4,), 2)])
def test_unsound_labels_are_refused(shapes: tuple) -> None:
    values, items, sums, num_items = shapes
    with pytest.raises(ValueError, match="1 <= K <= V"):
        TopKLabels(torch.zeros(values), torch.ones(items), torch.zeros(sums), 1.0, num_items)


COUNTS = {2: [4, 7], 3: [6, 0, 3]}
CASES = [(25, 6, 1.0), (25, 25, 1.0), (2, 1, 1.0), (31, 5, 20.0)]


def on_slices(rank: int, world_size: int) -> list[list[np.ndarray]]:
    _, group = mesh(rank, world_size, world_size)
    counts, found = COUNTS[world_size], []
    rows = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    for num_items, keep, size in CASES:
        p = make(sum(counts), num_items, keep, size=size)
        catalog = CatalogSlice.of(num_items, group)
        own = {name: p[name][rows] for name in ("states", "targets")}
        own |= {name: p[name][catalog.rows] for name in ("weight", "bias")}
        total, states, *slices = tiled(own, 0.5, p["labels"][rows], group)
        found.append([part.numpy() for part in (total, states, *slices)])
    return found


@pytest.mark.parametrize("world_size", [2, 3])
def test_slices_of_the_catalog(world_size: int) -> None:
    ranks = run_ranks(on_slices, world_size)
    for case, (num_items, keep, size) in enumerate(CASES):
        p = make(sum(COUNTS[world_size]), num_items, keep, size=size)
        total, *parts = zip(*(found[case] for found in ranks), strict=True)
        got = [torch.tensor(sum(total)), *(torch.tensor(np.concatenate(part)) for part in parts)]
        assert_near(got, oracle(p, 0.5), 1e-9)
