"""Laws of the noise matrix: exact column maxima without a V × V tensor, when they are looked for, what is saved."""

import copy

import pytest
import torch
from torch import nn

from csrec_dist.distributed.catalog import CatalogSlice
from csrec_dist.losses import FactoredLabels, NoiseMatrix, RobustLoss, robust
from csrec_dist.losses import noise as module
from tests.helpers.ranks import run_ranks

torch.set_num_threads(1)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("tile_bytes", [8, 8 * 49, 8 * 1000, 1 << 23])
@pytest.mark.parametrize("num_items", [1, 7, 50])
def test_column_maxima_equal_the_dense_ones(monkeypatch, num_items, tile_bytes):
    monkeypatch.setitem(module.TILE_BYTES, "cpu", tile_bytes)
    observed, preferred = draw(num_items, 4), draw(num_items, 4, seed=1)
    values, places = module.column_maxima(observed, preferred)
    expected = (observed @ preferred.T).max(0)
    torch.testing.assert_close(values, expected.values)
    assert torch.equal(places, expected.indices)


def test_the_first_of_equal_rows_is_the_maximiser(monkeypatch):
    monkeypatch.setitem(module.TILE_BYTES, "cpu", 4 * 9)
    assert module.column_maxima(torch.ones(20, 2), torch.ones(20, 2))[1].tolist() == [0] * 20


