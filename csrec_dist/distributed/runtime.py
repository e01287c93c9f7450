"""The processes of a run: started by a launcher, checked against what was asked for, wrapped for data parallelism."""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist

from csrec_dist.distributed.alone import LAUNCH_HINT, LAUNCHER_ENGINES, Waits, check_launch
from csrec_dist.distributed.groups import Group
from csrec_dist.distributed.layout import Layout, catalog_groups, data_groups
from csrec_dist.distributed.scheduler import Scheduler
from csrec_dist.distributed.watchdog import Watch
from csrec_dist.errors import StorageError, UserError
from csrec_dist.process_state import variables

NCCL_GRACE = timedelta(minutes=1)
"""torch ends a process at NCCL's timeout without naming the culprit; the watchdog speaks this much earlier."""


class Runtime:
    """This process among all processes of the run: its rank, device and groups. One process is world size 1."""

    _last_team_name: ClassVar[int] = 0
    """Largest number in a name of `_new_team`: the store that keeps the names outlives a runtime."""

    def __init__(self, device: torch.device, rank: int, world_size: int, timeout: timedelta) -> None:
        self.device, self.rank, self.world_size = device, rank, world_size
        handle = dist.group.WORLD if self.world_size > 1 else None
        store = dist.distributed_c10d._get_default_store() if handle else None
        self.watch = Watch(store, self.rank, self.world_size, timeout.total_seconds())
        self.world = Group(tuple(range(self.world_size)), self.rank, handle, self.watch)
        self._timeout = _group_timeout(timeout)
        self._num_schedulers = 0
        # What all ranks know must decide whether they make a group together. So groups that a few ranks make for
        # themselves are kept apart.
        self._groups: dict[tuple[int, ...], Any] = {self.world.ranks: handle}
        self._teams: dict[tuple[int, ...], Any] = {}

    @classmethod
    def start(cls, timeout_minutes: float = 30, engine: str = "ddp", precision: str = "fp32") -> Self:
        """Join the processes that the launcher started. `timeout_minutes`: how long a rank waits for a silent one.

        The engines are started by csrec_dist itself, so accelerate is not told of any.

        Raises UserError when the launcher and what it started disagree, or it was started for other than the engine
        and precision given (see `check_launch`).
        """
        check_launch(os.environ, engine, precision)
        timeout = timedelta(minutes=timeout_minutes)
        # Importing accelerate takes a second, which models and losses, that read slices and groups, do not need.
        from accelerate import PartialState

        # An Accelerator would fix the precision of every other one that this process makes later, in a notebook too.
        with variables({f"ACCELERATE_USE_{name}": None for name in LAUNCHER_ENGINES}):
            state = PartialState(cpu=not torch.cuda.is_available(), timeout=_group_timeout(timeout))
        runtime = cls(state.device, state.process_index, state.num_processes, timeout)
        expected = int(os.environ.get("WORLD_SIZE", "1"))
        if runtime.world_size != expected:
            raise UserError(
                f"The launcher says {expected} processes, but this process sees {runtime.world_size}. {LAUNCH_HINT}"
            )
        return runtime

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0 of the run."""
        return self.rank == 0

    def begin(self, stage: str) -> Waits:
        """This rank begins a stage; returns its waits so far, which go on growing."""
        self.watch.at(stage)
        return self.watch.waits

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all ranks, on every rank."""
        return self.world.gather_objects(value)

    @property
    def node(self) -> int:
        """The first rank of this rank's node, as the launcher counts: what tells nodes apart."""
        return self.rank - int(os.environ.get("LOCAL_RANK", "0"))

    def join_group(self, parts: Sequence[tuple[int, ...]]) -> Group:
        """Make a process group of each part (every rank calls this with the same parts); return this rank's.

        The parts cover all ranks without overlap. A group that was made before is used again.
        """
        if any(ranks not in self._groups for ranks in parts):
            self.watch.meet("new_group", self.world.ranks)
        for ranks in parts:
            # torch makes a group in a collective of all ranks, also of those that are not in it.
            if ranks not in self._groups:
                alone = len(ranks) == 1
                self._groups[ranks] = None if alone else self._new_group(ranks, self.world.ranks)
        return self._group_of(parts)

    def layout(self, parts: Sequence[tuple[int, ...]], catalog_parallel: int) -> Layout:
        """This rank's layout, where the ranks of each part train a model; every rank calls this with the same parts."""
        shared = [ranks for part in parts for ranks in catalog_groups(part, catalog_parallel)]
        group, catalog = self.join_group(parts), self.join_group(shared)
        if catalog_parallel == 1:
            return Layout(group, catalog, group)
        slices = [ranks for part in parts for ranks in data_groups(part, catalog_parallel)]
        return Layout(group, catalog, self.join_group(slices))

    def team_layout(self, ranks: tuple[int, ...], catalog_parallel: int) -> Layout:
        """This rank's layout among `ranks`, which train a model together; only they call this.

        Their catalog groups are those of the ranks' first layout, which all ranks made.
        """
        group = self._join_team(ranks)
        catalog = self._group_of(catalog_groups(ranks, catalog_parallel))
        if catalog_parallel == 1:
            return Layout(group, catalog, group)
        data = next(part for part in data_groups(ranks, catalog_parallel) if self.rank in part)
        return Layout(group, catalog, self._join_team(data))

    def scheduler(self, catalog_parallel: int, num_members: int, num_dealt: int) -> Scheduler:
        """A new scheduler for members that are trained side by side; every rank calls this with the same numbers."""
        self._num_schedulers += 1
        blocks = catalog_groups(self.world.ranks, catalog_parallel)
        return Scheduler(self.watch.store(f"scheduler-{self._num_schedulers}"), blocks, num_members, num_dealt)

    def _group_of(self, parts: Sequence[tuple[int, ...]]) -> Group:
        """This rank's group among parts that all ranks have made."""
        ranks = next(part for part in parts if self.rank in part)
        return self._group(ranks, self._groups[ranks])

    def _group(self, ranks: tuple[int, ...], handle: Any) -> Group:
        return Group(ranks, ranks.index(self.rank), handle, self.watch)

    def _join_team(self, ranks: tuple[int, ...]) -> Group:
        """The group of `ranks`: one that all ranks know, one of this team from before, or a new one."""
        handles = self._groups if ranks in self._groups else self._teams
        if ranks not in handles:
            handles[ranks] = None if len(ranks) == 1 else self._new_team(ranks)
        return self._group(ranks, handles[ranks])

    def _new_team(self, ranks: tuple[int, ...]) -> Any:
        """A process group that its members make without the other ranks, under a name that was never used before.

        torch names such a group after its ranks and the number of groups that a rank knows. Members that know
        different numbers would wait for each other for ever, and a name used twice would find the first group's
        addresses in the store. So the members agree on a number that is new to all of them, and each has torch count
        up to it while the group is made.
        """
        names: dict[Any, Any] = dist.distributed_c10d._world.pg_names
        number = self.watch.largest("the making of a team", ranks, max(len(names), self._last_team_name + 1))
        placeholders = {object(): f"placeholder {k}" for k in range(number - len(names))}
        names.update(placeholders)
        try:
            team = self._new_group(ranks, ranks, alone=True)
        finally:
            for key in placeholders:
                del names[key]
        Runtime._last_team_name = number
        return team

    def _new_group(self, ranks: tuple[int, ...], makers: tuple[int, ...], alone: bool = False) -> Any:
        """A process group of `ranks`, which `makers` make: all ranks or, `alone`, some by themselves."""
        with self.watch.collective("new_group", makers):
            return dist.new_group(list(ranks), timeout=self._timeout, use_local_synchronization=alone)

    def end_teams(self) -> None:
        """Forget the groups of teams, once no rank uses them; every rank calls this."""
        self.world.barrier()
        for handle in self._teams.values():
            if handle is not None:
                dist.destroy_process_group(handle)
        self._teams.clear()

    def on_main(self, work: Callable[[], Any]) -> Any:
        """Do `work` on rank 0 while the others wait, however long; all return its JSON value, or raise its error."""

        def alone() -> Any:
            with self.watch.working_alone():
                return work()

        return self.world.on_leader(alone)

    def leave(self) -> None:
        """End this runtime: its groups are destroyed, and the process group stays for the next runtime."""
        self.watch.close()
        for handle in [*self._groups.values(), *self._teams.values()]:
            if handle is not None and handle is not self.world.handle:
                dist.destroy_process_group(handle)
        self._groups, self._teams = {}, {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self.close(str(error) if isinstance(error, UserError | StorageError) else "")

    def close(self, reason: str = "") -> None:
        """Leave the process group; ranks that wait for this one give the `reason` for which it failed."""
        self.watch.close(reason)
        if dist.is_initialized():
            dist.destroy_process_group()


def _group_timeout(timeout: timedelta) -> timedelta:
    return timeout + NCCL_GRACE if torch.cuda.is_available() else timeout
