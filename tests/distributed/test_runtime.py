"""Groups, collectives and launch checks on real ranks."""

import os
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import DistributedType, PartialState
from torch import nn

from csrec_dist.distributed import Runtime
from csrec_dist.distributed.alone import check_launch
from csrec_dist.distributed.engines import DataParallel
from csrec_dist.errors import StorageError, UserError, is_of_all, is_shared
from tests.helpers.ranks import run_ranks


def collectives(rank: int, world_size: int) -> dict[str, Any]:
    runtime = Runtime.start()
    world = runtime.world
    parts = [(0,), tuple(range(1, world_size))] if world_size > 1 else [(0,)]
    group = runtime.join_group(parts)
    big = torch.arange(2.0) + 10 * rank
    return {
        "rank": (runtime.rank, runtime.world_size),
        "sum": world.all_reduce_sum(big.clone()).tolist(),
        "gather": world.all_gather(big).tolist(),
        "scatter": world.reduce_scatter_sum(torch.full((world_size, 2), float(rank + 1))).tolist(),
        "objects": world.gather_objects({"rank": rank, "text": "é" * rank}),
        "leader": world.broadcast_object(f"from {rank}"),
        "group": (group.ranks, group.rank, group.gather_objects(rank)),
    }


def errors(rank: int, world_size: int) -> list[tuple[str, bool, bool]]:
    """What this rank raises where a rank of a group, or of all, cannot do its work: type, shared, of all."""
    runtime, raised = Runtime.start(), []
    group = runtime.join_group([(0, 1), (2, 3)])
    for ranks in (group, runtime.world):
        for kind in (UserError, StorageError):

            def fail(kind: type[Exception] = kind) -> None:
                if rank in (1, 2):
                    raise kind("it cannot be done")

            with pytest.raises((UserError, StorageError), match="it cannot be done") as met:
                ranks.on_all(fail)
            raised.append((type(met.value).__name__, is_shared(met.value), is_of_all(met.value)))
    return raised


def test_an_error_of_a_group_is_none_of_all_ranks_and_one_rank_says_it() -> None:
    found = run_ranks(errors, 4)
    of_all = [("SharedUserError", True, True), ("StorageError", True, True)]
    of_group = [("SharedUserError", True, False), ("StorageError", True, False)]
    says_it = [("UserError", False, False), ("StorageError", False, False)]
    for rank, raised in enumerate(found):
        assert raised == [*(says_it if rank == 2 else of_group), *of_all], rank


@pytest.mark.parametrize("world_size", [1, 3])
def test_collectives(world_size: int) -> None:
    found = run_ranks(collectives, world_size)
    ranks = range(world_size)
    for rank, result in enumerate(found):
        assert result["rank"] == (rank, world_size)
        assert result["sum"] == [sum(10.0 * r for r in ranks), sum(10.0 * r + 1 for r in ranks)]
        assert result["gather"] == [[10.0 * r, 10.0 * r + 1] for r in ranks]
        assert result["scatter"] == [float(sum(r + 1 for r in ranks))] * 2
        assert result["objects"] == [{"rank": r, "text": "é" * r} for r in ranks]
        assert result["leader"] == "from 0"
        own = (0,) if rank == 0 else tuple(range(1, world_size))
        assert result["group"] == (own, own.index(rank), list(own))


def teams(rank: int, world_size: int) -> list[Any]:
    """Ranks 0 and 1 make a group, then with rank 2, which knows one group less; then slices of the catalog."""
    runtime = Runtime.start()
    runtime.layout([(place,) for place in range(world_size)], 1)
    mine = [ranks for ranks in [(0, 1), (0, 1, 2)] if rank in ranks]
    found = [runtime.team_layout(ranks, 1).group.gather_objects(rank) for ranks in mine]
    runtime.layout([(0, 1), (2, 3)], 2)
    layout = runtime.team_layout((0, 1, 2, 3), 2)
    return [*found, layout.catalog.gather_objects(rank), layout.data.gather_objects(rank)]


def test_ranks_make_groups_without_the_others() -> None:
    first, second, third, fourth = run_ranks(teams, 4)
    assert first == [[0, 1], [0, 1, 2], [0, 1], [0, 2]]
    assert second == [[0, 1], [0, 1, 2], [0, 1], [1, 3]]
    assert third == [[0, 1, 2], [2, 3], [0, 2]]
    assert fourth == [[2, 3], [1, 3]]


