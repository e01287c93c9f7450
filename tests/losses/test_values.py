"""The tiled losses against dense float64 oracles: values, all gradients, every form of input."""

import itertools
import math

import pytest
import torch

from csrec_dist import losses as losses
from csrec_dist.distributed.catalog import PlainTable
from csrec_dist.losses import DenseLabels, FactoredLabels, cross_entropy, distillation, distillation_parts, tiles

torch.set_num_threads(1)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def oracle(problem, temperature, beta, kl):
    """Loss and gradients of (states, weight, bias) by the definitions, dense, in float64."""
    states, weight, bias = (problem[k].double().requires_grad_() for k in ("states", "weight", "bias"))
    target = problem["targets"] - 1
    log_p = torch.log_softmax(states @ weight.T + bias, 1)
    loss = (1 - beta) * -log_p[torch.arange(len(target)), target]
    if beta > 0:
        onehot = torch.nn.functional.one_hot(target, len(weight)).double()
        log_q = torch.log_softmax(problem["logits"].double() / temperature, 1)
        log_r = torch.logaddexp(log_q, onehot.log()) + math.log(0.5)
        log_a, log_b = (log_p, log_r) if kl == "reverse" else (log_r, log_p)
        loss = loss + beta * (log_a.exp() * (log_a - log_b)).sum(1)
    total = (problem["weights"].double() * loss).sum()
    return [total.detach(), *torch.autograd.grad(total, [states, weight, bias])]


