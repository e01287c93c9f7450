"""Each rank publishes its position in the store; one that has waited too long names the ranks that are behind."""

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from csrec_dist.distributed.alone import Waits
from csrec_dist.distributed.failure import (
    Note,
    RankFailure,
    first_sentence,
    has_died,
    is_of_ranks,
    this_process,
    who_is_behind,
)
from csrec_dist.distributed.store import DeadlineStore, StoreSilentError
from csrec_dist.files import fingerprint

BEAT_SECONDS = 2.0
BUSY_SHARE = 0.05
"""A process that uses at least this share of one core works; one that waits uses less."""
LONGEST_PAUSE = 0.2
RANKS_READ_AT_ONCE = 16
"""Ranks whose notes a waiting rank reads between two beats; where there are more it reads more rarely."""

_INSTANCES = itertools.count()

Batch = TypeVar("Batch")


@dataclass
class Place:
    """Where this rank is. `moves` grows with every change; `alone`: the others wait without a limit while it works.

    `waits_for` are the ranks of the group that it meets there, with its own; none where it waits for nobody.
    """

    stage: str = "start"
    step: int = 0
    doing: str = "computing"
    waits_for: tuple[int, ...] = ()
    alone: bool = False
    meeting: str = ""
    since: float = 0.0
    moves: int = 0

    def __str__(self) -> str:
        return f"stage {self.stage}, step {self.step}"


