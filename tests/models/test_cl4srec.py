"""CL4SRec: what the disturbed copies are, what they follow from, and that the undisturbed windows train as SASRec."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from csrec_dist.losses.contrastive import info_nce
from csrec_dist.models import SequentialModel, TrainingInputs, build, config_class
from csrec_dist.models.cl4srec import (
    CL4SRec,
    CL4SRecConfig,
    cropped,
    disturbed_copies,
    drawn_prefixes,
    masked,
    reordered,
)
from csrec_dist.training import TrainStep
from csrec_dist.training.step import one_hot
from tests.helpers.windows import inputs_of

NUM_ITEMS, MAX_LENGTH, MASK = 500, 12, 501
LENGTHS = [1, 2, 3, 5, 10, 12]


def histories(lengths: list[int]) -> torch.Tensor:
    """Rows of different items, so that each item tells where it stood."""
    rows = torch.arange(1, len(lengths) * MAX_LENGTH + 1).view(len(lengths), MAX_LENGTH) % NUM_ITEMS + 1
    return rows.masked_fill(torch.arange(MAX_LENGTH) >= torch.tensor(lengths).unsqueeze(1), 0)


def items_of(row: torch.Tensor) -> list[int]:
    return [item for item in row.tolist() if item]


def is_run_of(piece: list[int], whole: list[int]) -> bool:
    return any(whole[start : start + len(piece)] == piece for start in range(len(whole) - len(piece) + 1))


@pytest.mark.parametrize("place", [0.0, 0.5, 1 - 2**-24])
def test_a_crop_is_a_run_of_six_tenths(place: float) -> None:
    rows = histories(LENGTHS)
    copies = cropped(rows, 0.6, torch.full((len(rows),), place).double())
    for row, copy, kept in zip(rows, copies, [1, 1, 1, 3, 6, 7], strict=True):
        piece = items_of(copy)
        assert len(piece) == kept
        assert copy[kept:].sum() == 0
        assert is_run_of(piece, items_of(row))
        assert piece[-1] == items_of(row)[-1] or place < 0.9
        assert piece[0] == items_of(row)[0] or place > 0


def test_a_mask_hides_three_tenths_in_place() -> None:
    rows = histories(LENGTHS)
    copies = masked(rows, 0.3, torch.rand(rows.shape, generator=torch.Generator().manual_seed(1)), MASK)
    for row, copy, hidden in zip(rows, copies, [0, 0, 0, 1, 3, 3], strict=True):
        assert int((copy == MASK).sum()) == hidden
        assert torch.equal(copy[copy != MASK], row[copy != MASK])
        assert bool((copy[row == 0] == 0).all())


@pytest.mark.parametrize("place", [0.0, 0.5, 1 - 2**-24])
def test_reordering_shuffles_a_run_of_six_tenths(place: float) -> None:
    rows = histories(LENGTHS)
    scores = torch.arange(MAX_LENGTH, 0, -1).expand_as(rows) / (MAX_LENGTH + 1)
    copies = reordered(rows, 0.6, torch.full((len(rows),), place).double(), scores)
    for row, copy, moved in zip(rows, copies, [0, 1, 1, 3, 6, 7], strict=True):
        whole, found = items_of(row), items_of(copy)
        start = int(place * (len(whole) - moved + 1))
        expected = whole[:start] + whole[start : start + moved][::-1] + whole[start + moved :]
        assert found == expected
        assert bool((copy[row == 0] == 0).all())


def kind_of(row: torch.Tensor, copy: torch.Tensor) -> str:
    if MASK in copy.tolist():
        return "mask"
    return "reorder" if sorted(items_of(copy)) == sorted(items_of(row)) else "crop"


def test_each_pair_of_different_ways_is_as_likely() -> None:
    rows = histories([MAX_LENGTH] * 600)
    first, second = disturbed_copies(rows, torch.arange(600), 3, CL4SRecConfig(), MASK)
    pairs = Counter((kind_of(r, a), kind_of(r, b)) for r, a, b in zip(rows, first, second, strict=True))
    assert len(pairs) == 6
    assert all(a != b for a, b in pairs)
    assert all(70 <= number <= 130 for number in pairs.values())


def test_prefixes_have_each_length_as_often() -> None:
    rows = histories([MAX_LENGTH] * 1200 + [1, 3])
    prefixes = drawn_prefixes(rows, torch.arange(1202), 3)
    kept = (prefixes != 0).sum(1)
    assert torch.equal(prefixes, rows.masked_fill(torch.arange(MAX_LENGTH) >= kept.unsqueeze(1), 0))
    numbers = Counter(kept[:1200].tolist())
    assert sorted(numbers) == list(range(1, MAX_LENGTH + 1))
    assert all(70 <= number <= 130 for number in numbers.values())
    assert kept[1200] == 1
    assert 1 <= kept[1201] <= 3
    assert not torch.equal(drawn_prefixes(rows, torch.arange(1202), 4), prefixes)


def test_copies_follow_from_the_key_and_the_seed_alone() -> None:
    rows, keys = histories(LENGTHS * 5), torch.arange(30) * 19
    copies = disturbed_copies(rows, keys, 3, CL4SRecConfig(), MASK)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    again = disturbed_copies(rows[order], keys[order], 3, CL4SRecConfig(), MASK)
    wider = disturbed_copies(F.pad(rows, (0, 7)), keys, 3, CL4SRecConfig(), MASK)
    for copy, other, padded in zip(copies, again, wider, strict=True):
        assert torch.equal(copy[order], other)
        assert torch.equal(F.pad(copy, (0, 7)), padded)
    other_seed = disturbed_copies(rows, keys, 4, CL4SRecConfig(), MASK)
    assert not torch.equal(copies[0], other_seed[0])


def test_a_single_item_stays_as_it_is() -> None:
    rows = histories([1] * 20)
    for copy in disturbed_copies(rows, torch.arange(20), 3, CL4SRecConfig(), MASK):
        assert torch.equal(copy, rows)


def make(**keys: float) -> CL4SRec:
    config = CL4SRecConfig.model_validate({"width": 16, "dropout": 0, **keys})
    model = build(config, NUM_ITEMS, MAX_LENGTH, 1)
    assert isinstance(model, CL4SRec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    return model


def batch(model: SequentialModel, num: int = 6, padding: int = 0) -> TrainingInputs:
    items = F.pad(histories([12, 12, 7, 2, 0, 5][:num]), (0, padding))
    return inputs_of(model, items, 5, torch.arange(num) * 20)


def test_examples_train_as_sasrec_s() -> None:
    model = make()
    inputs = batch(model)
    sasrec = build(config_class("sasrec").model_validate({"width": 16, "dropout": 0}), NUM_ITEMS, MAX_LENGTH, 1)
    sasrec.load_state_dict({key: value for key, value in model.state_dict().items() if key != "mask_vector"})
    found, expected = model.training_states(inputs), sasrec.training_states(inputs)
    torch.testing.assert_close(found.states, expected.states, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.eval().encode(inputs.histories), sasrec.eval().encode(inputs.histories))


def test_views_are_the_last_states_of_the_copies() -> None:
    model = make().eval()
    inputs = batch(model)
    seen = inputs.histories.masked_fill(inputs.items[:, 1:] == 0, 0)
    with_examples = [row for row in range(6) if seen[row].any()]
    assert with_examples == [0, 1, 2, 3, 5]
    keys = torch.tensor(with_examples) * 20
    copies = disturbed_copies(drawn_prefixes(seen[with_examples], keys, 5), keys, 5, model.config, MASK)
    views = model.training_states(inputs).views
    assert views is not None
    for copy, view in zip(copies, views, strict=True):
        for row, state in zip(copy, view, strict=True):
            vectors = [
                model.mask_vector if item == MASK else model.item_table.weight[item - 1] for item in items_of(row)
            ]
            x = model.norm(torch.stack(vectors) + model.positions[: len(vectors)]).unsqueeze(0)
            for layer in model.layers:
                x = layer(x)
            torch.testing.assert_close(state, x[0, -1], rtol=1e-4, atol=1e-5)


def test_views_do_not_depend_on_the_padding_of_the_batch() -> None:
    model = make().eval()
    short, wide = (model.training_states(batch(model, padding=padding)).views for padding in (0, 1))
    assert short is not None
    assert wide is not None
    for a, b in zip(short, wide, strict=True):
        torch.testing.assert_close(a[2:], b[2:])


@pytest.mark.parametrize("one_hot_weight", [1.0, 0.25])
def test_the_whole_loss_is_mean_over_examples_plus_weighted_mean_over_windows(one_hot_weight: float) -> None:
    model = make(contrast_weight=0.3, contrast_temperature=2.0)
    inputs = batch(model)
    loss = TrainStep(model, one_hot, one_hot_weight=one_hot_weight)(inputs, None)
    views = model.training_states(inputs).views
    assert views is not None
    total, count = info_nce(*views, temperature=2.0)
    assert count == 5
    expected = loss.cross_entropy / loss.count + one_hot_weight * 0.3 * total / count
    assert (loss.sum / loss.count).item() == pytest.approx(expected.item(), rel=1e-5)
    loss.sum.backward()
    assert model.mask_vector.grad is not None
    assert model.mask_vector.grad.abs().sum() > 0


def test_weights_of_examples_are_not_those_of_windows() -> None:
    """The contrastive term of a step, which is divided by the number of states, is the same at all weights."""
    model = make(contrast_weight=0.3, contrast_temperature=2.0)
    inputs = batch(model)
    terms = []
    for factor in (1.0, 0.25, 4.0):
        loss = TrainStep(model, one_hot)(replace(inputs, weights=inputs.weights * factor), None)
        terms.append((loss.sum - loss.cross_entropy).item() / inputs.num_states)
    assert terms[0] > 0.1
    assert terms == pytest.approx([terms[0]] * 3, rel=1e-4)


def test_a_batch_without_windows_trains_nothing() -> None:
    model = make()
    loss = TrainStep(model, one_hot)(inputs_of(model, torch.zeros(1, 5, dtype=torch.int64)), None)
    assert (loss.sum.item(), loss.count.item()) == (0, 0)
    loss.sum.backward()
    assert model.item_table.weight.grad is None or not model.item_table.weight.grad.any()
