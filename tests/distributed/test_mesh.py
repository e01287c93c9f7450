"""Layouts of ranks: nobody idle, nothing done twice."""

import pytest

from csrec_dist.distributed.mesh import label_columns, split_ranks, teaching_rounds


@pytest.mark.parametrize("num_members", range(1, 9))
@pytest.mark.parametrize("world_size", range(1, 10))
def test_every_member_is_trained_once_and_every_rank_is_used_in_each_round(num_members: int, world_size: int) -> None:
    rounds = teaching_rounds(list(range(num_members)), world_size)
    assert sorted(slot.member for slots in rounds for slot in slots) == list(range(num_members))
    for slots in rounds:
        assert sorted(rank for slot in slots for rank in slot.ranks) == list(range(world_size))
        sizes = [len(slot.ranks) for slot in slots]
        assert max(sizes) - min(sizes) <= 1
    assert len(rounds) == -(-num_members // world_size)


@pytest.mark.parametrize("num_members", range(1, 6))
@pytest.mark.parametrize("world_size", range(1, 8))
def test_label_columns_cover_lanes_and_members_once(num_members: int, world_size: int) -> None:
    columns = label_columns(num_members, world_size)
    assert sorted(rank for column in columns for rank in column.ranks) == list(range(world_size))
    assert sorted(lane for column in columns for lane in column.lanes(13)) == list(range(13))
    for column in columns:
        held = [member for rank in range(len(column.ranks)) for member in column.members_of(rank, num_members)]
        assert sorted(held) == list(range(num_members))


def test_ranks_are_dealt_in_order() -> None:
    assert split_ranks(3, 2) == [(0,), (1, 2)]
    assert split_ranks(4, 2) == [(0, 1), (2, 3)]
