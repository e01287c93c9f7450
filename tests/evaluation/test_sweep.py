"""One pass over tiles for everything that is asked, against float64 and whole rows."""

import math

import pytest
import torch
from torch import Tensor

from csrec_dist.distributed.catalog import PlainTable
from csrec_dist.evaluation import logits as tiling
from csrec_dist.evaluation.logits import Logits
from csrec_dist.evaluation.scoring import Ensemble, ensemble_logits
from csrec_dist.evaluation.sweep import SweepRequest, sweep
from tests.helpers.dense_logits import dense

NUM_ROWS, NUM_ITEMS, WIDTH, TOP_N = 70, 2011, 24, 20
NEAR = 1e-5


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three blocks of rows, and a dozen tiles for each, of which the last is narrow."""
    monkeypatch.setitem(tiling.BLOCK_ROWS, "cpu", 30)
    monkeypatch.setitem(tiling.TILE_BYTES, "cpu", 30 * 176 * 4)


def drawn(seed: int, bias: bool = True) -> tuple[Tensor, PlainTable]:
    """States and the table of a model."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(NUM_ROWS, WIDTH, generator=generator)
    weight, biases = torch.randn(NUM_ITEMS, WIDTH, generator=generator), torch.randn(NUM_ITEMS, generator=generator)
    return states, PlainTable.whole(weight, biases if bias else None)


def wide(states: Tensor, table: PlainTable) -> Tensor:
    """The logits in float64."""
    logits = states.double() @ table.weight.double().T
    return logits if table.bias is None else logits + table.bias.double()


def items_asked(seed: int = 9) -> tuple[Tensor, Tensor]:
    """Two targets of each row, and seen items, some of them targets."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(1, NUM_ITEMS + 1, (NUM_ROWS, 2), generator=generator)
    seen = torch.randint(0, NUM_ITEMS + 1, (NUM_ROWS, 9), generator=generator)
    seen[::6, 3] = targets[::6, 0]
    targets[::5, 1] = targets[::5, 0]
    return targets, seen


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_all_answers_equal_those_of_float64_rows(hide: bool, bias: bool) -> None:
    states, table = drawn(1, bias)
    targets, seen = items_asked()
    asked = SweepRequest(targets, TOP_N, seen if hide else None, log_sums=True, top=True)
    check(sweep(Logits([states], [table]), asked), wide(states, table), asked)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("combine", ["logit_mean", "weighted", "prob_mean"])
def test_models_are_ranked_together(combine: str) -> None:
    models = [drawn(1), drawn(2, bias=False), drawn(3)]
    weights = (0.5, 0.2, 0.3)
    parts = [wide(*model) for model in models]
    if combine == "prob_mean":
        parts = [part.log_softmax(1) for part in parts]
        exact = torch.stack([part + math.log(w) for part, w in zip(parts, weights, strict=True)]).logsumexp(0)
    else:
        exact = sum((part * w for part, w in zip(parts, weights, strict=True)), torch.zeros(()))
    targets, seen = items_asked()
    asked = SweepRequest(targets, TOP_N, seen, log_sums=True, top=True)
    states, tables = zip(*models, strict=True)
    check(sweep(ensemble_logits(states, tables, Ensemble(combine, weights)), asked), exact, asked)


def check(found: tuple[Tensor, ...], exact: Tensor, asked: SweepRequest) -> None:
    """Answers equal those of whole rows, but for items whose logits are nearly equal."""
    ranks, items, scores, log_sums, top_items, top_logits = found
    torch.testing.assert_close(log_sums.double(), exact.logsumexp(1), rtol=1e-6, atol=NEAR)
    torch.testing.assert_close(top_logits[:, 0].double(), exact.amax(1), rtol=1e-6, atol=NEAR)
    assert torch.equal(top_items[:, 0], exact.argmax(1) + 1)
    shown = exact.clone()
    if asked.seen is not None:
        shown = torch.cat([torch.zeros(len(exact), 1), shown], dim=1).scatter_(1, asked.seen, -math.inf)[:, 1:]
    assert asked.targets is not None
    for column, target in zip(ranks.T, asked.targets.T, strict=True):
        own = shown.gather(1, target.unsqueeze(1) - 1)
        fewest, most = (NUM_ITEMS - (shown < own + near).sum(1) for near in (NEAR, -NEAR))
        assert bool(((fewest <= column) & (column <= most)).all())
        assert int((column != NUM_ITEMS - (shown < own).sum(1)).sum()) <= 1, "rounding moves a rank here and there"
    best = shown.topk(asked.top_n, dim=1)
    torch.testing.assert_close(scores.double(), best.values, rtol=1e-6, atol=NEAR)
    torch.testing.assert_close(shown.gather(1, items - 1), best.values, rtol=1e-6, atol=NEAR)
    assert bool((items.sort(1).values.diff(dim=1) > 0).all()), "an item stands twice in a list"


class Rounding(Logits):
    """Logits whose targets are summed in another order than tiles, as another library may do."""

    def at_items(self, rows: slice, items: Tensor) -> Tensor:
        return super().at_items(rows, items) * (1 + 1e-6)


@pytest.mark.usefixtures("small_tiles")
def test_a_target_never_compares_with_its_own_column() -> None:
    states, table = drawn(4)
    asked = SweepRequest(wide(states, table).argmax(1, keepdim=True) + 1)
    assert sweep(Rounding([states], [table]), asked).ranks.tolist() == [[1]] * NUM_ROWS


def test_what_is_not_asked_has_no_columns() -> None:
    found = sweep(dense(torch.randn(3, 5)), SweepRequest())
    assert [part.shape[1] for part in (found.ranks, found.items, found.scores, found.top_items)] == [0] * 4