class Watch:
    """This rank's place, waits and view of the others.

    Every few seconds a thread writes the place to the store, and whether the process has worked since: moved on, or
    used the processor. A rank in `meet` waits as long as the ranks that are not there work; one that waits in
    another collective is ended by the process group's timeout, and then reads who is behind. Without a store (one
    process) only waits are counted.

    NCCL returns from a collective before the ranks have met, and torch's own watchdog ends the process at the timeout.
    Where the host itself waits (`meet`, or the count of a step), the thread here speaks first.
    """

    def __init__(self, store: Any = None, rank: int = 0, world_size: int = 1, timeout_seconds: float = 1800) -> None:
        self.waits = Waits()
        self._rank, self._world = rank, tuple(range(world_size))
        self._timeout, self._interval = timeout_seconds, min(BEAT_SECONDS, timeout_seconds / 4)
        self._place = Place(since=time.monotonic())
        self._meets: dict[tuple[int, ...], int] = {}
        self._beats = self._active = self._seen_moves = 0
        self._seen_cpu, self._seen_time = time.process_time(), time.monotonic()
        self._worked = self._heard = time.monotonic()  # when this rank, and one that it waits for, last worked
        self._state, self._reason, self._process = "here", "", this_process()
        self._store: DeadlineStore | None = None
        if store is not None:
            self._store = DeadlineStore(store.clone(), timeout_seconds).prefixed(f"csrec_dist-{next(_INSTANCES)}")
            # The beat must not wait for a silent store as long as the ranks do: it also ends a rank that is stuck.
            self._beat_store = self._store.within(2 * self._interval)
            self._publish()
            self._stopped = threading.Event()
            self._thread = threading.Thread(target=self._beat, daemon=True)
            self._thread.start()

    @property
    def world_size(self) -> int:
        """Number of ranks of the run."""
        return len(self._world)

    def at(self, stage: str, step: int = 0) -> None:
        """Note that this rank has come to this step of this stage."""
        self._place.stage, self._place.step = stage, step
        self._place.moves += 1

    @contextmanager
    def data_wait(self) -> Iterator[None]:
        """The block waits for data."""
        begin = time.perf_counter()
        with self.doing("waiting for data"):
            yield
        self.waits.data += time.perf_counter() - begin

    def reading(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; the time until each arrives counts as waiting for data."""
        iterator = iter(batches)
        while True:
            with self.data_wait():
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    @contextmanager
    def working_alone(self) -> Iterator[None]:
        """The block is work of this rank that may take any time while the others wait."""
        with self.doing("working while the others wait"):
            self._place.alone = True
            try:
                yield
            finally:
                self._place.alone = False

    @contextmanager
    def collective(self, name: str, ranks: Sequence[int], timed: bool = True) -> Iterator[None]:
        """The block meets other ranks; `timed`: the host waits for them in it.

        Raises:
            RankFailure: another rank died, or was not there within the timeout.
        """
        begin = time.perf_counter()
        try:
            with self.computing(name, ranks, waits_for_ranks=True):
                yield
        finally:
            if timed:
                self.waits.ranks += time.perf_counter() - begin

    @contextmanager
    def computing(self, name: str, ranks: Sequence[int], waits_for_ranks: bool = False) -> Iterator[None]:
        """The block computes, and may meet other ranks on the way; raises as `collective` does."""
        begin = time.perf_counter()
        try:
            with self.doing(name, tuple(ranks) if waits_for_ranks else ()):
                yield
        except RuntimeError as error:
            if not is_of_ranks(error):
                raise
            raise self._failure(name, ranks, time.perf_counter() - begin, first_sentence(str(error))) from error

    def meet(self, name: str, ranks: tuple[int, ...]) -> None:
        """Wait until all `ranks` are here, for as long as those that are not here yet work.

        Raises:
            RankFailure: one of them has ended, has not worked for the timeout, or came to another meeting.
        """
        if self._store is None:
            return
        self._meets[ranks] = self._meets.get(ranks, 0) + 1
        self._place.meeting = f"meet-{fingerprint(list(ranks))}-{self._meets[ranks]}"
        store, key = self._store, self._place.meeting
        with self.collective(name, ranks):
            self._check_meeting(store, name, ranks, key)
            store.add(key, 1)
            self._await(name, ranks, key, lambda: store.add(key, 0) >= len(ranks))
            if store.add(f"{key}-left", 1) == len(ranks):  # the last one to leave tidies up: nobody reads the keys now
                for suffix in ("", "-name", "-left"):
                    store.delete_key(key + suffix)
        self._place.meeting = ""

    def _check_meeting(self, store: DeadlineStore, name: str, ranks: tuple[int, ...], key: str) -> None:
        """Refuse to meet ranks that are at another meeting: their order of collectives is not this rank's."""
        meeting = json.dumps([name, self._rank, str(self._place)])
        # The first rank to come names the meeting; the others read its name.
        first_name, rank, place = json.loads(store.compare_set(f"{key}-name", "", meeting))
        if first_name != name:
            self._say("gave up")
            raise RankFailure(
                f"csrec-dist: rank {self._rank}: {self._place}: is at {name} of ranks {_listed(ranks)}, but rank "
                f"{rank} ({place}) is at {first_name} of the same ranks. Collectives are out of order: a mistake in "
                "csrec_dist; please report it with this line."
            )

    def largest(self, name: str, ranks: tuple[int, ...], value: int) -> int:
        """Meet `ranks` as `meet` does; returns the largest of the values ≥ 0 that they pass."""
        if self._store is None:
            return value
        key = f"largest-{fingerprint(list(ranks))}-{self._meets.get(ranks, 0) + 1}"
        # Another rank may set the key between two looks at it: try again until it is this value, or one as large.
        before, largest = "", str(value)
        while (current := self._store.compare_set(key, before, largest)) != largest and int(current) < value:
            before = current
        self.meet(name, ranks)
        return int(self._store.get(key))

    def wait_until(self, name: str, ranks: tuple[int, ...], is_over: Callable[[], bool]) -> None:
        """Wait until `is_over`, as long as those of `ranks` work that do not wait under the same name.

        Raises:
            RankFailure: one of them has ended, or has not worked for the timeout.
        """
        self._place.meeting = name
        try:
            with self.collective(name, ranks):
                self._await(name, ranks, name, is_over)
        finally:
            self._place.meeting = ""

    def store(self, name: str) -> DeadlineStore:
        """A store of that name that all ranks see; in one process, a local one."""
        return DeadlineStore(dist.HashStore(), None) if self._store is None else self._store.prefixed(name)

    def close(self, reason: str = "") -> None:
        """Publish that this rank has ended, and the reason for which it failed if it did, and stop the thread."""
        self._reason = reason
        if self._store is not None and not self._stopped.is_set():
            self._stopped.set()
            self._thread.join()
            if self._state == "here":
                self._say("ended")
            self._store.close()

    @contextmanager
    def doing(self, what: str, waits_for: tuple[int, ...] = ()) -> Iterator[None]:
        """Within the block this rank is doing `what`: a rank that waits for it in vain names that in its message."""
        before = self._place.doing, self._place.waits_for
        self._set_doing(what, waits_for)
        try:
            yield
        finally:
            self._set_doing(*before)

    def _set_doing(self, what: str, waits_for: tuple[int, ...]) -> None:
        place = self._place
        # In this order, since `_beat` reads them in the other one: a new wait is never as old as what was before it.
        place.since, place.doing, place.waits_for = time.monotonic(), what, waits_for
        place.moves += 1

    def _beat(self) -> None:
        """Publish until the watch is closed, and end the process when its main thread is stuck.

        It is stuck where it hangs in a collective that should have raised by now.
        """
        while not self._stopped.wait(self._interval):
            with suppress(RuntimeError):  # a store that is silent or gone must not keep a stuck rank from ending
                self._publish()
            place, ranks, name = self._place, self._place.waits_for, self._place.doing
            seconds = time.monotonic() - place.since
            if ranks and not place.meeting and seconds > self._timeout + 5 * self._interval and self._state == "here":
                print(self._failure(name, ranks, seconds, "no answer"), file=sys.stderr, flush=True)
                os._exit(RankFailure.status)  # the main thread would never see an exception

    def _publish(self) -> None:
        place, now, cpu = self._place, time.monotonic(), time.process_time()
        # A rank that waits inside a collective polls and uses a little of the processor; one that computes uses more.
        worked = cpu - self._seen_cpu > BUSY_SHARE * (now - self._seen_time)
        if worked or place.moves != self._seen_moves:
            self._active, self._worked = self._active + 1, now
        self._seen_moves, self._seen_cpu, self._seen_time = place.moves, cpu, now
        self._beats += 1
        note = {
            "state": self._state,
            "beats": self._beats,
            "active": self._active,
            "idle": now - max(self._worked, self._heard),
            "place": str(place),
            "doing": place.doing,
            "waits": bool(place.waits_for),
            "alone": place.alone,
            "meeting": place.meeting,
            "seconds": now - place.since,
            "process": self._process,
            "reason": self._reason,
        }
        self._beat_store.set(f"rank-{self._rank}", json.dumps(note))

    def _say(self, state: str) -> None:
        """Publish this rank's state, if the store is still there."""
        self._state = state
        with suppress(RuntimeError):
            self._publish()

    def _await(self, name: str, ranks: tuple[int, ...], key: str, is_over: Callable[[], bool]) -> None:
        """Wait until `is_over`, and watch those of `ranks` that are not in the meeting `key`."""
        patience = self._interval * max(1, len(ranks) / RANKS_READ_AT_ONCE)
        pause, begin, look = 0.001, time.monotonic(), time.monotonic() + patience
        signs: dict[int, tuple[str, int, float]] = {}
        while not is_over():
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE)
            if self._store is not None and time.monotonic() > look:
                late = self._overdue(ranks, key, signs)
                if late and not is_over():  # the last one may have come, and ended, while the notes were read
                    raise self._failure(name, ranks, time.monotonic() - begin, late)
                look = time.monotonic() + patience

    def _overdue(self, ranks: tuple[int, ...], key: str, signs: dict[int, tuple[str, int, float]]) -> str:
        """What is wrong with one of the ranks, or "".

        `signs` has of each rank a count by which it is known to work, and when it last did. Of one that waits for
        others in another meeting that is when these last worked, by its own account: so it may wait as long as they
        work, and ranks that wait for each other crosswise come to an end. It ends first, and names whom it waits for.

        A rank of this machine is looked up among its processes, so that nobody waits for a killed one. One of another
        machine may only be slow to answer: it has until the timeout.
        """
        assert self._store is not None
        now = time.monotonic()
        for rank, note in self._read(self._store, ranks).items():
            if note and note["state"] != "here":
                return f"rank {rank} has ended"
            if note and has_died(note["process"]):
                return f"rank {rank} has died"
            if note and note["meeting"] == key:
                continue
            waits_elsewhere = bool(note and note["meeting"])
            # Work alone may be a system call that uses no processor: there any beat is a sign of life.
            kind = "beats" if note and (note["alone"] or waits_elsewhere) else "active"
            count = note[kind] if note else 0
            before = signs.get(rank)
            if before is None or before[:2] != (kind, count):
                worked = now - note["idle"] if waits_elsewhere else now
                # Notes are as old as a beat at most: without this ranks in a ring would seem younger at each look.
                is_same = waits_elsewhere and before and worked < before[2] + 2 * self._interval
                signs[rank] = kind, count, before[2] if before and is_same else worked
            patience = self._timeout + (3 * self._interval if waits_elsewhere else 0)
            if now - signs[rank][2] > patience:
                return f"rank {rank} has not moved for {self._timeout:.0f} s"
        self._heard = max((worked for _, _, worked in signs.values()), default=self._heard)
        return ""

    def _read(self, store: DeadlineStore, ranks: Sequence[int]) -> dict[int, Note]:
        """The other ranks' notes."""
        return {rank: json.loads(store.get(f"rank-{rank}") or "{}") for rank in ranks if rank != self._rank}

    def _failure(self, name: str, ranks: Sequence[int], seconds: float, cause: str) -> RankFailure:
        """An error that says where this rank waited, and which other ranks are behind."""
        return RankFailure(
            f"csrec-dist: rank {self._rank}: {self._place}: waited {seconds:.0f} s in {name} of ranks "
            f"{_listed(ranks)} and gave up ({cause}). {self._who_is_behind(ranks)}"
        )

    def _who_is_behind(self, ranks: Sequence[int]) -> str:
        if self._store is None:
            return "Look at what the other ranks said."
        self._say("gave up")
        try:
            before = self._read(self._beat_store, ranks)
            time.sleep(2.5 * self._interval)  # two beats of a live rank: who shows none is silent
            return who_is_behind(before, self._read(self._beat_store, ranks))
        except StoreSilentError:
            return "The ranks' store is silent: rank 0, or the launcher that serves it, is frozen or out of reach."
        except RuntimeError:
            return "The ranks' store is gone: rank 0 or its launcher has ended."


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))