def error_on_main(rank: int, world_size: int) -> str:
    def work() -> None:
        raise UserError("the log is empty")

    try:
        Runtime.start().on_main(work)
    except UserError as error:
        return str(error)
    return "nothing"


def test_an_error_on_the_main_rank_reaches_all() -> None:
    assert run_ranks(error_on_main, 2) == ["the log is empty"] * 2


def wrapped_members(rank: int, world_size: int) -> tuple[float, float]:
    runtime = Runtime.start()
    layout = runtime.layout([(0,), (1, 2)], 1)
    torch.manual_seed(5 if rank == 0 else 6)
    module = nn.Linear(3, 1, bias=False)
    engine = DataParallel(module, layout, runtime.device)
    engine.backward(engine.forward(torch.full((1, 3), float(rank))).sum())
    assert module.weight.grad is not None
    return float(module.weight.sum()), float(module.weight.grad.mean())


def test_wrapping_keeps_members_apart_and_averages_within_a_member() -> None:
    first, second, third = run_ranks(wrapped_members, 3)
    assert first[0] != second[0] == third[0]
    assert (first[1], second[1], third[1]) == (0.0, 1.5, 1.5)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "started one"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "RANK": "0"}, "DEEPSPEED"),
        ({"ACCELERATE_USE_FSDP": "true", "RANK": "0"}, "Set distributed.engine to fsdp, or start it without FSDP"),
    ],
)
def test_wrong_launches_are_refused_with_what_to_do(environ: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        check_launch(environ)
    assert "accelerate launch --multi_gpu" in str(caught.value)


def test_a_precision_of_the_launcher_alone_is_refused() -> None:
    for asked, precision in (("bf16", "fp32"), ("fp16", "bf16")):
        with pytest.raises(UserError, match=f"mixed precision {asked}, but training.precision.* is {precision}"):
            check_launch({"ACCELERATE_MIXED_PRECISION": asked}, precision=precision)
    for asked in ("no", "bf16"):
        check_launch({"ACCELERATE_MIXED_PRECISION": asked}, precision="bf16")


def test_a_launcher_started_for_the_engine_of_the_run_passes() -> None:
    check_launch({"ACCELERATE_USE_DEEPSPEED": "true", "RANK": "0"}, "deepspeed")
    check_launch({"ACCELERATE_USE_FSDP": "true", "RANK": "0"}, "fsdp")
    with pytest.raises(UserError, match=r"started for FSDP, but distributed.engine is deepspeed"):
        check_launch({"ACCELERATE_USE_FSDP": "true", "RANK": "0"}, "deepspeed")


def test_accelerate_is_not_told_of_an_engine_that_csrec_dist_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert Runtime.start(engine="deepspeed").world_size == 1
    assert PartialState().distributed_type == DistributedType.NO
    assert os.environ["ACCELERATE_USE_DEEPSPEED"] == "true"


def accelerator_of_the_user(rank: int, world_size: int) -> tuple[str, int]:
    Runtime.start().leave()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    return accelerator.mixed_precision, accelerator.num_processes


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_user_may_still_make_any_accelerator(world_size: int) -> None:
    assert run_ranks(accelerator_of_the_user, world_size) == [("bf16", world_size)] * world_size


def runtimes_in_turn(rank: int, world_size: int) -> list[float]:
    """Runtimes one after the other in one process group: groups, meetings and schedulers begin anew."""
    found = []
    for turn in range(3):
        runtime = Runtime.start()
        layout = runtime.layout([tuple(range(world_size))], world_size)
        scheduler = runtime.scheduler(1, 5, 2)
        total = layout.catalog.all_reduce_sum(torch.tensor(float(rank + turn)))
        taken = runtime.gather(scheduler.take())
        found.append((float(total), sorted(taken), runtime.on_main(lambda turn=turn: turn)))
        runtime.leave()
    return found


def test_runtimes_may_follow_one_another() -> None:
    expected = [[turn * 3 + 3.0, [2, 3, 4], turn] for turn in range(3)]
    assert [[list(each) for each in found] for found in run_ranks(runtimes_in_turn, 3)] == [expected] * 3


def test_right_launches_pass() -> None:
    check_launch({})
    check_launch({"ACCELERATE_MIXED_PRECISION": "no"})
    check_launch({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "RANK": "1", "WORLD_SIZE": "2"})
