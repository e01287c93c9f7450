"""Ranks that stall, die or take long: who is named, who is waited for, and how the waits are measured."""

import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from csrec_dist.distributed import Group, RankFailure, Runtime
from csrec_dist.distributed.engines import ddp
from csrec_dist.distributed.failure import has_died, this_process, who_is_behind
from csrec_dist.distributed.groups import ALONE
from csrec_dist.distributed.layout import Layout
from csrec_dist.distributed.watchdog import Watch
from tests.helpers.ranks import come, run_ranks, wait_for, wait_until

TIMEOUT = 2.0  # seconds


def start() -> tuple[Runtime, Group]:
    """The runtime, and a group of all ranks whose collectives wait for that long."""
    runtime = Runtime.start(TIMEOUT / 60)
    ranks = runtime.world.ranks
    handle = dist.new_group(list(ranks), timeout=timedelta(seconds=TIMEOUT))
    return runtime, Group(ranks, runtime.rank, handle, runtime.watch)


def stalled_in_a_step(rank: int, world_size: int, given_up: str) -> str:
    runtime, group = start()
    runtime.watch.at("distill", 11 + (rank == 0))
    if rank == 1:
        with runtime.watch.data_wait():
            wait_for(given_up)
        return ""
    with pytest.raises(RankFailure) as caught:
        group.all_reduce_sum(torch.ones(3))
    come(given_up)
    assert caught.value.code == str(caught.value), "printed on stderr; the status is 1"
    return str(caught.value)


def test_a_stalled_rank_is_named_with_stage_step_and_collective(tmp_path: Path) -> None:
    said, _ = run_ranks(stalled_in_a_step, 2, str(tmp_path / "given_up"))
    assert said.startswith("csrec-dist: rank 0: stage distill, step 12: waited 2 s in all_reduce of [3] of ranks 0, 1")
    assert "Rank 1 is in stage distill, step 11, waiting for data for" in said


def killed(rank: int, world_size: int, folder: str) -> None:
    runtime, group = start()
    runtime.watch.at("teach/teacher-0", 5)
    group.all_reduce_sum(torch.ones(3))
    time.sleep(TIMEOUT / 2)  # two beats, with which rank 1 publishes its step
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RankFailure) as caught:
        group.all_reduce_sum(torch.ones(3))
    Path(folder, "said").write_text(str(caught.value))


def test_a_dead_rank_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="rank 1 died"):
        run_ranks(killed, 2, str(tmp_path))
    said = (tmp_path / "said").read_text()
    assert "rank 0: stage teach/teacher-0, step 5: waited 0 s in all_reduce of [3] of ranks 0, 1" in said
    assert "Rank 1 gives no sign of life; it was last seen in stage teach/teacher-0, step 5, computing" in said


def long_work(rank: int, world_size: int, given_up: str) -> list[Any]:
    """Rank 0 sleeps in its own work, then rank 1 computes before it comes to the barrier; then it stays away."""
    runtime, group = start()
    begin = time.monotonic()
    said = [runtime.on_main(lambda: time.sleep(2 * TIMEOUT) or "slept")]
    end = time.monotonic() + 2 * TIMEOUT
    while rank == 1 and time.monotonic() < end:
        sum(range(1000))
    group.barrier()
    said += [runtime.watch.waits.ranks, time.monotonic() - begin]
    if rank == 1:
        wait_for(given_up)
        return said
    with pytest.raises(RankFailure) as caught:
        group.barrier()
    come(given_up)
    return [*said, str(caught.value)]


def test_ranks_that_work_are_waited_for_beyond_the_timeout_and_sleepers_are_not(tmp_path: Path) -> None:
    first, second = run_ranks(long_work, 2, str(tmp_path / "given_up"))
    assert first[0] == second[0] == "slept"
    for _, waited, seconds, *_ in (first, second):
        assert 1.9 * TIMEOUT < waited < seconds - 1.9 * TIMEOUT, "its own work is no wait"
    assert f"rank 1 has not moved for {TIMEOUT:.0f} s" in first[3]
    assert "in barrier of ranks 0, 1" in first[3]


def in_turn(rank: int, world_size: int) -> list[Any]:
    """Rank 0 works for long; rank 1 waits for it, and rank 2 for rank 1."""
    runtime = Runtime.start(TIMEOUT / 60)
    pair = Group((0, 1), rank, dist.new_group([0, 1]), runtime.watch)
    if rank == 0:
        with runtime.watch.working_alone():
            time.sleep(4 * TIMEOUT)
    if rank < 2:
        pair.barrier()
    return runtime.world.gather_objects(rank)


