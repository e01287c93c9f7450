"""What the losses promise beside the numbers: autograd, types, errors, bounded memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from csrec_dist.distributed.catalog import CatalogSlice, PlainTable
from csrec_dist.losses import (
    DenseLabels,
    FactoredLabels,
    MixtureLabels,
    NoiseMatrix,
    cross_entropy,
    distillation,
    robust,
    tiles,
)

torch.set_num_threads(1)


def problem(num_examples=20, num_items=70, width=6, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    shapes = (num_examples, width), (num_items, width), (num_items,), (num_examples, 2 * width), (num_items, 2 * width)
    tensors = [torch.randn(*s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]
    leaves = [t.requires_grad_() for t in tensors[:3]]
    targets = torch.randint(1, num_items + 1, (num_examples,), generator=g)
    return *leaves, targets, FactoredLabels(*tensors[3:])


def distil(states, weight, targets, labels, **kwargs):
    return distillation(states, weight, targets, labels, **{"temperature": 3.0, "beta": 0.5} | kwargs)


@pytest.mark.parametrize("kl", ["reverse", "forward"])
def test_gradcheck(kl):
    states, weight, bias, targets, labels = problem(4, 7, 3)

    def loss(states, weight, bias):
        return distil(states, weight, targets, labels, kl=kl, item_bias=bias)[0]

    assert torch.autograd.gradcheck(loss, (states, weight, bias))
    assert torch.autograd.gradcheck(
        lambda s, w, b: cross_entropy(s, w, targets, item_bias=b)[0], (states, weight, bias)
    )


def test_gradients_scale_with_what_comes_from_above_and_can_be_taken_twice():
    states, weight, bias, targets, labels = problem()
    total = distil(states, weight, targets, labels, item_bias=bias)[0]
    once = torch.autograd.grad(total, [states, weight, bias], retain_graph=True)
    scaled = torch.autograd.grad(total / -7, [states, weight, bias])
    for a, b in zip(once, scaled, strict=True):
        torch.testing.assert_close(a / -7, b)


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (0, 2), ()])
def test_frozen_inputs_get_no_gradient_and_change_nothing(which):
    *leaves, targets, labels = problem()
    expected = torch.autograd.grad(distil(*leaves[:2], targets, labels, item_bias=leaves[2])[0], leaves)
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(i in which)
    total = distil(*leaves[:2], targets, labels, item_bias=leaves[2])[0]
    assert total.requires_grad == bool(which)
    if which:
        total.backward()
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (i in which)
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, expected[i])
    with torch.no_grad():
        assert not distil(*leaves[:2], targets, labels, item_bias=leaves[2])[0].requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["factored", "dense"])
def test_half_precision_is_computed_in_fp32(dtype, form):
    states, weight, bias, targets, labels = problem(30, 900, dtype=dtype)
    labels = labels if form == "factored" else DenseLabels(labels.tile(slice(30), slice(900)))
    total = distil(states, weight, targets, labels, item_bias=bias)[0]
    gradients = torch.autograd.grad(total, [states, weight, bias])
    assert total.dtype == torch.float32
    assert [g.dtype for g in gradients] == [dtype] * 3
    wide = [x.detach().float().requires_grad_() for x in (states, weight, bias)]
    fields = (labels.states, labels.item_weight) if form == "factored" else (labels.logits,)
    same = type(labels)(*(f.float() for f in fields))
    expected = distil(*wide[:2], targets, same, item_bias=wide[2])[0]
    torch.testing.assert_close(total, expected)
    for a, b in zip(gradients, torch.autograd.grad(expected, wide), strict=True):
        assert torch.equal(a, b.to(dtype))


@pytest.mark.parametrize("large", [1, 12])
@pytest.mark.parametrize("kl", ["reverse", "forward", "one-hot"])
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_only_medium_rounds_on_a_cpu_and_only_where_bf16_is_multiplied(precision, kl, large, monkeypatch):
    states, weight, bias, targets, labels = problem(300, 900, 32, torch.float32)
    labels = FactoredLabels(labels.states, labels.item_weight, bias.detach())
    leaves = [states, weight, bias]

    def solve(states, weight, bias, labels, precision):
        states = states * large  # with 12, logits need a shift
        if kl == "one-hot":
            total = cross_entropy(states, weight, targets, item_bias=bias, precision=precision)[0]
        else:
            total = distil(states, weight, targets, labels, kl=kl, item_bias=bias, precision=precision)[0]
        return total, *torch.autograd.grad(total, [states, weight, bias])

    def error(*found):
        return max(((a - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True))

    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact = solve(*wide, FactoredLabels(*(x.double() for x in (labels.states, labels.item_weight, bias))), "highest")
    monkeypatch.setattr("csrec_dist.losses.tiled.cpu_multiplies_bf16", lambda: False)
    unrounded = solve(*leaves, labels, precision)
    monkeypatch.setattr("csrec_dist.losses.tiled.cpu_multiplies_bf16", lambda: True)
    found = solve(*leaves, labels, precision)
    assert error(*unrounded) < 1e-4
    if precision == "medium":
        assert 1e-4 < error(*found) < 0.1
        assert abs(found[0] / exact[0] - 1) < 1e-3
    else:
        assert all(torch.equal(a, b) for a, b in zip(found, unrounded, strict=True))


@pytest.mark.parametrize("kl", ["one-hot", "reverse"])
def test_rounded_losses_are_not_below_zero(kl, monkeypatch):
    """Of examples that the student knows for sure, with labels that are its own logits."""
    monkeypatch.setattr("csrec_dist.losses.tiled.cpu_multiplies_bf16", lambda: True)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(500, 16, generator=generator)
    weight = 6 * weight / weight.norm(dim=1, keepdim=True)
    targets = torch.arange(1, 65)
    states = weight[:64].contiguous()
    for row in range(64):
        of_one = states[row : row + 1], weight, targets[row : row + 1]
        if kl == "one-hot":
            loss = cross_entropy(*of_one, precision="medium")[0]
        else:
            labels = FactoredLabels(of_one[0], weight)
            loss = distillation(*of_one, labels, temperature=1.0, beta=1.0, precision="medium")[0]
        assert loss > -1e-5


def test_autocast_changes_nothing():
    states, weight, _, targets, labels = problem(dtype=torch.float32)
    expected = distil(states, weight, targets, labels)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distil(states, weight, targets, labels)[0], expected)


def test_strided_inputs():
    states, weight, _, targets, labels = problem()

    def strided(x):
        return torch.stack([x.detach().T, x.detach().T], -1)[..., 0].T

    views = [strided(x).requires_grad_() for x in (states, weight)]
    assert not any(v.is_contiguous() for v in views)
    same = FactoredLabels(strided(labels.states), strided(labels.item_weight))
    plain = distil(states, weight, targets, labels)[0]
    total = distil(*views, targets, same)[0]
    torch.testing.assert_close(total, plain)
    for a, b in zip(torch.autograd.grad(total, views), torch.autograd.grad(plain, [states, weight]), strict=True):
        torch.testing.assert_close(a, b)


class Unread(DenseLabels):
    """Labels that may not be read."""

    def tile(self, *args, **kwargs):
        raise AssertionError("labels were read")

    at = bound = tile


def test_beta_zero_does_not_read_the_labels():
    states, weight, _, targets, _ = problem()
    labels = Unread(torch.zeros(20, 70))
    assert distil(states, weight, targets, labels, beta=0.0)[0] == cross_entropy(states, weight, targets)[0]
    with pytest.raises(AssertionError, match="labels were read"):
        distil(states, weight, targets, labels, beta=0.5)


def test_labels_by_rows_and_tiles():
    *_, labels = problem()
    full = labels.states @ labels.item_weight.T
    dense = DenseLabels(full)
    for rows in (slice(3, 9), torch.tensor([5, 0, 5]), torch.arange(20) % 2 == 0):
        for form in (labels[rows], dense[rows]):
            assert form.num_examples == len(full[rows])
            torch.testing.assert_close(form.tile(slice(1, 3), slice(5, 40)), full[rows][1:3, 5:40])
            out = torch.empty(2, 35, dtype=full.dtype)
            assert form.to("cpu").tile(slice(1, 3), slice(5, 40), scale=0.5, out=out) is out
            torch.testing.assert_close(out, full[rows][1:3, 5:40] / 2)
            assert form.bound() >= full[rows].abs().max() * (1 - 1e-6)


def test_wrong_shapes_and_targets_are_named():
    states, weight, bias, targets, labels = problem()
    for bad in (targets - 1, targets * 0 + 71):
        with pytest.raises(ValueError, match=r"1…70.*\[70, 6\]"):
            cross_entropy(states, weight, bad.clamp(0, 71).index_fill(0, torch.tensor([0]), int(bad[0] > 70) * 71))
    for args in ((states[:, :5], weight, targets), (states, weight, targets[1:]), (states, weight[:0], targets)):
        with pytest.raises(ValueError, match=r"states \[20, "):
            cross_entropy(*args)
    for kwargs in ({"item_bias": bias[1:]}, {"weights": torch.ones(19)}):
        with pytest.raises(ValueError, match=r"\[(69|19)\]"):
            cross_entropy(states, weight, targets, **kwargs)
    with pytest.raises(ValueError, match="labels of 19 examples x 70 items"):
        distil(states, weight, targets, labels[:19])
    with pytest.raises(ValueError, match=r"\[20, 12\], \[70, 11\]"):
        FactoredLabels(labels.states, labels.item_weight[:, :11])
    with pytest.raises(ValueError, match=r"\[20\]"):
        DenseLabels(labels.states[:, 0])
    excluding = DenseLabels(torch.randn(20, 70).index_fill(1, torch.tensor([3]), -torch.inf))
    for form in (excluding, MixtureLabels((labels, excluding), (0.5, 0.5))):
        with pytest.raises(ValueError, match="finite logits"):
            distil(states, weight, targets, form)
    for wrong in ({"temperature": 0.0}, {"beta": 1.5}, {"beta": -0.1}, {"kl": "both"}):
        with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
            distil(states, weight, targets, labels, **wrong)


class Allocations(TorchDispatchMode):
    """Records the elements of the largest storage that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.itemsize)
        return result


