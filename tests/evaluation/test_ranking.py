"""Ranks and best items against plain Python over lists."""

import math
import random
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from csrec_dist.distributed.catalog import PlainTable
from csrec_dist.errors import UserError
from csrec_dist.evaluation import logits, target_ranks, top_items
from csrec_dist.process_state import matmul_precision


def rank_by_hand(scores: list[float], target: int, seen: list[int]) -> int:
    """Count one by one the other items that are not below the target."""
    scores = [-math.inf if item in seen else score for item, score in enumerate(scores, start=1)]
    own = scores[target - 1]
    others = [score for item, score in enumerate(scores, start=1) if item != target]
    return 1 + sum(not score < own for score in others)


def as_table(scores: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """States and item weights whose products are exactly `scores` [N][V]."""
    return torch.eye(len(scores)), torch.tensor(scores).T.contiguous()


def integers(num_examples: int, num_items: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """States and weights of small whole numbers: exact products with many ties."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(-2, 3, (num_examples, width), generator=generator).float(),
        torch.randint(-2, 3, (num_items, width), generator=generator).float(),
    )


def exact_scores(states: torch.Tensor, weight: torch.Tensor, bias: list[float]) -> list[list[float]]:
    return [
        [sum(a * b for a, b in zip(state, row, strict=True)) + c for row, c in zip(weight.tolist(), bias, strict=True)]
        for state in states.tolist()
    ]


@pytest.mark.parametrize("num_items", [1, 2, 7, 50])
@pytest.mark.parametrize("excluded", [False, True])
def test_ranks_equal_a_count_by_hand(num_items: int, excluded: bool) -> None:
    draw = random.Random(num_items)
    states, weight = integers(40, num_items, 3, seed=num_items)
    bias = [float(draw.randint(-1, 1)) for _ in range(num_items)]
    targets = [draw.randint(1, num_items) for _ in range(40)]
    seen = [[draw.randint(0, num_items) for _ in range(4)] for _ in range(40)]
    ranks = target_ranks(
        states,
        PlainTable.whole(weight, torch.tensor(bias)),
        torch.tensor(targets),
        seen=torch.tensor(seen) if excluded else None,
    )
    scores = exact_scores(states, weight, bias)
    expected = [
        rank_by_hand(row, target, items if excluded else [])
        for row, target, items in zip(scores, targets, seen, strict=True)
    ]
    assert ranks.tolist() == expected
    assert ranks.dtype == torch.int64


def test_ties_count_against_the_target() -> None:
    states, weight = as_table([[1.0, 2.0, 2.0, 2.0, 0.0]])
    ranks = [int(target_ranks(states, PlainTable.whole(weight), torch.tensor([target]))) for target in range(1, 6)]
    assert ranks == [4, 3, 3, 3, 5]


def test_a_model_that_scores_all_alike_ranks_last() -> None:
    assert target_ranks(torch.zeros(2, 4), PlainTable.whole(torch.ones(9, 4)), torch.tensor([1, 9])).tolist() == [9, 9]


def test_nan_never_gives_a_good_rank() -> None:
    states, weight = as_table([[3.0, math.nan, 2.0, 1.0]])
    ranks = [int(target_ranks(states, PlainTable.whole(weight), torch.tensor([target]))) for target in range(1, 5)]
    assert ranks == [2, 4, 3, 4]
    broken = target_ranks(torch.full((2, 3), math.nan), PlainTable.whole(torch.ones(8, 3)), torch.tensor([1, 8]))
    assert broken.tolist() == [8, 8]


def test_a_seen_target_ranks_last_and_seen_items_do_not_count() -> None:
    states, weight = as_table([[5.0, 4.0, 3.0, 2.0]] * 2)
    seen = torch.tensor([[1, 2, 0], [3, 1, 0]])
    assert target_ranks(states, PlainTable.whole(weight), torch.tensor([3, 3]), seen=seen).tolist() == [1, 4]


def test_infinite_scores_keep_their_order() -> None:
    scores = torch.tensor([[math.inf, 1.0, -math.inf]])
    ranks = [
        int(target_ranks(torch.zeros(1, 1), PlainTable.whole(torch.zeros(3, 1), scores[0]), torch.tensor([t])))
        for t in (1, 2, 3)
    ]
    assert ranks == [1, 2, 3]


@pytest.mark.parametrize(("rows", "items"), [(1, 16), (7, 16), (7, 48), (100, 160)])
@pytest.mark.parametrize("excluded", [False, True])
def test_tiles_do_not_change_ranks_and_lists(
    monkeypatch: pytest.MonkeyPatch, rows: int, items: int, excluded: bool
) -> None:
    """Of whole numbers, many of them equal, of drawn ones, and of logits that are no numbers."""
    targets = torch.arange(101) % 150 + 1
    seen = torch.arange(202).reshape(101, 2) % 151 if excluded else None
    whole, drawn = integers(101, 150, 3, seed=4), (torch.randn(101, 3), torch.randn(150, 3))
    broken = torch.zeros(150).index_put_((torch.arange(0, 150, 7),), torch.tensor(math.nan))
    broken[3::11], broken[5::17] = math.inf, -math.inf
    for (states, weight), bias in ((whole, None), (drawn, None), (whole, broken)):
        table = PlainTable.whole(weight, bias)
        with monkeypatch.context() as changed:
            changed.setitem(logits.TILE_BYTES, "cpu", 1 << 30)
            expected = target_ranks(states, table, targets, seen=seen), *top_items(states, table, 5, seen=seen)
            changed.setitem(logits.TILE_BYTES, "cpu", rows * items * 4)
            changed.setitem(logits.BLOCK_ROWS, "cpu", rows)
            found = target_ranks(states, table, targets, seen=seen), *top_items(states, table, 5, seen=seen)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert torch.allclose(found[2], expected[2])


@pytest.mark.parametrize("n", [1, 100, 170, 290, 300])
def test_long_lists_take_wide_tiles(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    states, table = torch.randn(11, 3), PlainTable.whole(torch.randn(300, 3))
    expected = (states @ table.weight.T).sort(dim=1, descending=True, stable=True).indices[:, :n] + 1
    monkeypatch.setitem(logits.TILE_BYTES, "cpu", 11 * 176 * 4)
    assert torch.equal(top_items(states, table, n)[0], expected)


class Sizes(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that is made or written to."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [
            each.numel() for each in (made if isinstance(made, (tuple, list)) else [made]) if torch.is_tensor(each)
        ]
        self.largest = max(self.largest, *sizes, 0)
        return made


def test_no_tensor_has_the_size_of_rows_and_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(logits.TILE_BYTES, "cpu", 10 * 320 * 4)
    monkeypatch.setitem(logits.BLOCK_ROWS, "cpu", 10)
    states, table = torch.randn(95, 4), PlainTable.whole(torch.randn(5000, 4))
    with Sizes() as sizes:
        target_ranks(states, table, torch.ones(95, dtype=torch.int64))
        top_items(states, table, 10)
    assert sizes.largest == 5000 * 4  # the table


@pytest.mark.parametrize("num_rows", [1, 3, 60])
def test_items_of_equal_vectors_tie_with_the_target_in_every_tile(
    monkeypatch: pytest.MonkeyPatch, num_rows: int
) -> None:
    """Each vector stands five times in the catalog; whatever rounding does, the five are one another's ties."""
    monkeypatch.setitem(logits.TILE_BYTES, "cpu", num_rows * 64 * 4)
    generator = torch.Generator().manual_seed(2)
    states, weight = torch.randn(num_rows, 24, generator=generator), torch.randn(64, 24, generator=generator)
    wide = states.double() @ weight.double().T
    targets = torch.randint(0, 64, (num_rows,), generator=generator)
    expected = 5 * (wide >= wide.gather(1, targets.unsqueeze(1))).sum(1)
    for copy in range(5):
        ranks = target_ranks(states, PlainTable.whole(weight.repeat(5, 1)), targets + 64 * copy + 1)
        assert ranks.tolist() == expected.tolist()


@pytest.mark.parametrize("width", [8, 24, 64])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 60])
@pytest.mark.parametrize("num_vectors", [60, 400])
def test_items_of_equal_vectors_tie_where_onednn_multiplies(num_rows: int, num_vectors: int, width: int) -> None:
    """Whole tiles go to oneDNN there; the target's logit alone has few enough terms to be left to MKL."""
    generator = torch.Generator().manual_seed(3)
    states, weight = (torch.randn(size, width, generator=generator) for size in (num_rows, num_vectors))
    wide = states.double() @ weight.double().T
    targets = torch.randint(0, num_vectors, (num_rows,), generator=generator)
    expected = 5 * (wide >= wide.gather(1, targets.unsqueeze(1))).sum(1)
    with matmul_precision("highest"):
        for copy in range(5):
            ranks = target_ranks(states, PlainTable.whole(weight.repeat(5, 1)), targets + num_vectors * copy + 1)
            assert ranks.tolist() == expected.tolist()