def test_a_rank_may_wait_as_long_as_the_one_for_which_it_waits_works() -> None:
    assert run_ranks(in_turn, 3) == [[0, 1, 2]] * 3


def crosswise(rank: int, world_size: int, folder: str) -> tuple[float, str]:
    """Each of three ranks waits for the next one."""
    runtime = Runtime.start(TIMEOUT / 60)
    pairs = [(0, 1), (1, 2), (0, 2)]
    begin = time.monotonic()
    with pytest.raises(RankFailure) as caught:
        runtime.watch.meet("in a ring", pairs[rank])
    seconds = time.monotonic() - begin
    Path(folder, str(rank)).touch()  # rank 0 serves the store: it stays until all have given up
    wait_until(lambda: len(os.listdir(folder)) == world_size, 60, "the others to give up")
    return seconds, str(caught.value)


def test_ranks_that_wait_for_each_other_in_a_ring_come_to_an_end(tmp_path: Path) -> None:
    for seconds, said in run_ranks(crosswise, 3, str(tmp_path)):
        assert TIMEOUT < seconds < 10 * TIMEOUT
        assert "has not moved for 2 s" in said or "has ended" in said


def killed_in_a_barrier(rank: int, world_size: int, folder: str) -> None:
    """Rank 1 is killed where it waits for rank 0, whose own wait has half an hour."""
    runtime = Runtime.start(timeout_minutes=30)
    process = psutil.Process(runtime.world.gather_objects(os.getpid())[1])
    if rank == 1:
        threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGKILL]).start()
        runtime.world.barrier()
    process.wait()
    with pytest.raises(RankFailure) as caught:
        runtime.world.barrier()
    Path(folder, "said").write_text(str(caught.value))


def killed_on_its_way(rank: int, world_size: int, folder: str) -> None:
    """Rank 1 is killed at work, while rank 0 waits for it."""
    runtime = Runtime.start(timeout_minutes=30)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RankFailure) as caught:
        runtime.world.barrier()
    Path(folder, "said").write_text(str(caught.value))


@pytest.mark.parametrize("function", [killed_in_a_barrier, killed_on_its_way])
def test_a_killed_rank_of_the_same_machine_is_not_waited_for(function: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="rank 1 died"):
        run_ranks(function, 2, str(tmp_path))
    said = (tmp_path / "said").read_text()
    assert "in barrier of ranks 0, 1 and gave up" in said
    assert "Rank 1 gives no sign of life" in said


def test_processes_of_another_machine_are_not_taken_for_dead() -> None:
    process = this_process()
    assert not has_died(process)
    assert has_died(process | {"started": process["started"] - 60})
    assert not has_died(process | {"machine": "another", "started": 0.0})


def out_of_order(rank: int, world_size: int) -> str:
    """Rank 0 comes to a barrier of all ranks, rank 1 to an exchange of objects."""
    runtime = Runtime.start(timeout_minutes=30)
    runtime.watch.at("label" if rank else "teach")
    with pytest.raises(RankFailure) as caught:
        runtime.world.barrier() if rank == 0 else runtime.world.gather_objects(rank)
    return str(caught.value)


def test_ranks_whose_collectives_are_out_of_order_are_told_both_names() -> None:
    said = run_ranks(out_of_order, 2)
    [sentence] = [text for text in said if "out of order" in text]
    for words in ("is at barrier" if sentence == said[0] else "is at gather_objects", "stage label", "stage teach"):
        assert words in sentence


def frozen(rank: int, world_size: int, folder: str, work: str) -> None:
    """Rank 0, which serves the store, is stopped; rank 1 then waits for it, and ends it once it has given up."""
    runtime, group = start()
    group.all_reduce_sum(torch.ones(1))
    process = psutil.Process(runtime.world.gather_objects(os.getpid())[0])
    if rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        return
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED, 60, "rank 0 to stop")
    waits = {
        "meeting": runtime.world.barrier,
        "sum": lambda: group.all_reduce_sum(torch.ones(1)),
        "scheduler": lambda: runtime.scheduler(1, 1, 0).take(),
    }
    try:
        with pytest.raises(RuntimeError if work == "scheduler" else RankFailure) as caught:
            waits[work]()
        Path(folder, "said").write_text(str(caught.value))
        runtime.watch.close()
    finally:
        process.kill()


