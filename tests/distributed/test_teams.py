"""Groups of all ranks after groups of some: whatever order members finish in, all ranks label together afterwards."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from csrec_dist.distributed import Runtime
from csrec_dist.distributed.layout import Layout, label_columns, teaching_rounds
from csrec_dist.runs.stages.elastic import train_together
from csrec_dist.training import StopSignals
from tests.helpers.ranks import run_ranks

LAYOUTS = [(3, 2, 1), (5, 3, 1), (8, 4, 1), (6, 3, 2)]
"""Ranks, members, and ranks that share a catalog."""


class Trainings:
    """Trainings of no model: epochs of one sum over the team, until it is the member's turn to end."""

    def __init__(self, runtime: Runtime, order: tuple[int, ...], name: str) -> None:
        self._order, self._rank = order, runtime.rank
        self._ended = runtime.watch.store(name)
        self.teams: list[tuple[int, ...]] = []

    def train(self, member: int, layout: Layout, signals: StopSignals, hands_over: Callable[[], bool] | None) -> bool:
        """Epochs until the members before this one in the order have ended; False when the team grows."""
        group = layout.group
        self.teams.append(group.ranks)
        while True:
            expected = torch.tensor(float(sum(group.ranks)))
            torch.testing.assert_close(group.all_reduce_sum(torch.tensor(float(self._rank))), expected)
            is_due = bool(group.broadcast_object(self._ended.add("ended", 0) >= self._order.index(member)))
            if is_due:
                break
            if hands_over and hands_over():
                return False
        if group.is_leader:
            self._ended.add("ended", 1)
        return True


def every_order(rank: int, world_size: int, num_members: int, catalog_parallel: int) -> list[list[tuple[int, ...]]]:
    """Teach in every order of ending, and after each make the groups of labelling; the teams that this rank was in."""
    teams = []
    for order in some(itertools.permutations(range(num_members))):
        runtime = Runtime.start()  # which knows no group of the orders before
        trainings = Trainings(runtime, order, f"order-{order}")
        slots = teaching_rounds(list(range(num_members)), world_size, catalog_parallel)[0]
        train_together(runtime, slots, num_members, catalog_parallel, trainings.train)
        columns = label_columns(num_members, world_size, catalog_parallel)
        group = runtime.join_group([column.ranks for column in columns])
        assert group.gather_objects(rank) == list(group.ranks)
        student = runtime.layout([runtime.world.ranks], catalog_parallel)
        assert student.data.gather_objects(rank) == list(student.data.ranks)
        teams.append(trainings.teams)
        runtime.watch.close()
    return teams


def some(orders: Iterator[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """All orders of up to three members; of four every fifth."""
    every = list(orders)
    return every if len(every) < 24 else every[::5]


@pytest.mark.parametrize(("world_size", "num_members", "catalog_parallel"), LAYOUTS)
def test_all_ranks_label_together_whatever_order_members_end_in(
    world_size: int, num_members: int, catalog_parallel: int
) -> None:
    teams = run_ranks(every_order, world_size, num_members, catalog_parallel)
    sizes = {len(ranks) for of_rank in teams for of_order in of_rank for ranks in of_order}
    assert max(sizes) > min(sizes), "ranks have joined other teams"


def label_group_like_a_team(rank: int, world_size: int) -> list[Any]:
    """Ranks 0, 1 and 2 train together by themselves; then all ranks want that group, and one that all know."""
    runtime = Runtime.start()
    runtime.layout([(0,), (1, 2), (3, 4)], 1)
    if rank < 3:
        runtime.team_layout((0, 1, 2), 1)
    column = (0, 1, 2) if rank < 3 else (3, 4)
    return runtime.join_group([(0, 1, 2), (3, 4)]).gather_objects(rank) if rank in column else []


def test_a_group_that_all_ranks_make_may_have_the_ranks_of_a_team() -> None:
    assert run_ranks(label_group_like_a_team, 5) == [[0, 1, 2]] * 3 + [[3, 4]] * 2


def exists(handle: Any) -> bool:
    """Whether torch still knows a group."""
    try:
        return bool(dist.get_process_group_ranks(handle))
    except KeyError:
        return False


def the_same_team_twice(rank: int, world_size: int) -> tuple[list[list[int]], list[bool]]:
    """What the team's ranks said, and which of the groups that this rank has made are left."""
    runtime, said = Runtime.start(), []
    runtime.layout([(0,), (1,), (2,)], 1)
    made, new_group = [], dist.new_group

    def noted(*arguments: Any, **named: Any) -> Any:
        made.append(new_group(*arguments, **named))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "new_group", noted)
        for _ in range(3):
            if rank > 0:
                said.append(runtime.team_layout((1, 2), 1).group.gather_objects(rank))
            runtime.end_teams()
    return said, [exists(handle) for handle in made]


def test_teams_that_ended_leave_no_group_and_can_come_again() -> None:
    alone, *team = run_ranks(the_same_team_twice, 3)
    assert alone == ([], [])
    for said, left in team:
        assert said == [[1, 2]] * 3
        assert len(left) == 3
        assert not any(left)


def many_teams(rank: int, world_size: int) -> list[tuple[int, int]]:
    """Threads and open files of this rank after 10 and after 500 rounds, which make and drop two teams each."""
    counts, process, runtime = [], psutil.Process(), Runtime.start()
    runtime.layout([(0,), (1,), (2,)], 1)
    for number in range(1, 501):
        for ranks in ((0, 1), (0, 2)):
            if rank in ranks:
                group = runtime.team_layout(ranks, 1).group
                assert float(group.all_reduce_sum(torch.tensor(float(rank)))) == sum(ranks)
        runtime.end_teams()
        if number in (10, 500):
            counts.append((process.num_threads(), process.num_fds()))
    return counts


@pytest.mark.long
def test_a_thousand_teams_leave_nothing_behind() -> None:
    for before, after in run_ranks(many_teams, 3, timeout=600):
        assert all(now - then <= 2 for then, now in zip(before, after, strict=True))