def test_the_inputs_are_left_alone() -> None:
    states, weight = integers(5, 6, 3, seed=1)
    kept = states.clone(), weight.clone()
    target_ranks(
        states, PlainTable.whole(weight), torch.ones(5, dtype=torch.int64), seen=torch.ones(5, 1, dtype=torch.int64)
    )
    top_items(states, PlainTable.whole(weight), 2, seen=torch.ones(5, 1, dtype=torch.int64))
    assert torch.equal(states, kept[0])
    assert torch.equal(weight, kept[1])


def test_half_precision_states_are_ranked_in_single_precision() -> None:
    states = torch.ones(1, 2, dtype=torch.bfloat16)
    weight = torch.tensor([[256.0, 1.0], [256.0, 0.0]], dtype=torch.bfloat16)
    assert target_ranks(states, PlainTable.whole(weight), torch.tensor([1])).tolist() == [1]


def test_no_examples_give_no_ranks() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    assert target_ranks(torch.zeros(0, 2), PlainTable.whole(torch.ones(3, 2)), nothing).shape == (0,)
    items, scores = top_items(torch.zeros(0, 2), PlainTable.whole(torch.ones(3, 2)), 2)
    assert items.shape == scores.shape == (0, 2)


@pytest.mark.parametrize("n", [1, 3, 20])
@pytest.mark.parametrize("excluded", [False, True])
def test_best_items_equal_a_sort_by_hand(n: int, excluded: bool) -> None:
    draw = random.Random(n)
    states, weight = integers(60, 20, 2, seed=n)
    bias = [float(draw.randint(-1, 1)) for _ in range(20)]
    seen = [[draw.randint(0, 20) for _ in range(6)] for _ in range(60)]
    items, scores = top_items(
        states, PlainTable.whole(weight, torch.tensor(bias)), n, seen=torch.tensor(seen) if excluded else None
    )
    for row, exact in enumerate(exact_scores(states, weight, bias)):
        hidden = seen[row] if excluded else []
        allowed = [-math.inf if item in hidden else score for item, score in enumerate(exact, start=1)]
        ordered = sorted((-score, item) for item, score in enumerate(allowed, start=1))
        assert items[row].tolist() == [item for _, item in ordered[:n]]
        assert scores[row].tolist() == [-score for score, _ in ordered[:n]]


def test_nan_is_never_recommended_first() -> None:
    states, weight = as_table([[1.0, math.nan, 2.0]])
    items, scores = top_items(states, PlainTable.whole(weight), 3)
    assert items.tolist() == [[3, 1, 2]]
    assert scores.tolist() == [[2.0, 1.0, -math.inf]]


@pytest.mark.parametrize("n", [0, 4])
def test_more_items_than_there_are_is_a_user_error(n: int) -> None:
    with pytest.raises(UserError, match=f"The best {n} of 3 items were asked for; ask for 1…3"):
        top_items(torch.ones(1, 2), PlainTable.whole(torch.ones(3, 2)), n)
