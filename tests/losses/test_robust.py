"""The robust loss of CSRec-T against a dense float64 oracle: values, all gradients, and the bound of its last term."""

import itertools
import math

import pytest
import torch

from csrec_dist.distributed.catalog import PlainTable
from csrec_dist.losses import DenseLabels, FactoredLabels, MixtureLabels, Noise, cross_entropy, robust, tiles

torch.set_num_threads(1)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
LEAVES = ("states", "weight", "bias", "observed", "preferred")


def make(num_examples, num_items, width=6, rank=5, seed=0, dtype=torch.float32, size=1.0):
    """A random problem with leaves of `dtype`; `side` are the side teacher's logits in float64."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    p = {"states": normal(num_examples, width) * size, "weight": normal(num_items, width), "bias": normal(num_items)}
    p |= {"observed": normal(num_items, rank), "preferred": normal(num_items, rank)}
    p["targets"] = torch.randint(1, num_items + 1, (num_examples,), generator=g)
    p["weights"] = torch.rand(num_examples, generator=g, dtype=torch.float64).to(dtype)
    p["weights"][::4] = 0
    factors = normal(num_examples, 2 * width) * size, normal(num_items, 2 * width), normal(num_items)
    p["factored"] = FactoredLabels(*factors)
    p["side"] = factors[0].double() @ factors[1].double().T + factors[2].double()
    p["dense"] = DenseLabels(p["side"].to(dtype))
    return p


def oracle(problem, alpha, expectation):
    """Loss, ℓ_r and gradients of the leaves by the definitions, dense, in float64."""
    leaves = [problem[name].double().clone().requires_grad_() for name in LEAVES]
    states, weight, bias, observed, preferred = leaves
    y = problem["targets"] - 1
    log_p = torch.log_softmax(states @ weight.T + bias, 1)
    log_q = torch.log_softmax(problem["side"], 1)
    p, q = log_p.exp(), log_q.exp()
    of_robust = alpha * (q * (log_q - log_p)).sum(1) + (1 - alpha) * (p * (log_p - log_q)).sum(1)
    if expectation:
        h = observed @ preferred.T
        relaxed = torch.logaddexp(-h[y], h.new_zeros(())) + math.log(len(weight)) + h.max(0).values
        of_robust = of_robust + (relaxed * p).sum(1)
    loss = of_robust - log_p[torch.arange(len(y)), y]
    weights = problem["weights"].double()
    gradients = torch.autograd.grad((weights * loss).sum(), leaves, allow_unused=True)
    return [(weights * loss).sum().detach(), (weights * of_robust).sum().detach(), *gradients]


def noise_of(observed, preferred):
    with torch.no_grad():
        largest = (preferred @ observed.T).argmax(1)
    return Noise(observed, preferred, (observed[largest] * preferred).sum(1))


def tiled(problem, alpha, expectation, form="factored"):
    """The same by the code under test."""
    leaves = [problem[name].clone().requires_grad_() for name in LEAVES]
    noise = noise_of(*leaves[3:]) if expectation else None
    found = robust(
        leaves[0], PlainTable.whole(*leaves[1:3]), problem["targets"], problem[form],
        alpha=alpha, noise=noise, weights=problem["weights"],
    )  # fmt: skip
    torch.testing.assert_close(found.count, problem["weights"].sum())
    torch.testing.assert_close(found.sum, found.cross_entropy + found.divergence)
    gradients = torch.autograd.grad(found.sum, leaves, allow_unused=True)
    return [found.sum.detach(), found.divergence, *gradients]


def assert_near(got, expected, tolerance, least=1e-3):
    """Largest difference relative to the largest expected value of each tensor (taken as `least` at least)."""
    for name, a, b in zip(("loss", "divergence", *LEAVES), got, expected, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.shape == b.shape
            error = (a.double() - b).abs().max() / b.abs().max().clamp_min(least) if b.numel() else 0.0
            assert error <= tolerance, (name, float(error))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", ["factored", "dense"])
@pytest.mark.parametrize("expectation", [False, True])
def test_every_alpha(form, expectation, dtype):
    problem = make(23, 117, dtype=dtype)
    for alpha in (0.0, 0.25, 0.5, 0.75, 1.0):
        got = tiled(problem, alpha, expectation, form)
        assert_near(got, oracle(problem, alpha, expectation), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("expectation", [False, True])
def test_random_shapes(monkeypatch, expectation, dtype):
    draw = torch.Generator().manual_seed(5)

    def integer(most):
        return int(torch.randint(1, most, (), generator=draw))

    for seed in range(15):
        monkeypatch.setitem(tiles.TILE_BYTES, "cpu", 4 * integer(2000))
        monkeypatch.setitem(tiles.KEPT_BYTES, "cpu", (integer(3) - 1) << 26)
        problem = make(integer(40), integer(300), integer(20), integer(12), seed=seed, dtype=dtype)
        alpha = torch.rand((), generator=draw).item()
        got = tiled(problem, alpha, expectation)
        assert_near(got, oracle(problem, alpha, expectation), TOLERANCE[dtype])


@pytest.mark.parametrize(("num_examples", "num_items"), [(1, 1), (1, 50), (9, 1), (0, 30)])
@pytest.mark.parametrize("expectation", [False, True])
def test_edges(num_examples, num_items, expectation):
    problem = make(num_examples, num_items)
    problem["weights"] += 0.5
    got = tiled(problem, 0.25, expectation)
    assert_near(got, oracle(problem, 0.25, expectation), 1e-5, 1.0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-10)])
@pytest.mark.parametrize("expectation", [False, True])
@pytest.mark.parametrize("kept", [0, 1 << 26])
def test_huge_logits(monkeypatch, expectation, kept, dtype, tolerance):
    """Logits of both teachers and of the noise up to ±1e4, which fp32 holds exactly (multiples of 1/4).

    A product of a cost of 1e4 and a probability has an error of 6e-4 in fp32, where the gradient is of size 1.
    """
    monkeypatch.setitem(tiles.KEPT_BYTES, "cpu", kept)
    monkeypatch.setitem(tiles.TILE_BYTES, "cpu", 2048)
    g = torch.Generator().manual_seed(3)

    def integers(size, *shape):
        return torch.randint(-size, size + 1, shape, generator=g).to(dtype)

    for size, alpha in itertools.product((100, 10_000), (0.0, 0.5, 1.0)):
        problem = make(12, 90, width=1, rank=1, dtype=dtype)
        problem |= {
            "states": integers(size, 12, 1),
            "weight": integers(4, 90, 1) / 4,
            "bias": torch.zeros(90, dtype=dtype),
        }
        problem |= {"observed": integers(size, 90, 1), "preferred": integers(4, 90, 1) / 4}
        side = integers(size, 12, 1), integers(4, 90, 1) / 4
        problem["factored"], problem["side"] = FactoredLabels(*side), side[0].double() @ side[1].double().T
        got = tiled(problem, alpha, expectation)
        assert all(x is None or x.isfinite().all() for x in got)
        expected = oracle(problem, alpha, expectation)
        if expectation:  # equal rows of M share the maximum: which of them gets the gradient is open
            got[5], expected[5] = got[5].sum(0), expected[5].sum(0)
        assert_near(got, expected, tolerance)


def test_tiles_do_not_matter(monkeypatch):
    problem = make(20, 133, dtype=torch.float64, size=30.0)
    whole = tiled(problem, 0.5, True)
    for rows, tile, kept in itertools.product((3, 20), (8 * 7 * 5, 8 * 7 * 20), (0, 1 << 26)):
        for table, value in ((tiles.KEPT_ROWS, rows), (tiles.RECOMPUTED_ROWS, rows), (tiles.TILE_BYTES, tile)):
            monkeypatch.setitem(table, "cpu", value)
        monkeypatch.setitem(tiles.KEPT_BYTES, "cpu", kept)
        assert_near(tiled(problem, 0.5, True), whole, 1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_gradcheck(alpha):
    problem = make(4, 7, 3, 2, dtype=torch.float64)
    leaves = [problem[name].clone().requires_grad_() for name in LEAVES]

    def loss(states, weight, bias, observed, preferred):
        noise = noise_of(observed, preferred)
        table = PlainTable.whole(weight, bias)
        return robust(states, table, problem["targets"], problem["dense"], alpha=alpha, noise=noise).sum

    assert torch.autograd.gradcheck(loss, leaves)


def test_the_expectation_is_an_upper_bound():
    """Σ c_j p_j ≥ −Σ log h_yj p_j with h the true softmax over k (Eq. 13 to 16), for noise of any size."""
    for seed, size in itertools.product(range(5), (0.01, 1.0, 30.0)):
        problem = make(15, 40, seed=seed, dtype=torch.float64)
        problem["observed"] = problem["observed"] * size
        problem["weights"] = torch.ones(15, dtype=torch.float64)
        expectation = tiled(problem, 0.5, True)[1] - tiled(problem, 0.5, False)[1]
        log_h = torch.log_softmax(problem["observed"] @ problem["preferred"].T, 0)[problem["targets"] - 1]
        p = torch.softmax(problem["states"] @ problem["weight"].T + problem["bias"], 1)
        assert expectation >= -(log_h * p).sum()


def test_equal_teachers_leave_only_cross_entropy():
    problem = make(10, 30, dtype=torch.float64)
    same = FactoredLabels(problem["states"], problem["weight"])
    states = problem["states"].clone().requires_grad_()
    for alpha in (0.0, 0.5, 1.0):
        found = robust(states, PlainTable.whole(problem["weight"]), problem["targets"], same, alpha=alpha)
        expected, _ = cross_entropy(states, problem["weight"], problem["targets"])
        assert abs(found.divergence) < 1e-12
        (gradient,), (of_ce,) = (torch.autograd.grad(total, [states]) for total in (found.sum, expected))
        torch.testing.assert_close(gradient, of_ce)


def test_bfloat16_is_computed_in_fp32_and_gradients_have_the_types_of_their_tensors():
    problem = make(30, 300, dtype=torch.bfloat16)
    problem["weights"] = problem["weights"].float()
    leaves = [problem[name].clone().requires_grad_() for name in LEAVES]
    wide = [leaf.detach().float().requires_grad_() for leaf in leaves]
    totals = []
    for states, weight, bias, observed, preferred in (leaves, wide):
        noise = Noise(observed, preferred, noise_of(*wide[3:]).maxima)
        found = robust(
            states, PlainTable.whole(weight, bias), problem["targets"], problem["factored"],
            alpha=0.5, noise=noise, weights=problem["weights"],
        )  # fmt: skip
        assert found.sum.dtype == torch.float32
        totals.append(found.sum)
    assert torch.equal(totals[0], totals[1])
    got = torch.autograd.grad(totals[0], leaves[:4], retain_graph=True)
    assert [gradient.dtype for gradient in got] == [torch.bfloat16] * 4
    for a, b in zip(got[:3], torch.autograd.grad(totals[1], wide[:3], retain_graph=True), strict=True):
        assert torch.equal(a, b.to(torch.bfloat16))


def test_frozen_inputs_and_frozen_noise_get_no_gradient():
    problem = make(12, 40, dtype=torch.float64)
    expected = dict(zip(LEAVES, oracle(problem, 0.5, True)[2:], strict=True))
    for which in (("states",), ("observed",), ("preferred", "bias")):
        leaves = {name: problem[name].clone().requires_grad_(name in which) for name in LEAVES}
        noise = noise_of(leaves["observed"], leaves["preferred"])
        robust(
            leaves["states"], PlainTable.whole(leaves["weight"], leaves["bias"]), problem["targets"],
            problem["factored"], alpha=0.5, noise=noise, weights=problem["weights"],
        ).sum.backward()  # fmt: skip
        for name, leaf in leaves.items():
            assert (leaf.grad is not None) == (name in which)
            if name in which:
                torch.testing.assert_close(leaf.grad, expected[name])


def test_mixtures_serve_as_side_teachers():
    problem = make(9, 50, dtype=torch.float64)
    parts = [torch.randn(9, 50, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (1, 2)]
    problem["mixture"] = MixtureLabels(tuple(DenseLabels(part) for part in parts), (0.25, 0.75))
    problem["side"] = (0.25 * parts[0].softmax(1) + 0.75 * parts[1].softmax(1)).log()
    assert_near(tiled(problem, 0.75, True, "mixture"), oracle(problem, 0.75, True), 1e-10)


def test_wrong_inputs_are_named():
    problem = make(20, 70)
    args = problem["states"], PlainTable.whole(problem["weight"]), problem["targets"]
    for alpha in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=str(alpha)):
            robust(*args, problem["factored"], alpha=alpha)
    with pytest.raises(ValueError, match="labels of 19 examples x 70 items"):
        robust(*args, problem["factored"][:19], alpha=0.5)
    noise = noise_of(problem["observed"], problem["preferred"])
    for wrong in (
        {"observed": noise.observed[1:]},
        {"preferred": noise.preferred[:, 1:]},
        {"maxima": noise.maxima[1:]},
    ):
        with pytest.raises(ValueError, match="V = 70"):
            robust(*args, problem["factored"], alpha=0.5, noise=noise._replace(**wrong))
    with pytest.raises(ValueError, match="1…70"):
        robust(*args[:2], args[2] + 70, problem["factored"], alpha=0.5, noise=noise)
