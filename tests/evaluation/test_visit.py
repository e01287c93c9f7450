"""One visit to a tile, by torch and by the Triton kernel in its interpreter, against float64."""

import importlib.util
import math
import os

import pytest
import torch
from torch import Tensor

from csrec_dist import kernels
from csrec_dist.evaluation import logits as tiling
from csrec_dist.evaluation import visit as visiting
from csrec_dist.evaluation.logits import Logits
from csrec_dist.evaluation.sweep import SweepRequest, sweep
from csrec_dist.evaluation.visit import LANES, Visit, visit
from tests.evaluation.test_sweep import TOP_N, drawn, items_asked

IS_INTERPRETED = importlib.util.find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1"
WAYS = [
    "torch",
    pytest.param("kernel", marks=pytest.mark.skipif(not IS_INTERPRETED, reason="Triton is not installed")),
]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(visiting, "KERNELS_ARE_ON", request.param == "kernel")
    monkeypatch.setattr(kernels, "run_on", lambda device: True)
    return str(request.param)


def tile_of(num_rows: int, num_items: int, scale: float = 3.0) -> Tensor:
    """Random logits; the columns past the items are −inf."""
    tile = torch.full((num_rows, -(-num_items // LANES) * LANES), -math.inf)
    tile[:, :num_items] = scale * torch.randn(num_rows, num_items, generator=torch.Generator().manual_seed(num_items))
    return tile


def visited(tile: Tensor, num_items: int, limits: Tensor) -> Visit:
    scratch = None if visiting.has_kernel(tile.device, tile.dtype) else torch.empty_like(tile)
    return visit(tile, num_items, limits, scratch, chunks=True, log_sums=True)


@pytest.mark.parametrize(("num_rows", "num_items", "num_targets"), [(1, 1, 1), (7, 50, 2), (3, 9001, 1), (2, 4096, 0)])
def test_a_tile(way: str, num_rows: int, num_items: int, num_targets: int) -> None:
    tile = tile_of(num_rows, num_items)
    limits = tile[:, :num_targets].clone()
    found, exact = visited(tile, num_items, limits), tile[:, :num_items].double()
    torch.testing.assert_close(found.log_sums.double().logsumexp(0), exact.logsumexp(1), rtol=1e-6, atol=1e-6)
    assert torch.equal(found.below, (exact[:, None] < limits.double()[:, :, None]).sum(2))
    num_chunks = tile.shape[1] // LANES
    assert torch.equal(found.chunks, torch.stack([tile[:, k::num_chunks].amax(1) for k in range(num_chunks)], dim=1))


def test_ranks_alone_need_no_chunks_and_are_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch: pieces of two rows, the last of one; a hidden item is corrected without chunks."""
    tile = tile_of(7, 50)
    monkeypatch.setattr(visiting, "KERNELS_ARE_ON", False)
    monkeypatch.setattr(visiting, "COMPARED_BYTES", 2 * 50 * tile.itemsize)
    limits, exact = tile[:, :2].clone(), tile[:, :50].double()
    found = visit(tile, 50, limits, torch.empty_like(tile), chunks=False, log_sums=False)
    assert found.chunks.shape == (7, 0)
    assert torch.equal(found.below, (exact[:, None] < limits.double()[:, :, None]).sum(2))
    rows, columns = torch.tensor([0, 6]), exact[[0, 6]].argmax(1)
    found.hide(tile, rows, columns, limits)
    exact[rows, columns] = -math.inf
    assert torch.equal(found.below, (exact[:, None] < limits.double()[:, :, None]).sum(2))


def test_large_logits_and_rows_of_nothing(way: str) -> None:
    tile = tile_of(4, 5000, scale=1e4)
    tile[1], tile[2, 4000:] = -math.inf, -math.inf
    found = visited(tile, 5000, tile[:, 4999:5000].clone())
    torch.testing.assert_close(found.log_sums.double().logsumexp(0), tile.double().logsumexp(1), rtol=1e-6, atol=1e-6)
    assert found.below[1:3].tolist() == [[0], [0]]


def test_nan_is_below_nothing_and_its_chunk_is_looked_at(way: str) -> None:
    tile = tile_of(3, 100)
    tile[0, 17] = math.nan
    found = visited(tile, 100, torch.full((3, 1), math.inf))
    assert found.below[:, 0].tolist() == [99, 100, 100]
    assert found.log_sums.isnan().any(0).tolist() == [True, False, False]
    assert found.chunks[0, 17 % found.chunks.shape[1]] == math.inf


@pytest.mark.parametrize("num_hidden", [1, 60], ids=["few", "many"])
def test_hidden_items_are_as_if_they_were_never_there(way: str, num_hidden: int) -> None:
    """Both ways to the maxima: of the chunks that changed, and of all of them again."""
    tile = tile_of(5, 200)
    limits = torch.stack([tile[:, 30], torch.full((5,), -math.inf)], dim=1)
    found = visited(tile, 200, limits)
    order = torch.rand(5, 200, generator=torch.Generator().manual_seed(1)).argsort(1)[:, :num_hidden]
    rows = torch.arange(5).repeat_interleave(num_hidden)
    found.hide(tile, rows, order.flatten(), limits)
    assert tile.isneginf().sum() == 5 * (num_hidden + tile.shape[1] - 200)
    again = visited(tile, 200, limits)
    assert torch.equal(found.below, again.below)
    assert torch.equal(found.chunks, again.chunks)


@pytest.mark.skipif(not IS_INTERPRETED, reason="Triton is not installed")
@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("has_nan", [False, True])
def test_a_sweep_by_the_kernel_finds_what_one_by_torch_finds(
    monkeypatch: pytest.MonkeyPatch, hide: bool, has_nan: bool
) -> None:
    """NaN of some items, so many that they could take all places of the first bound, stand in nobody's list."""
    monkeypatch.setitem(tiling.BLOCK_ROWS, "cpu", 30)
    for kind in ("cpu", "kernel"):
        monkeypatch.setitem(tiling.TILE_BYTES, kind, 30 * 512 * 4)
    monkeypatch.setattr(kernels, "run_on", lambda device: True)
    states, table = drawn(1)
    if has_nan:
        table.weight[::9] = math.nan
    targets, seen = items_asked()
    asked = SweepRequest(targets, TOP_N, seen if hide else None, log_sums=True, top=True)
    by_torch = sweep(Logits([states], [table]), asked)
    monkeypatch.setattr(visiting, "KERNELS_ARE_ON", True)
    for one, other in zip(sweep(Logits([states], [table]), asked), by_torch, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6, equal_nan=True)
    if has_nan:
        assert by_torch.scores.isfinite().all()
        assert not (by_torch.items % 9 == 1).any()
