"""Members trained side by side: ranks whose member is trained take the next one, or join another training."""

import signal
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from csrec_dist.distributed import Runtime
from csrec_dist.distributed.layout import Layout, TeachingSlot
from csrec_dist.distributed.scheduler import Scheduler, Team
from csrec_dist.training import Stopped, StopSignals

LOOK_SECONDS = 2.0
"""The time between two looks at the scheduler for a signal that another team got."""


class TrainMember(Protocol):
    """Trains a member, by its index among those to train, on the ranks of a layout, from its newest checkpoint.

    `hands_over` is asked after each epoch that is not the last one, once its checkpoint is begun. If it says so, the
    training ends there, the checkpoint written, and False is returned; True when the member is trained and saved.
    """

    def __call__(
        self, member: int, layout: Layout, signals: StopSignals, hands_over: Callable[[], bool] | None
    ) -> bool: ...


def train_together(
    runtime: Runtime, slots: Sequence[TeachingSlot], num_members: int, catalog_parallel: int, train: TrainMember
) -> None:
    """Train the members 0 … num_members − 1, of which those of `slots` begin; every rank calls this.

    Raises:
        Stopped: a rank got a signal; the trainings have written their checkpoints.
    """
    scheduler = runtime.scheduler(catalog_parallel, num_members, len(slots))
    layout = runtime.layout([slot.ranks for slot in slots], catalog_parallel)
    first = next(Team(slot.member, slot.ranks) for slot in slots if runtime.rank in slot.ranks)
    with _SharedSignals(runtime, scheduler) as signals:
        _Teamwork(runtime, scheduler, catalog_parallel, signals, first, layout).work(train)
    runtime.end_teams()


class _SharedSignals(StopSignals):
    """The signals to this rank, and those to other teams that the scheduler tells of."""

    def __init__(self, runtime: Runtime, scheduler: Scheduler) -> None:
        super().__init__()
        self._world, self._scheduler, self._looked = runtime.world, scheduler, time.monotonic()

    @property
    def received(self) -> signal.Signals | None:
        """The first signal that came to a rank of any team, or None; raises RankFailure when the store has gone."""
        if self._received is None and time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            with self._world.watch.computing("looking for signals", self._world.ranks):
                self._received = self._scheduler.stopped
        return self._received


class _Teamwork:
    """This rank's way through the members."""

    def __init__(
        self,
        runtime: Runtime,
        scheduler: Scheduler,
        catalog_parallel: int,
        signals: StopSignals,
        first: Team,
        layout: Layout,
    ) -> None:
        self._runtime, self._scheduler, self._catalog_parallel = runtime, scheduler, catalog_parallel
        self._signals, self._layout = signals, layout
        self._team: Team | None = first
        self._block, self._offer = scheduler.block_of(runtime.rank), 0

    def work(self, train: TrainMember) -> None:
        """Train as long as there is something to train."""
        try:
            while (team := self._team) is not None:
                hands_over = self._hands_over if len(team.ranks) < self._runtime.world_size else None
                if train(team.member, self._layout, self._signals, hands_over):
                    self._team = self._after(team)
                if self._team and self._team.ranks != self._layout.group.ranks:
                    self._layout = self._runtime.team_layout(self._team.ranks, self._catalog_parallel)
        except Stopped as stopped:
            self._scheduler.stop(stopped.signum)
            self._runtime.world.barrier()  # the others read the signal in the store, which ends with rank 0
            raise

    def _hands_over(self) -> bool:
        """Whether ranks have joined this rank's team; then its training ends, and begins again on all of them."""
        team, group = self._team, self._layout.group
        assert team is not None
        # The leader alone decides: what two ranks read in the store a moment apart may differ.
        with group.watch.computing("looking for free ranks", group.ranks):
            if group.is_leader:
                team = self._scheduler.grow(team)
        ranks, joins = group.broadcast_object([team.ranks, team.joins])
        self._team, before = Team(team.member, tuple(ranks), joins), self._team
        return self._team != before

    def _after(self, team: Team) -> Team | None:
        """The team that this rank trains in after its team's member is trained; None when all members are.

        Where no member waits, the rank's block is offered, and waits until a team requests it.
        """
        group, following = self._layout.group, None
        if group.is_leader:
            self._scheduler.finish()
            following = self._scheduler.take()
        following = group.broadcast_object(following)
        if following is not None:
            return Team(following, team.ranks)
        self._offer += 1
        if self._scheduler.is_first(self._runtime.rank):
            self._scheduler.offer(self._block, self._offer)
        self._runtime.watch.wait_until("waiting to help", self._runtime.world.ranks, self._is_over)
        return self._scheduler.requested_by(self._block, self._offer)

    def _is_over(self) -> bool:
        """Whether the wait is over. A block that was requested joins, and its team handles its signals from then on."""
        scheduler, signum = self._scheduler, self._signals.received
        team = scheduler.requested_by(self._block, self._offer)
        if team is None and signum and scheduler.withdraw(self._block, self._offer):
            raise Stopped(signum)
        return team is not None or scheduler.num_unfinished == 0
