"""Elastic order: every row once an epoch, the same global batches at any world size."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrec_dist.data.order import EpochOrder, RowSample, owned_shards, refuse_idle_ranks
from csrec_dist.errors import UserError

SHAPES = [((3, 3, 3, 2), 4), ((10,) * 64, 16), ((7, 7, 7, 7, 6, 6, 6), 5), ((1,), 3), ((4, 4, 3), 100)]


def places(order: EpochOrder, step: int) -> list[tuple[int, int]]:
    shards, indices = order.batch(step, np.arange(order.num_shards))
    return list(zip(shards.tolist(), indices.tolist(), strict=True))


@pytest.mark.parametrize(("shard_rows", "batch_size"), SHAPES)
def test_an_epoch_holds_every_row_once(shard_rows: tuple[int, ...], batch_size: int) -> None:
    order = EpochOrder(shard_rows, batch_size, seed=3, epoch=1)
    seen = Counter(place for step in range(order.num_steps) for place in places(order, step))
    expected = {(shard, index) for shard, rows in enumerate(shard_rows) for index in range(rows)}
    assert set(seen) == expected
    assert set(seen.values()) == {1}
    assert max(len(places(order, step)) for step in range(order.num_steps)) <= batch_size


@pytest.mark.parametrize(("shard_rows", "batch_size"), SHAPES)
def test_the_ranks_rows_are_together_those_of_one_rank(shard_rows: tuple[int, ...], batch_size: int) -> None:
    order = EpochOrder(shard_rows, batch_size, seed=4, epoch=2)
    for world_size in range(1, len(shard_rows) + 1):
        slots = [order.slots(owned_shards(len(shard_rows), rank, world_size)) for rank in range(world_size)]
        for step in range(order.num_steps):
            parts = [list(zip(*map(np.ndarray.tolist, order.batch(step, part)), strict=True)) for part in slots]
            whole = places(order, step)
            assert sorted(place for part in parts for place in part) == sorted(whole)
            for rank, part in enumerate(parts):
                assert part == [place for place in whole if place[0] % world_size == rank]


@settings(max_examples=60)
@given(data=st.data())
def test_any_epoch_holds_its_rows_once_on_any_number_of_ranks(data: st.DataObject) -> None:
    base, num_shards = data.draw(st.integers(0, 12)), data.draw(st.integers(1, 9))
    shard_rows = tuple(base + data.draw(st.integers(base == 0, 1)) for _ in range(num_shards))
    sample = data.draw(st.none() | st.builds(RowSample, st.floats(0.3, 1), st.integers(0, 9)))
    order = EpochOrder(shard_rows, data.draw(st.integers(1, 40)), data.draw(st.integers(0, 99)), 3, sample)
    world_size = data.draw(st.integers(1, num_shards))
    slots = [order.slots(owned_shards(num_shards, rank, world_size)) for rank in range(world_size)]
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(order.num_steps):
        parts = [list(zip(*map(np.ndarray.tolist, order.batch(step, part)), strict=True)) for part in slots]
        assert sorted(place for part in parts for place in part) == sorted(places(order, step))
        assert all(len(part) <= order.most_rows(rank, world_size) for rank, part in enumerate(parts))
        seen.update(place for part in parts for place in part)
    assert seen == Counter({(shard, row): 1 for shard, rows in enumerate(order.shard_rows) for row in range(rows)})
    assert sum(order.shard_rows) == (sum(shard_rows) if sample is None else int(sample.share * sum(shard_rows) + 1e-9))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_neighbouring_places_evenly(world_size: int) -> None:
    order = EpochOrder((9,) * 64, 16, seed=0, epoch=5)
    for step in range(order.num_steps):
        share = Counter(shard % world_size for shard, _ in places(order, step))
        assert max(share.values()) - min(share.values()) <= 4


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, np.ndarray]]:
        return list(EpochOrder((30, 30), 4, seed, epoch).shard_order(1, (8, 8, 8, 6)))

    def flat(groups: list[tuple[int, np.ndarray]]) -> list[tuple[int, int]]:
        return [(group, int(row)) for group, rows in groups for row in rows]

    assert flat(order(1, 2)) == flat(order(1, 2))
    assert flat(order(1, 2)) != flat(order(1, 3))
    assert flat(order(1, 2)) != flat(order(2, 2))


@pytest.mark.parametrize("start", [0, 1, 7, 8, 9, 20, 29, 30])
def test_a_shard_entered_late_goes_on_where_the_whole_order_would(start: int) -> None:
    order = EpochOrder((30,), 4, seed=5, epoch=0)
    groups = (8, 8, 8, 6)
    whole = [(group, int(row)) for group, rows in order.shard_order(0, groups) for row in rows]
    late = [(group, int(row)) for group, rows in order.shard_order(0, groups, start) for row in rows]
    assert sorted(whole) == [(group, row) for group, size in enumerate(groups) for row in range(size)]
    assert late == whole[start:]


def test_shards_are_dealt_to_ranks() -> None:
    assert sorted(shard for rank in range(3) for shard in owned_shards(7, rank, 3)) == list(range(7))


def test_too_many_ranks_hear_what_limits_them() -> None:
    refuse_idle_ranks(num_shards=3, num_rows=3, world_size=3)
    with pytest.raises(UserError, match=r"start at most 2, .* with a larger dataset\.num_shards"):
        refuse_idle_ranks(num_shards=2, num_rows=5, world_size=3)
    with pytest.raises(UserError, match="more training rows than those") as refused:
        refuse_idle_ranks(num_shards=2, num_rows=2, world_size=3)
    assert "num_shards" not in str(refused.value)


@pytest.mark.parametrize(("shard_rows", "batch_size"), SHAPES)
@pytest.mark.parametrize("share", [1.0, 0.8, 0.29, 0.5])
def test_a_sample_holds_its_share_of_the_rows_once(shard_rows: tuple[int, ...], batch_size: int, share: float) -> None:
    sample = RowSample(share, seed=2)
    expected = int(Fraction(str(share)) * sum(shard_rows))
    counts = sample.shard_counts(shard_rows)
    assert sum(counts) == expected
    assert all(abs(count - share * rows) < 1 for count, rows in zip(counts, shard_rows, strict=True))
    for epoch in range(2):
        order = EpochOrder(shard_rows, batch_size, seed=3, epoch=epoch, sample=sample)
        seen = Counter(place for step in range(order.num_steps) for place in places(order, step))
        assert set(seen) == {(shard, index) for shard, rows in enumerate(counts) for index in range(rows)}
        assert set(seen.values()) <= {1}


def test_a_sample_is_the_same_rows_in_every_epoch_in_another_order() -> None:
    groups = (8, 8, 8, 6)

    def rows(epoch: int, seed: int, start: int = 0) -> list[tuple[int, int]]:
        order = EpochOrder((30, 30), 4, seed=5, epoch=epoch, sample=RowSample(0.5, seed))
        return [(group, int(row)) for group, found in order.shard_order(1, groups, start) for row in found]

    assert len(rows(0, 1)) == len(set(rows(0, 1))) == 15
    assert all(0 <= row < groups[group] for group, row in rows(0, 1))
    assert sorted(rows(0, 1)) == sorted(rows(1, 1))
    assert rows(0, 1) != rows(1, 1)
    assert sorted(rows(0, 1)) != sorted(rows(0, 2))
    assert rows(0, 1, start=6) == rows(0, 1)[6:]


def test_a_whole_sample_is_no_sample() -> None:
    groups = (8, 8, 8, 6)
    whole, sampled = (EpochOrder((30,), 4, 5, 0, sample) for sample in (None, RowSample(1.0, seed=9)))
    for (group, rows), (sampled_group, sampled_rows) in zip(
        whole.shard_order(0, groups), sampled.shard_order(0, groups), strict=True
    ):
        assert group == sampled_group
        assert rows.tolist() == sampled_rows.tolist()