def make(num_examples, num_items, width, members=2, seed=0, size=1.0, dtype=torch.float32):
    """A random problem; `logits` are the labels' in float64, from the factors rounded to `dtype`."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    p = {"states": normal(num_examples, width) * size, "weight": normal(num_items, width), "bias": normal(num_items)}
    p["targets"] = torch.randint(1, num_items + 1, (num_examples,), generator=g)
    p["weights"] = torch.rand(num_examples, generator=g, dtype=torch.float64).to(dtype)
    p["weights"][::3] = 0
    factors = normal(num_examples, width * members) * size, normal(num_items, width * members), normal(num_items)
    p["factored"] = FactoredLabels(*factors)
    p["logits"] = factors[0].double() @ factors[1].double().T + factors[2].double()
    p["dense"] = DenseLabels(p["logits"].to(dtype))
    return p


def tiled(problem, temperature, beta, kl, form="factored"):
    """Loss and gradients of (states, weight, bias) by the code under test; kl None is cross-entropy."""
    leaves = [problem[k].clone().requires_grad_() for k in ("states", "weight", "bias")]
    args = *leaves[:2], problem["targets"]
    kwargs = {"item_bias": leaves[2], "weights": problem["weights"]}
    if kl is None:
        total, count = cross_entropy(*args, **kwargs)
    else:
        kwargs |= {"temperature": temperature, "beta": beta, "kl": kl}
        total, count = distillation(*args, problem[form], **kwargs)
    torch.testing.assert_close(count, problem["weights"].sum())
    return [total.detach(), *torch.autograd.grad(total, leaves)]


def assert_near(got, expected, tolerance, least=1e-3):
    """Largest difference relative to the largest expected value of each tensor (taken as `least` at least)."""
    for name, a, b in zip(("loss", "states", "weight", "bias"), got, expected, strict=True):
        assert a.shape == b.shape
        error = (a.double() - b).abs().max() / b.abs().max().clamp_min(least) if b.numel() else 0.0
        assert error <= tolerance, (name, float(error))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("kl", "form"), itertools.product(("reverse", "forward"), ("factored", "dense")))
def test_papers_grid(kl, form, dtype):
    problem = make(23, 117, 8, dtype=dtype)
    for beta, temperature in itertools.product((0.25, 0.5, 0.75), (1, 3, 6, 9)):
        got = tiled(problem, temperature, beta, kl, form)
        assert_near(got, oracle(problem, temperature, beta, kl), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kl", [None, "reverse", "forward"])
def test_random_shapes(monkeypatch, kl, dtype):
    draw = torch.Generator().manual_seed(7)
    for seed in range(15):
        shape = [int(torch.randint(1, most, (), generator=draw)) for most in (40, 300, 20)]
        temperature, beta = 0.5 + 8.5 * torch.rand((), generator=draw).item(), torch.rand((), generator=draw).item()
        monkeypatch.setitem(tiles.TILE_BYTES, "cpu", 4 * int(torch.randint(1, 2000, (), generator=draw)))
        monkeypatch.setitem(tiles.KEPT_BYTES, "cpu", int(torch.randint(2, (), generator=draw)) << 26)
        problem = make(*shape, seed=seed, dtype=dtype)
        beta = beta if kl else 0.0
        assert_near(tiled(problem, temperature, beta, kl), oracle(problem, temperature, beta, kl), TOLERANCE[dtype])


@pytest.mark.parametrize(("num_examples", "num_items"), [(1, 1), (1, 50), (9, 1), (1, 5000)])
@pytest.mark.parametrize(("kl", "beta"), itertools.product(("reverse", "forward"), (0.0, 1e-300, 1e-6, 0.5, 1.0)))
def test_edges(num_examples, num_items, kl, beta):
    """With one item every gradient is 0, the difference of terms of size 1: errors are relative to 1 at least."""
    problem = make(num_examples, num_items, 4)
    problem["weights"] += 0.5
    for temperature in (0.5, 9.0):
        assert_near(tiled(problem, temperature, beta, kl), oracle(problem, temperature, beta, kl), 1e-5, 1.0)


def test_no_examples_give_zero_and_zero_gradients():
    problem = make(0, 30, 4)
    for kl in (None, "reverse", "forward"):
        total, *gradients = tiled(problem, 3.0, 0.5, kl)
        assert total == 0
        assert all((g == 0).all() for g in gradients)


@pytest.mark.parametrize("kl", [None, "reverse", "forward"])
@pytest.mark.parametrize("form", ["factored", "dense"])
@pytest.mark.parametrize("kept", [0, 1 << 26])
def test_huge_logits(monkeypatch, kl, form, kept):
    """Logits up to ±1e4 that fp32 holds exactly (multiples of 1/4), so that the oracle sees the same ones.

    In fp32 a difference of logits of 1e4 has an error of 5e-4: relative errors are held to 1e-4 here.
    """
    monkeypatch.setitem(tiles.KEPT_BYTES, "cpu", kept)
    monkeypatch.setitem(tiles.TILE_BYTES, "cpu", 2048)
    g = torch.Generator().manual_seed(3)
    for size in (100, 1000, 10_000):
        problem = make(12, 90, 1, members=1)
        problem["states"] = torch.randint(-size, size + 1, (12, 1), generator=g) * 1.0
        problem["weight"] = torch.randint(-4, 5, (90, 1), generator=g) / 4
        problem["bias"] = torch.zeros(90)
        labels = torch.randint(-size, size + 1, (12, 1), generator=g) * 1.0
        problem["factored"] = FactoredLabels(labels, torch.randint(-4, 5, (90, 1), generator=g) / 4)
        problem["logits"] = labels.double() @ problem["factored"].item_weight.double().T
        problem["dense"] = DenseLabels(problem["logits"].float())
        beta = 0.5 if kl else 0.0
        got = tiled(problem, 1.0, beta, kl, form)
        assert all(x.isfinite().all() for x in got)
        assert_near(got, oracle(problem, 1.0, beta, kl), 1e-4)


@pytest.mark.parametrize("kl", [None, "reverse", "forward"])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_tiles_do_not_matter(monkeypatch, kl, size):
    problem = make(20, 133, 6, dtype=torch.float64, size=size)
    whole = tiled(problem, 2.0, 0.5, kl)
    for rows, tile, kept in itertools.product((3, 7, 20), (8 * 7 * 5, 8 * 7 * 20), (0, 1 << 26)):
        for table, value in ((tiles.KEPT_ROWS, rows), (tiles.RECOMPUTED_ROWS, rows), (tiles.TILE_BYTES, tile)):
            monkeypatch.setitem(table, "cpu", value)
        monkeypatch.setitem(tiles.KEPT_BYTES, "cpu", kept)
        assert_near(tiled(problem, 2.0, 0.5, kl), whole, 1e-12)


def test_parts_add_up_and_every_objective_is_in_the_table():
    problem = make(20, 60, 5)
    args = problem["states"], problem["weight"], problem["targets"]
    kwargs = {"temperature": 3.0, "beta": 0.25, "weights": problem["weights"]}
    for kl in ("reverse", "forward"):
        table = PlainTable.whole(problem["weight"])
        loss = distillation_parts(args[0], table, args[2], problem["factored"], kl=kl, **kwargs)
        torch.testing.assert_close(loss.sum, 0.75 * loss.cross_entropy + 0.25 * loss.divergence)
        assert loss.divergence > 0
        torch.testing.assert_close(loss.cross_entropy, cross_entropy(*args, weights=problem["weights"])[0])
        named = losses.LOSSES[f"distillation_{kl}"](*args, problem["factored"], **kwargs)
        assert named[0] == loss.sum
    assert losses.LOSSES["cross_entropy"] is cross_entropy


def test_the_divergence_vanishes_where_the_student_equals_the_mixture():
    q = torch.tensor([[0.1, 0.2, 0.7]], dtype=torch.float64)
    mixture = (q + torch.tensor([[0.0, 1.0, 0.0]])) / 2
    for kl in ("reverse", "forward"):
        states = mixture.log().requires_grad_()
        total, _ = distillation(
            states, torch.eye(3, dtype=torch.float64), torch.tensor([2]), DenseLabels(5 * q.log()),
            temperature=5.0, beta=1.0, kl=kl,
        )  # fmt: skip
        total.backward()
        assert abs(total.item()) < 1e-15
        assert states.grad.abs().max() < 1e-15