def test_exact_maxima_and_their_gradients():
    noise = NoiseMatrix(CatalogSlice.whole(40), 5, seed=3).double()
    leaves = [p.detach().clone().requires_grad_() for p in (noise.observed, noise.preferred)]
    factor = draw(40, seed=2)
    found, expected = noise().maxima, (leaves[0] @ leaves[1].T).max(0).values
    torch.testing.assert_close(found, expected)
    got = torch.autograd.grad((found * factor).sum(), [noise.observed, noise.preferred])
    for a, b in zip(got, torch.autograd.grad((expected * factor).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_the_norm_is_never_below_the_maximum_and_has_its_gradients():
    noise = NoiseMatrix(CatalogSlice.whole(30), 4, seed=1, maximum="norm").double()
    found = noise().maxima
    assert (found >= (noise.observed @ noise.preferred.T).max(0).values).all()
    m, n = (p.detach().clone().requires_grad_() for p in (noise.observed, noise.preferred))
    expected = n.pow(2).sum(1).sqrt() * m.pow(2).sum(1).max().sqrt()
    torch.testing.assert_close(found, expected)
    got = torch.autograd.grad(found.sum(), [noise.observed, noise.preferred])
    for a, b in zip(got, torch.autograd.grad(expected.sum(), [m, n]), strict=True):
        torch.testing.assert_close(a, b)


def count_searches(monkeypatch):
    calls = []
    search = module.column_maxima
    monkeypatch.setattr(module, "column_maxima", lambda *args: calls.append(1) or search(*args))
    return calls


def test_maximisers_are_looked_for_every_few_steps_and_their_values_every_step(monkeypatch):
    calls = count_searches(monkeypatch)
    noise = NoiseMatrix(CatalogSlice.whole(20), 3, seed=0, refresh=3)
    found = []
    for step in range(7):
        before = noise().maxima.detach().clone()
        found.append(len(calls))
        with torch.no_grad():
            noise.preferred *= 2
        if step < 6 and step % 3 != 2:
            torch.testing.assert_close(noise.eval()().maxima, before * 2)
            noise.train()
    assert found == [1, 1, 1, 2, 2, 2, 3]


def test_a_later_search_does_not_disturb_an_earlier_gradient():
    noise = NoiseMatrix(CatalogSlice.whole(20), 3, seed=0)
    first = noise().maxima
    noise()
    expected = torch.zeros(20, 3).index_add(0, noise.get_buffer("maximisers"), noise.preferred.detach())
    torch.testing.assert_close(torch.autograd.grad(first.sum(), [noise.observed])[0], expected)


def test_evaluation_counts_no_step():
    noise = NoiseMatrix(CatalogSlice.whole(20), 3, seed=0, refresh=2)
    noise.eval()()
    assert noise.get_buffer("num_steps") == 0
    noise.train()()
    assert noise.get_buffer("num_steps") == 1


def test_a_seed_decides_the_parameters():
    first, same, other = (NoiseMatrix(CatalogSlice.whole(9), 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.observed, same.observed)
    assert not torch.equal(first.observed, other.observed)
    assert not torch.equal(first.observed, first.preferred)


class Table(nn.Module):
    """An item table with a bias."""

    catalog = None

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(draw(25, 4).float()), nn.Parameter(torch.zeros(25))
        self.catalog = CatalogSlice.whole(25)


def train(loss_function, table, optimizer, steps, first=0, rank=0, world_size=1):
    """Steps of Adam over examples that depend on the step, this rank having its share of them."""
    for step in range(first, first + steps):
        states, side = draw(12, 4, seed=step).float(), FactoredLabels(draw(12, 4, seed=50 + step).float(), table.weight)
        targets = torch.arange(1, 13) + step
        share = slice(rank, None, world_size)
        optimizer.zero_grad()
        loss = loss_function(
            states[share], table, targets[share], FactoredLabels(side.states[share], draw(25, 4).float())
        )
        (loss.sum / 12).backward()
        if world_size > 1:
            for parameter in optimizer.param_groups[0]["params"]:
                torch.distributed.all_reduce(parameter.grad)
        optimizer.step()


def make_training(refresh):
    table, loss_function = Table(), RobustLoss(0.25, NoiseMatrix(CatalogSlice.whole(25), 3, seed=1, refresh=refresh))
    return loss_function, table, torch.optim.Adam([*loss_function.parameters(), *table.parameters()], lr=0.05)


def test_a_training_resumed_from_its_state_is_bit_equal():
    loss_function, table, optimizer = make_training(4)
    train(loss_function, table, optimizer, 6)
    saved = {name: value.clone() for name, value in loss_function.state_dict().items()}
    assert set(saved) == {"noise.observed", "noise.preferred", "noise.maximisers", "noise.num_steps"}
    resumed, same_table, same_optimizer = make_training(4)
    resumed.load_state_dict(saved)
    same_table.load_state_dict(table.state_dict())
    same_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(loss_function, table, optimizer, 4, first=6)
    train(resumed, same_table, same_optimizer, 4, first=6)
    for name, value in loss_function.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def train_rank(rank, world_size):
    loss_function, table, optimizer = make_training(2)
    train(loss_function, table, optimizer, 5, rank=rank, world_size=world_size)
    return {name: value.tolist() for name, value in loss_function.state_dict().items()}


def test_ranks_agree_with_one_rank():
    alone, ranks = train_rank(0, 1), run_ranks(train_rank, 2)
    assert ranks[0] == ranks[1]
    assert ranks[0]["noise.num_steps"] == 5
    for name in ("noise.observed", "noise.preferred"):
        torch.testing.assert_close(torch.tensor(ranks[0][name]), torch.tensor(alone[name]), rtol=1e-4, atol=1e-5)


def test_the_objective_is_the_robust_loss_with_and_without_noise():
    table, states, targets = Table(), draw(8, 4).float(), torch.arange(1, 9)
    side = FactoredLabels(draw(8, 4, seed=4).float(), draw(25, 4, seed=5).float())
    noise = NoiseMatrix(CatalogSlice.whole(25), 3, seed=1)
    for given in (None, noise):
        found = RobustLoss(0.25, given)(states, table, targets, side)
        expected = robust(states, table, targets, side, alpha=0.25, noise=given() if given else None)
        assert torch.equal(found.sum, expected.sum)
    assert list(RobustLoss(0.25).parameters()) == []
    found = RobustLoss(0.25, noise)
    found(states, table, targets, side).sum.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in found.parameters())