@pytest.mark.parametrize("work", ["meeting", "sum", "scheduler"])
def test_a_frozen_rank_that_serves_the_store_is_given_up(work: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="rank 0 died"):
        run_ranks(frozen, 2, str(tmp_path), work, timeout=60)
    said = (tmp_path / "said").read_text()
    assert ("has not answered for 2 s" if work == "scheduler" else "The ranks' store is silent: rank 0, or") in said


def left(rank: int, world_size: int, given_up: str) -> str:
    runtime, _ = start()
    if rank == 1:
        runtime.watch.close()
        wait_for(given_up)
        return ""
    with pytest.raises(RankFailure) as caught:
        runtime.world.gather_objects("here")
    come(given_up)
    return str(caught.value)


def test_a_rank_that_has_ended_is_not_waited_for(tmp_path: Path) -> None:
    said = run_ranks(left, 2, str(tmp_path / "given_up"))[0]
    assert "Rank 1 has ended in stage start, step 0; see what it said." in said


def waits(rank: int, world_size: int) -> tuple[float, float, float]:
    """When this rank came to a sum and when it left it, by a clock that the ranks share, and what it has waited."""
    runtime, group = start()
    group.barrier()
    before = runtime.watch.waits.ranks
    time.sleep(0.6 * rank)
    came = time.monotonic()
    group.all_reduce_sum(torch.ones(3))
    return came, time.monotonic(), runtime.watch.waits.ranks - before


def test_the_fast_rank_waits_for_the_slow_one() -> None:
    ranks = run_ranks(waits, 2)
    last = max(came for came, _, _ in ranks)
    for came, went, waited in ranks:
        assert last - came <= waited + 0.01, "until the other one came, but for the time before the wait begins"
        assert waited <= went - came


def test_a_rank_that_hangs_in_a_collective_of_a_group_is_ended_and_names_that_group(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    watch = Watch(store, 1, 4, timeout_seconds=0.4)
    with watch.collective("all_reduce of [3]", (1, 3)):
        assert ended.wait(60)
    watch.close()
    said = capfd.readouterr().err
    assert "in all_reduce of [3] of ranks 1, 3 and gave up (no answer). Rank 3 has never been heard of." in said


def test_a_slow_import_does_not_count_as_waiting_for_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []
    group = Group((0, 1), 0, object())

    def note_place(name: str) -> None:
        seen.append((name, bool(group.watch._place.waits_for)))

    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module, **_: object) -> None:
            super().__init__()
            note_place("wrap")

        @staticmethod
        def _set_params_and_buffers_to_ignore_for_model(*_: object) -> None:
            return

    monkeypatch.setattr(ddp, "import_module", note_place)
    monkeypatch.setattr(ddp, "DistributedDataParallel", Wrapper)
    ddp.DataParallel(torch.nn.Linear(2, 1), Layout(group, ALONE, group), torch.device("cpu"))
    assert seen == [("torch._dynamo", False), ("wrap", True)]


def test_other_errors_are_left_alone() -> None:
    watch = Group((0,), 0).watch
    with pytest.raises(RuntimeError, match="shapes"), watch.collective("all_reduce", (0,)):
        raise RuntimeError("shapes differ")


def note(**changes: Any) -> dict[str, Any]:
    place = {"place": "stage label, step 0", "doing": "computing", "seconds": 70.0, "waits": False}
    return {"state": "here", "beats": 1, "reason": "", **place, **changes}


def test_the_likeliest_culprits_are_named_first() -> None:
    before = {1: note(waits=True), 2: note(state="gave up"), 3: note(), 4: note(beats=7)}
    after = {1: note(waits=True, beats=2), 2: note(state="gave up"), 3: note(beats=2), 4: note(beats=7)}
    assert who_is_behind(before, after).startswith("Rank 4 gives no sign of life; it was last seen in stage label")
    after[4] = note(beats=8, state="ended")
    assert who_is_behind(before, after) == "Rank 3 is in stage label, step 0, computing for 70 s."
    after[3] = note(beats=2, state="gave up")
    assert "Rank 4 has ended" in who_is_behind(before, after)
    after[4] = note(beats=2, state="gave up")
    assert "Rank 1 waits too" in who_is_behind(before, after)
    many = {rank: {} for rank in range(1, 8)}
    assert who_is_behind(many, many).endswith("rank 4 has never been heard of; and 3 more.")
