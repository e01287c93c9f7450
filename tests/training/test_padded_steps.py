"""Padding a step to a fixed size changes no loss and no gradient: every model, every loss, every kind of labels."""

from typing import Any

import pytest
import torch

from csrec_dist.data.batches import Batch, blank_batch
from csrec_dist.data.order import EpochOrder, RowSample, owned_shards
from csrec_dist.models import MODELS
from csrec_dist.models.inputs import SIZES, Picked, padded_size, pick
from csrec_dist.training.step import MicroBatch
from tests.helpers.training_steps import MAX_LENGTH, METHODS, NUM_WINDOWS, labels_for, make_step, windows


def solve(name: str, method: str, batch: Batch, *, padded: bool, **keys: Any) -> dict[str, torch.Tensor]:
    """Losses and gradients of a step."""
    step, labels = make_step(name, method, **keys), labels_for(method, batch)
    shape = (NUM_WINDOWS + 3, MAX_LENGTH + 1)
    inputs = step.model.inputs(batch.padded_to(*shape) if padded else batch, 7, padded=padded)
    loss = step(inputs, labels.labels(labels.fields(inputs.examples)) if labels else None)
    assert loss.count == inputs.num_states
    loss.sum.backward()
    gradients = {key: value.grad for key, value in step.named_parameters() if value.grad is not None}
    return {**{key: value.detach() for key, value in loss._asdict().items()}, **gradients}


def num_losses(total: torch.Tensor) -> int:
    """How many evaluations of a loss are in the graph of a sum of them."""
    seen, waiting = set(), [total.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return sum(node.name() == "DifferentiableLossBackward" for node in seen)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_nothing(name: str, method: str) -> None:
    for batch in (windows(), windows(num=5, longest=4)):
        expected = solve(name, method, batch, padded=False)
        assert expected["sum"] > 0
        torch.testing.assert_close(solve(name, method, batch, padded=True), expected, rtol=1e-7, atol=1e-9)


def test_padding_changes_nothing_where_each_prefix_has_a_graph_of_its_own() -> None:
    expected, found = (solve("srgnn", "model_level", windows(), padded=each, num_steps=2) for each in (False, True))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_a_padded_batch_without_examples_trains_nothing(name: str, method: str) -> None:
    found = solve(name, method, windows(num=1), padded=True)
    assert found["sum"] == found["count"] == 0
    assert all(gradient.isfinite().all() and not gradient.any() for gradient in found.values())


@pytest.mark.parametrize("method", ["base", "model_level", "training_level"])
@pytest.mark.parametrize("name", MODELS)
def test_every_batch_has_the_same_losses(name: str, method: str) -> None:
    """Ranks that share the catalog meet in each: one whose batch holds nothing, or no mask amid items, computes all."""
    step = make_step(name, method)
    counts = []
    for batch in (windows(), windows(num=2), windows(num=1)):
        labels, inputs = labels_for(method, windows(), batch), step.model.inputs(batch, 7)
        loss = step(inputs, labels.labels(labels.fields(inputs.examples)) if labels else None)
        counts.append(num_losses(loss.sum))
    assert counts[0] >= 1
    assert counts[1:] == counts[:1] * 2


@pytest.mark.parametrize("name", MODELS)
def test_padded_steps_have_few_shapes(name: str) -> None:
    """Whatever the lengths of the windows, and how many there are: so that few CUDA graphs are captured."""
    model, shapes = make_step(name, "base").model, set()
    for seed in range(60):
        batch = windows(num=2 + seed % (NUM_WINDOWS - 1), longest=4 + seed % (MAX_LENGTH - 2), seed=seed)
        inputs = model.inputs(batch.padded_to(NUM_WINDOWS, MAX_LENGTH + 1), seed, padded=True)
        shapes.add(tuple(tensor.shape for tensor in inputs.tensors().values()))
    assert (1 if name == "bert4rec" else 2) <= len(shapes) <= SIZES  # few of its states are masks


def test_sizes_hold_what_they_are_asked_for() -> None:
    for most in (1, 7, 8, 9, 4864, 5120):
        sizes = {padded_size(num, most) for num in range(1, most + 1)}
        assert len(sizes) <= SIZES
        assert max(sizes) == most
        assert all(num <= padded_size(num, most) for num in range(most + 1))
    assert padded_size(0, 100) == 0


def test_picked_rows_and_their_gradients_are_those_of_indexing() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(4, 5, 3, generator=generator, requires_grad=True)
    mask = torch.rand(4, 5, generator=generator) < 0.4
    weights = torch.randn(int(mask.sum()), 3, generator=generator)
    (values[mask] * weights).sum().backward()
    assert values.grad is not None
    expected, values.grad = values.grad, None
    for size in (None, 16):
        picked = Picked.of(mask.numpy(), size)
        rows = pick(values, picked.index, picked.inverse)
        assert len(rows) == (size or len(weights))
        assert torch.equal(rows[: picked.num], values[mask])
        assert picked.weights.tolist() == [1.0] * picked.num + [0.0] * (len(rows) - picked.num)
        repeated = torch.cat([weights, torch.full((len(rows) - picked.num, 3), 9.0)])
        (rows * repeated).sum().backward()
        assert torch.equal(values.grad, expected)
        values.grad = None


def test_the_tensors_of_a_micro_batch_are_all_that_it_is_made_of() -> None:
    """A CUDA graph reads them from other memory than they came in."""
    for name in MODELS:
        step, batch = make_step(name, "model_level"), windows()
        labels = labels_for("model_level", batch)
        assert labels is not None
        inputs = step.model.inputs(batch, 7, padded=True)
        given = MicroBatch(inputs, labels.fields(inputs.examples))
        copies = {key: tensor.clone() for key, tensor in given.tensors().items()}
        for tensor in given.tensors().values():
            tensor.zero_()
        copied = given.with_tensors(copies)
        expected = step.model.inputs(windows(), 7, padded=True)
        found = step(copied.inputs, labels.labels(copied.fields))
        again = step(expected, labels.labels(labels.fields(expected.examples)))
        assert torch.equal(found.sum, again.sum), name


@pytest.mark.parametrize("num_shards", [1, 5, 64])
@pytest.mark.parametrize("batch_size", [3, 64, 100])
def test_no_step_has_more_rows_of_a_rank_than_are_padded_to(num_shards: int, batch_size: int) -> None:
    order = EpochOrder((17,) * num_shards, batch_size, seed=1, epoch=0)
    for world_size in {1, min(2, num_shards), min(3, num_shards)}:
        for rank in range(world_size):
            slots = order.slots(owned_shards(num_shards, rank, world_size))
            counts = [len(order.batch(step, slots)[0]) for step in range(order.num_steps)]
            assert max(counts) <= order.most_rows(rank, world_size) <= batch_size
            if batch_size % num_shards == 0:
                assert max(counts) == order.most_rows(rank, world_size)


def test_a_rank_whose_sample_is_empty_has_room_for_the_empty_place_of_a_batch() -> None:
    order = EpochOrder((1,) * 8, batch_size=4, seed=0, epoch=0, sample=RowSample(0.5, 1))
    sizes = [order.most_rows(rank, 8) for rank in range(8)]
    assert 0 in order.shard_rows
    assert sizes == [1] * 8
    assert len(blank_batch(6).padded_to(min(sizes), 6).rows) == 1
