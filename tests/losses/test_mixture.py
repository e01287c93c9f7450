"""Labels that are a mean of probabilities, against a dense float64 oracle: both KL directions, all forms of parts."""

import itertools
import math

import pytest
import torch

from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.losses import DenseLabels, FactoredLabels, MixtureLabels, distillation, tiles
from csrec_dist.losses.entropy import label_entropy

torch.set_num_threads(1)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
WIDTHS = (5, 3, 8, 1, 6, 2, 7, 4)


def make(num_examples, num_items, num_parts, width=6, seed=0, dtype=torch.float32, size=1.0, form="factored"):
    """A student and a mixture of parts of different widths; `logits` are the parts' in float64."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    p = {"states": normal(num_examples, width), "weight": normal(num_items, width), "bias": normal(num_items)}
    p["targets"] = torch.randint(1, num_items + 1, (num_examples,), generator=g)
    factors = [(normal(num_examples, w) * size, normal(num_items, w), normal(num_items)) for w in WIDTHS[:num_parts]]
    p["logits"] = [s.double() @ w.double().T + b.double() for s, w, b in factors]
    parts = [FactoredLabels(*f) for f in factors]
    if form == "dense":
        parts = [DenseLabels(logits.to(dtype)) for logits in p["logits"]]
        p["logits"] = [part.logits.double() for part in parts]
    shares = torch.rand(num_parts, generator=g, dtype=torch.float64) + 0.1
    p["shares"] = (shares / shares.sum()).tolist()
    p["labels"] = MixtureLabels(tuple(parts), tuple(p["shares"]))
    return p


def oracle(problem, temperature, beta, kl):
    """Loss and gradients by the definitions, dense, in float64."""
    leaves = [problem[k].double().requires_grad_() for k in ("states", "weight", "bias")]
    target = problem["targets"] - 1
    log_p = torch.log_softmax(leaves[0] @ leaves[1].T + leaves[2], 1)
    shares = torch.tensor(problem["shares"], dtype=torch.float64).view(-1, 1, 1)
    log_q = torch.logsumexp((torch.stack(problem["logits"]) / temperature).log_softmax(2) + shares.log(), 0)
    onehot = torch.nn.functional.one_hot(target, log_p.shape[1]).double()
    log_r = torch.logaddexp(log_q, onehot.log()) + math.log(0.5)
    log_a, log_b = (log_p, log_r) if kl == "reverse" else (log_r, log_p)
    divergence = (log_a.exp() * (log_a - log_b)).sum(1)
    total = ((1 - beta) * -log_p[torch.arange(len(target)), target] + beta * divergence).sum()
    return [total.detach(), *torch.autograd.grad(total, leaves)]


def tiled(problem, temperature, beta, kl, labels=None):
    leaves = [problem[k].clone().requires_grad_() for k in ("states", "weight", "bias")]
    total, _ = distillation(
        *leaves[:2], problem["targets"], labels or problem["labels"],
        temperature=temperature, beta=beta, kl=kl, item_bias=leaves[2],
    )  # fmt: skip
    return [total.detach(), *torch.autograd.grad(total, leaves)]


def assert_near(got, expected, tolerance):
    for name, a, b in zip(("loss", "states", "weight", "bias"), got, expected, strict=True):
        error = (a.double() - b).abs().max() / b.abs().max().clamp_min(1e-3)
        assert error <= tolerance, (name, float(error))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kl", ["reverse", "forward"])
@pytest.mark.parametrize("form", ["factored", "dense"])
def test_papers_grid(kl, form, dtype):
    problem = make(19, 97, 2, dtype=dtype, form=form)
    for beta, temperature in itertools.product((0.25, 0.5, 0.75), (1, 3, 6, 9)):
        assert_near(tiled(problem, temperature, beta, kl), oracle(problem, temperature, beta, kl), TOLERANCE[dtype])


@pytest.mark.parametrize("kl", ["reverse", "forward"])
def test_one_to_eight_parts_in_tiles_of_any_size(monkeypatch, kl):
    draw = torch.Generator().manual_seed(7)

    def integer(most):
        return int(torch.randint(1, most, (), generator=draw))

    for num_parts in range(1, 9):
        monkeypatch.setitem(tiles.TILE_BYTES, "cpu", 4 * integer(2000))
        monkeypatch.setitem(tiles.KEPT_BYTES, "cpu", (integer(3) - 1) << 26)
        problem = make(integer(30), integer(200), num_parts, seed=num_parts, dtype=torch.float64)
        assert_near(tiled(problem, 2.0, 0.5, kl), oracle(problem, 2.0, 0.5, kl), 1e-10)


@pytest.mark.parametrize("kl", ["reverse", "forward"])
@pytest.mark.parametrize("kept", [0, 1 << 26])
def test_huge_logits(monkeypatch, kl, kept):
    """Parts that give an item e⁻¹⁰⁰⁰⁰ each, and parts that agree on nothing."""
    monkeypatch.setitem(tiles.KEPT_BYTES, "cpu", kept)
    for size in (30, 3000):
        problem = make(12, 90, 3, size=size, dtype=torch.float64)
        got = tiled(problem, 1.0, 0.5, kl)
        assert all(x.isfinite().all() for x in got)
        assert_near(got, oracle(problem, 1.0, 0.5, kl), 1e-9)


@pytest.mark.parametrize("kl", ["reverse", "forward"])
def test_a_mixture_of_equal_parts_is_the_part(kl):
    problem = make(11, 60, 1, dtype=torch.float64)
    part = problem["labels"].parts[0]
    expected = tiled(problem, 3.0, 0.5, kl, part)
    for weights in ((1.0,), (0.5, 0.5), (0.2, 0.3, 0.5), (0.0, 1.0)):
        assert_near(tiled(problem, 3.0, 0.5, kl, MixtureLabels((part,) * len(weights), weights)), expected, 1e-12)


def test_the_order_of_parts_and_the_cut_of_rows_do_not_matter():
    problem = make(16, 60, 3, dtype=torch.float64)
    labels = problem["labels"]
    turned = MixtureLabels(labels.parts[::-1], labels.weights[::-1])
    expected = tiled(problem, 3.0, 0.5, "reverse")
    assert_near(tiled(problem, 3.0, 0.5, "reverse", turned), expected, 1e-12)
    rows = torch.tensor([3, 0, 3, 15])
    some = problem | {"states": problem["states"][rows], "targets": problem["targets"][rows]}
    some["logits"] = [logits[rows] for logits in problem["logits"]]
    for chosen in (labels[rows], labels.to("cpu")[rows]):
        assert (chosen.num_examples, chosen.num_items) == (4, 60)
        assert_near(tiled(some, 3.0, 0.5, "reverse", chosen), oracle(some, 3.0, 0.5, "reverse"), 1e-10)


def test_no_examples():
    problem = make(0, 30, 2)
    total, *gradients = tiled(problem, 3.0, 0.5, "reverse")
    assert total == 0
    assert all((g == 0).all() for g in gradients)


def test_a_tempered_mixture_is_a_distribution_within_its_bound():
    problem = make(9, 50, 3, dtype=torch.float64, size=5.0)
    tempered = problem["labels"].tempered(0.5, problem["states"], CatalogSlice.whole(50))
    t = tempered.tile(slice(0, 9), slice(0, 50), out=torch.empty(9, 50, dtype=torch.float64))
    torch.testing.assert_close(t.exp().sum(1), torch.ones(9, dtype=torch.float64))
    assert t.abs().max() <= tempered.bound() * (1 + 1e-12)
    index = torch.arange(9)
    torch.testing.assert_close(tempered.at(slice(0, 9), index, torch.float64), t[index, index])


@pytest.mark.parametrize("weights", [(), (1.0,), (0.5, 0.6), (-0.5, 1.5), (math.nan, 1.0)])
def test_unsound_mixtures_are_refused(weights):
    parts = make(4, 5, 2)["labels"].parts
    with pytest.raises(ValueError, match="weight"):
        MixtureLabels(parts, weights)
    with pytest.raises(ValueError, match=r"\(3, 5\), \(4, 5\)"):
        MixtureLabels((parts[0], parts[1][:3]), (0.5, 0.5))


def test_no_gradient_goes_to_the_labels():
    p = make(9, 30, 2)
    parts = tuple(
        FactoredLabels(*(f.clone().requires_grad_() for f in vars(part).values())) for part in p["labels"].parts
    )
    states = p["states"].requires_grad_()
    losses = [
        distillation(states, p["weight"], p["targets"], labels, temperature=2.0, beta=0.5)[0]
        for labels in (p["labels"], MixtureLabels(parts, p["labels"].weights))
    ]
    losses[1].backward()
    assert torch.equal(*losses)
    assert states.grad is not None
    assert all(part.item_weight.grad is None for part in parts)


def test_a_mixtures_own_products_are_as_precise_as_the_losss(monkeypatch):
    """Seen from the product that the log-sum-exp of each part needs."""
    p, seen = make(9, 30, 2), []
    real = FactoredLabels.tile

    def tile(*args, **keys):
        seen.append(torch.backends.cuda.matmul.fp32_precision)
        return real(*args, **keys)

    monkeypatch.setattr(FactoredLabels, "tile", tile)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        label_entropy(p["labels"], 2.0)
        assert set(seen) == {"ieee"}
        distillation(p["states"], p["weight"], p["targets"], p["labels"], temperature=2.0, beta=0.5)
        assert set(seen) == {"ieee"}
        distillation(p["states"], p["weight"], p["targets"], p["labels"], temperature=2.0, beta=0.5, precision="high")
        assert set(seen) == {"ieee", "tf32"}
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