@pytest.mark.parametrize("kl", [None, "reverse", "forward"])
@pytest.mark.parametrize("size", [0.01, 10.0])
def test_no_tensor_of_examples_by_items(kl, size):
    """With 2,560 × 5,000 logits no storage exceeds the item table, in numbers, or the kept tiles' budget."""
    num_examples, num_items, width = 2560, 5000, 4
    states, weight, _, targets, labels = problem(num_examples, num_items, width, torch.float32)
    states = (states.detach() * size).requires_grad_()
    with Allocations() as seen:
        total = (
            cross_entropy(states, weight, targets) if kl is None else distil(states, weight, targets, labels, kl=kl)
        )[0]
        total.backward()
    assert num_items * width <= seen.largest <= tiles.KEPT_ROWS["cpu"] * num_items * 1.01 < num_examples * num_items / 9


@pytest.mark.parametrize("size", [0.01, 10.0])
def test_no_tensor_of_examples_by_items_for_mixtures_and_noise(size):
    """The same for mixtures, and for the robust loss, of which no tensor is of items × items either."""
    num_examples, num_items, width = 2560, 5000, 4
    states, weight, _, targets, labels = problem(num_examples, num_items, width, torch.float32)
    states = (states.detach() * size).requires_grad_()
    noise = NoiseMatrix(CatalogSlice.whole(num_items), 3, seed=0)
    with Allocations() as seen:
        distil(states, weight, targets, MixtureLabels((labels, labels), (0.5, 0.5)))[0].backward()
        robust(states, PlainTable.whole(weight), targets, labels, alpha=0.5, noise=noise()).sum.backward()
    assert seen.largest <= tiles.RECOMPUTED_ROWS["cpu"] * num_items * 1.01 < num_examples * num_items / 4


def test_kept_tiles_stay_under_the_budget_for_any_shape():
    for num_examples in (1, 100, 10_000, 10**7):
        for num_items in (1, 1000, 10**5, 10**7):
            tiling = tiles.choose_tiling(num_examples, num_items, 2, torch.float32, torch.device("cpu"))
            slots = tiling.num_tiles if tiling.is_kept else 1
            assert 2 * 4 * slots * tiling.rows * tiling.items <= tiles.KEPT_BYTES["cpu"] + 4 * tiles.TILE_BYTES["cpu"]
            assert [s.stop for s in tiling.item_slices()][-1] == num_items
