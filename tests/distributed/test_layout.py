"""Layouts of ranks: nobody idle, nothing done twice."""

import pytest
import torch

from csrec_dist.distributed.catalog import catalog_rows
from csrec_dist.distributed.layout import catalog_groups, data_groups, label_columns, split_ranks, teaching_rounds
from csrec_dist.errors import UserError


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
def test_label_columns_cover_shards_and_members_once(num_members: int, world_size: int) -> None:
    columns = label_columns(num_members, world_size)
    assert sorted(rank for column in columns for rank in column.ranks) == list(range(world_size))
    assert sorted(shard for column in columns for shard in column.shards(13)) == list(range(13))
    for column in columns:
        held = [member for rank in range(len(column.ranks)) for member in column.members_of(rank, num_members)]
        assert sorted(held) == list(range(num_members))


def test_ranks_are_dealt_in_order() -> None:
    assert split_ranks(3, 2) == [(0,), (1, 2)]
    assert split_ranks(4, 2) == [(0, 1), (2, 3)]


@pytest.mark.parametrize("num_items", [1, 2, 7, 10, 100])
@pytest.mark.parametrize("num_parts", range(1, 8))
def test_rows_are_dealt_as_torch_chunks_them(num_items: int, num_parts: int) -> None:
    rows = catalog_rows(num_items, num_parts)
    assert [item for part in rows for item in part] == list(range(num_items))
    chunks = [chunk.tolist() for chunk in torch.arange(num_items).chunk(num_parts)]
    assert [list(part) for part in rows] == chunks + [[]] * (num_parts - len(chunks))


@pytest.mark.parametrize(("num_ranks", "size"), [(1, 1), (4, 1), (4, 2), (4, 4), (6, 3)])
def test_the_mesh_of_data_and_catalog_has_each_rank_once(num_ranks: int, size: int) -> None:
    ranks = range(10, 10 + num_ranks)
    rows, columns = catalog_groups(ranks, size), data_groups(ranks, size)
    assert sorted(rank for row in rows for rank in row) == list(ranks)
    assert all(len(row) == size for row in rows)
    assert list(zip(*columns, strict=True)) == rows


@pytest.mark.parametrize(("num_ranks", "size"), [(4, 3), (2, 4), (3, 0), (3, 2)])
def test_groups_that_do_not_divide_the_ranks_are_refused(num_ranks: int, size: int) -> None:
    for layout in (catalog_groups, data_groups):
        with pytest.raises(UserError, match=f"{size} slices of the catalog do not fit {num_ranks} ranks.*choose 1 or"):
            layout(range(num_ranks), size)


@pytest.mark.parametrize("num_members", range(1, 5))
@pytest.mark.parametrize(("world_size", "size"), [(2, 2), (4, 2), (6, 2), (6, 3), (10, 2)])
def test_catalog_groups_stay_together(num_members: int, world_size: int, size: int) -> None:
    groups = catalog_groups(range(world_size), size)
    for slots in teaching_rounds(list(range(num_members)), world_size, size):
        assert sorted(rank for slot in slots for rank in slot.ranks) == list(range(world_size))
        for slot in slots:
            assert all(set(group) <= set(slot.ranks) or not set(group) & set(slot.ranks) for group in groups)
    columns = label_columns(num_members, world_size, size)
    assert sorted(rank for column in columns for rank in column.ranks) == list(range(world_size))
    held = {
        rank: column.members_of(place, num_members) for column in columns for place, rank in enumerate(column.ranks)
    }
    for group in groups:
        assert len({held[rank] for rank in group}) == 1
    for column in columns:
        own = [held[rank] for rank in column.ranks]
        assert sorted(member for members in own for member in members) == list(range(num_members))
