"""The scheduler: every member is trained once, and no rank is idle while another one trains."""

import threading
from collections.abc import Iterator

import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from csrec_dist.distributed.layout import catalog_groups, teaching_rounds
from csrec_dist.distributed.scheduler import Scheduler, Team, num_requested
from csrec_dist.distributed.store import DeadlineStore


def make_scheduler(world_size: int, num_members: int, num_dealt: int, catalog_parallel: int = 1) -> Scheduler:
    store = DeadlineStore(dist.HashStore(), None)
    return Scheduler(store, catalog_groups(range(world_size), catalog_parallel), num_members, num_dealt)


@pytest.mark.parametrize("num_blocks", range(1, 12))
@pytest.mark.parametrize("num_unfinished", range(1, 6))
def test_while_a_block_is_free_some_team_requests_it(num_blocks: int, num_unfinished: int) -> None:
    """Of teams that have all blocks but one, in any division, the smallest one requests it."""
    for smallest in range((num_blocks - 1) // num_unfinished + 1):
        assert num_requested(num_blocks, smallest, num_unfinished) >= 1
    assert num_requested(num_blocks, num_blocks, num_unfinished) == 0
    assert num_requested(num_blocks, 1, 1) == num_blocks - 1


def test_each_waiting_member_is_taken_once() -> None:
    scheduler = make_scheduler(2, 5, 2)
    assert [scheduler.take() for _ in range(5)] == [2, 3, 4, None, None]


def test_a_free_block_is_requested_by_one_team_and_learns_which() -> None:
    scheduler = make_scheduler(4, 3, 3)
    scheduler.finish()
    scheduler.offer(0, 1)
    assert scheduler.requested_by(0, 1) is None
    assert scheduler.grow(Team(2, (2, 3))) == Team(2, (2, 3)), "it has its share of two blocks"
    assert scheduler.grow(Team(1, (1,))) == Team(1, (0, 1), 1) == scheduler.requested_by(0, 1)
    assert scheduler.requested_by(0, 2) is None, "not what comes of a later offer"
    assert not scheduler.withdraw(0, 1)
    scheduler.finish()
    scheduler.offer(0, 2)
    scheduler.offer(1, 1)
    assert scheduler.withdraw(1, 1)
    assert scheduler.grow(Team(2, (2, 3))) == Team(2, (0, 2, 3), 1) == scheduler.requested_by(0, 2)


def test_a_block_is_won_by_one_of_many_threads() -> None:
    scheduler = make_scheduler(9, 8, 8)
    scheduler.finish()
    scheduler.offer(8, 1)
    teams: list[Team] = []
    threads = [threading.Thread(target=lambda k=k: teams.append(scheduler.grow(Team(k, (k,))))) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(team.ranks) for team in teams) == [1] * 7 + [2]


class Trial:
    """Ranks that go through the members, one step of one of them at a time, in an order drawn from outside."""

    def __init__(self, world_size: int, num_members: int, catalog_parallel: int, epochs: list[int]) -> None:
        slots = teaching_rounds(list(range(num_members)), world_size, catalog_parallel)[0]
        self.blocks = catalog_groups(range(world_size), catalog_parallel)
        self.scheduler = make_scheduler(world_size, num_members, len(slots), catalog_parallel)
        self.left = list(epochs)
        self.trained: list[int] = []
        self.teams = {slot.member: Team(slot.member, slot.ranks) for slot in slots}
        self.offers = [0] * len(self.blocks)
        self.free: set[int] = set()

    def step(self, member: int) -> None:
        """An epoch of a member's team; then it grows, or is done."""
        team = self.teams.pop(member)
        self.left[member] -= 1
        if self.left[member] > 0:
            self.teams[member] = self.scheduler.grow(team)
            self.welcome()
            return
        self.scheduler.finish()
        self.trained.append(member)
        following = self.scheduler.take()
        if following is not None:
            self.teams[following] = Team(following, team.ranks)
            return
        for place, ranks in enumerate(self.blocks):
            if ranks[0] in team.ranks:
                self.offers[place] += 1
                self.scheduler.offer(place, self.offers[place])
                self.free.add(place)

    def welcome(self) -> None:
        """Blocks that were requested go."""
        for place in list(self.free):
            team = self.scheduler.requested_by(place, self.offers[place])
            if team is not None:
                assert team == self.teams[team.member]
                assert set(self.blocks[place]) <= set(team.ranks)
                self.free.remove(place)


def drawn(data: st.DataObject, trial: Trial) -> Iterator[int]:
    while trial.teams:
        yield data.draw(st.sampled_from(sorted(trial.teams)))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 7), st.integers(1, 6), st.sampled_from([1, 2, 3]))
def test_whatever_the_order_all_members_are_trained_and_all_ranks_kept_busy(
    data: st.DataObject, num_blocks: int, num_members: int, catalog_parallel: int
) -> None:
    epochs = data.draw(st.lists(st.integers(1, 4), min_size=num_members, max_size=num_members))
    trial = Trial(num_blocks * catalog_parallel, num_members, catalog_parallel, epochs)
    for member in drawn(data, trial):
        before = {rank for team in trial.teams.values() for rank in team.ranks}
        trial.step(member)
        busy = [rank for team in trial.teams.values() for rank in team.ranks]
        idle = {rank for place in trial.free for rank in trial.blocks[place]}
        assert len(busy) == len(set(busy))
        assert set(busy) | idle == set(range(num_blocks * catalog_parallel))
        assert not (len(trial.teams) == 1 and member in trial.teams and idle), "the last team takes all that are free"
        assert before - set(busy) == set() or member in trial.trained
    assert sorted(trial.trained) == list(range(num_members))
    assert trial.scheduler.num_unfinished == 0
