"""Rows of all ranks below each other: values, gradients, and a contrastive loss that sees the global batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from csrec_dist import models
from csrec_dist.data.batches import to_batch
from csrec_dist.data.dataset import Dataset
from csrec_dist.distributed import Group, Runtime
from csrec_dist.distributed.engines import DataParallel
from csrec_dist.training import TrainStep
from csrec_dist.training.step import one_hot
from tests.helpers.ranks import run_ranks

NUM_ROWS = (2, 0, 3)


def rows_of(rank: int) -> torch.Tensor:
    return torch.arange(NUM_ROWS[rank] * 4, dtype=torch.float64).view(-1, 4) + 100 * rank


def gather(rank: int, world_size: int) -> dict[str, Any]:
    """Gather, and differentiate Σ (rank + 1) · weight · row with weights 1, 2, … of the gathered rows."""
    world = Group(tuple(range(world_size)), rank, dist.group.WORLD if world_size > 1 else None)
    rows = rows_of(rank).requires_grad_()
    gathered, own = world.gather_rows(rows)
    weights = torch.arange(1, len(gathered) + 1, dtype=torch.float64).unsqueeze(1)
    (gathered * weights * (rank + 1)).sum().backward()
    assert rows.grad is not None
    return {"gathered": gathered.tolist(), "own": [own.start, own.stop], "gradient": rows.grad.tolist()}


def check_gathered(results: list[dict[str, Any]]) -> None:
    expected = torch.cat([rows_of(rank) for rank in range(len(results))]).tolist()
    factor = sum(range(1, len(results) + 1))
    start = 0
    for rank, found in enumerate(results):
        stop = start + NUM_ROWS[rank]
        assert found["gathered"] == expected
        assert found["own"] == [start, stop]
        assert found["gradient"] == [[factor * (row + 1.0)] * 4 for row in range(start, stop)]
        start = stop


def test_one_rank_has_all_rows() -> None:
    check_gathered([gather(0, 1)])


def gradients(rank: int, world_size: int, dataset_folder: str, batch_size: int, weight: float = 10) -> dict[str, Any]:
    """Loss and gradients of one global batch with CL4SRec, computed from this rank's share."""
    runtime = Runtime.start()
    dataset = Dataset(dataset_folder)
    keys = {"width": 16, "dropout": 0, "contrast_weight": weight}
    model = models.build(
        models.config_class("cl4srec").model_validate(keys), dataset.num_items, dataset.window - 1, seed=0
    )
    with torch.no_grad():
        model.item_table.weight.mul_(20)
    layout = runtime.layout([runtime.world.ranks], 1)
    engine = DataParallel(TrainStep(model, one_hot, runtime.world), layout, runtime.device)
    stream = dataset.stream("train", batch_size=batch_size, epoch=0, seed=1, rank=rank, world_size=world_size)
    batch = to_batch(next(iter(stream)))
    loss = engine.forward(model.inputs(batch, seed=3), None)
    engine.backward(loss.sum * (world_size / runtime.world.all_reduce_sum(loss.count.clone())))
    sums = runtime.world.all_reduce_sum(torch.stack([loss.sum.detach(), loss.cross_entropy, loss.count])).tolist()
    grads = {name: p.grad.tolist() for name, p in model.named_parameters() if p.grad is not None}
    return {"sums": sums, "windows": int((batch.lengths > 0).sum()), "gradients": grads}


def on_ranks(rank: int, world_size: int, dataset_folder: str) -> list[dict[str, Any]]:
    """All that is asked of several ranks, from one start: gathered rows, and gradients with 7 and with 2 windows."""
    return [gather(rank, world_size), *(gradients(rank, world_size, dataset_folder, size) for size in (7, 2))]


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_ranks_have_the_rows_and_the_contrast_of_one(small_dataset: Path, world_size: int) -> None:
    gathered, *found = zip(*run_ranks(on_ranks, world_size, str(small_dataset)), strict=True)
    check_gathered(list(gathered))
    for results, num_windows in zip(found, (7, 2), strict=True):
        assert sum(result["windows"] for result in results) == num_windows
        alone = gradients(0, 1, str(small_dataset), num_windows)
        for result in results:
            assert result["sums"] == pytest.approx(alone["sums"], rel=1e-5)
            assert result["gradients"].keys() == alone["gradients"].keys()
            for name, gradient in alone["gradients"].items():
                torch.testing.assert_close(
                    torch.tensor(result["gradients"][name]), torch.tensor(gradient), rtol=1e-4, atol=1e-5
                )
    if world_size == 3:
        assert any(result["windows"] == 0 for result in found[1])


def test_the_contrast_shows_in_the_gradients(small_dataset: Path) -> None:
    with_it, without = (gradients(0, 1, str(small_dataset), 7, weight) for weight in (10.0, 0.0))
    difference = torch.tensor(with_it["gradients"]["positions"]) - torch.tensor(without["gradients"]["positions"])
    assert difference.abs().max() > 1e-2
