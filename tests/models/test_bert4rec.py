"""BERT4Rec against a loop over one history, and what its training masks and predicts."""

import math
from typing import NamedTuple

import pytest
import torch

from csrec_dist.data.batches import Batch
from csrec_dist.models import SequentialModel, build, config_class
from tests.helpers.windows import batch_of

NUM_ITEMS, MAX_LENGTH, WIDTH, NUM_HEADS = 31, 9, 8, 2


def make(**keys: float | str) -> SequentialModel:
    small = {"width": WIDTH, "num_heads": NUM_HEADS, "inner_width": 12}
    config = config_class("bert4rec").model_validate(small | keys)
    model = build(config, NUM_ITEMS, MAX_LENGTH, 3).double().eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def norm(w: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-12).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def linear(w: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def attended(query: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor]) -> torch.Tensor:
    """Attention of one position with heads side by side."""
    mixed, size = [], WIDTH // NUM_HEADS
    for first in range(0, WIDTH, size):
        head = slice(first, first + size)
        scores = torch.stack([query[head] @ key[head] for key in keys]) / math.sqrt(size)
        weights = scores.exp() / scores.exp().sum()
        mixed.append(weights @ torch.stack(values)[:, head])
    return torch.cat(mixed)


def oracle(model: SequentialModel, history: list[int]) -> torch.Tensor:
    """The state of a history: of a mask behind it that reads, and is read by, all its items."""
    w = model.state_dict()
    vectors = [w["item_table.weight"][item - 1] for item in history] + [w["mask"][0]]
    places = [*range(len(vectors))]
    if model.config.positions_from == "end":
        places.reverse()
    x = [norm(w, "norm", vector + w["positions"][place]) for place, vector in zip(places, vectors, strict=True)]
    for layer in ("layers.0.", "layers.1."):
        parts = [linear(w, layer + "query_key_value", vector).split(WIDTH) for vector in x]
        keys, values = [part[1] for part in parts], [part[2] for part in parts]
        for place, part in enumerate(parts):
            mixed = linear(w, layer + "attention_output", attended(part[0], keys, values))
            y = norm(w, layer + "attention_norm", x[place] + mixed)
            inner = linear(w, layer + "inner_output", gelu(linear(w, layer + "inner", y)))
            x[place] = norm(w, layer + "inner_norm", y + inner)
    return norm(w, "output_norm", gelu(linear(w, "output", x[-1])))


FIRST_EXAMPLE = 100


def windows(lengths: list[int]) -> Batch:
    """Windows of so many items, the target of the last example included; all items of a window differ."""
    generator = torch.Generator().manual_seed(5)
    items = torch.stack([torch.randperm(NUM_ITEMS, generator=generator)[: MAX_LENGTH + 1] + 1 for _ in lengths])
    items = items.masked_fill(torch.arange(MAX_LENGTH + 1) >= torch.tensor(lengths).unsqueeze(1), 0)
    return of_items(items)


def of_items(items: torch.Tensor) -> Batch:
    return batch_of(items, FIRST_EXAMPLE + torch.arange(len(items)) * (items.shape[1] - 1))


class Given(NamedTuple):
    """States [n, d] and their targets [n]."""

    states: torch.Tensor
    targets: torch.Tensor


def given(model: SequentialModel, batch: Batch, seed: int = 11) -> tuple[Given, torch.Tensor]:
    """The states, and the place of each one's example among the positions of the batch; −1 where it has no labels."""
    inputs = model.inputs(batch, seed)
    with torch.no_grad():
        states = model.training_states(inputs).states
    assert len(states) == len(inputs.targets) == len(inputs.weights) == inputs.num_states
    unlabelled = inputs.num_states - len(inputs.examples)
    return Given(states, inputs.targets), torch.cat([inputs.examples - FIRST_EXAMPLE, torch.full((unlabelled,), -1)])


@pytest.mark.parametrize("positions_from", ["end", "start"])
def test_every_prefix_has_the_state_of_a_mask_behind_it(positions_from: str) -> None:
    model = make(positions_from=positions_from)
    histories = [[4], [7, 7], [1, 2, 3, 2, 1], list(range(1, MAX_LENGTH + 1))]
    padded = torch.tensor([history + [0] * (MAX_LENGTH - len(history)) for history in histories])
    with torch.no_grad():
        states, whole = model.encode(padded), model.encode_last(padded)
    for row, history in enumerate(histories):
        for length in range(1, len(history) + 1):
            expected = oracle(model, history[:length])
            torch.testing.assert_close(states[row, length - 1], expected, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(whole[row], expected, rtol=1e-9, atol=1e-10)
        assert states[row, len(history) :].abs().sum() == 0


def test_more_positions_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="10 positions; this model has 9"):
        make().encode(torch.ones(1, MAX_LENGTH + 1, dtype=torch.int64))


@pytest.mark.parametrize("prefixes", [1, 3, 20])
def test_places_are_those_of_the_examples_that_the_states_predict(prefixes: int) -> None:
    model, batch = make(prefixes=prefixes), windows([10, 2, 6, 3, 0, 9])
    trained, places = given(model, batch)
    labelled = places >= 0
    assert torch.equal(trained.targets[labelled], batch.targets.flatten()[places[labelled]])
    expected = model.encode(batch.histories).flatten(0, 1)[places[labelled]]
    torch.testing.assert_close(trained.states[labelled], expected, rtol=1e-9, atol=1e-10)
    window_of = places[labelled] // MAX_LENGTH
    assert len(places[labelled].unique()) == len(places[labelled])
    num_examples = (batch.targets > 0).sum(1).tolist()
    assert window_of.bincount(minlength=6).tolist() == [min(prefixes, num) for num in num_examples]


def test_a_masked_item_leaves_no_trace_but_its_target() -> None:
    model, batch = make(prefixes=3), windows([10, 5])
    before, places = given(model, batch)
    items, masked = batch.items, 0
    for row, position in (items != 0).nonzero().tolist():
        changed = items.clone()
        changed[row, position] = next(item for item in range(1, NUM_ITEMS + 1) if item not in items)
        after, _ = given(model, of_items(changed))
        hidden = after.targets != before.targets
        torch.testing.assert_close(after.states[hidden], before.states[hidden], rtol=1e-9, atol=1e-10)
        masked += int((hidden & (places < 0)).sum())
        moved = ~torch.isclose(after.states, before.states, rtol=1e-6, atol=1e-6).all(1)
        assert (hidden & (places < 0)).any() or moved[places < 0].any()
    assert masked == int((places < 0).sum()) > 2


def test_masks_read_what_is_not_masked_on_both_sides() -> None:
    model, batch = make(prefixes=1, mask_ratio=0.0), windows([10])
    trained, places = given(model, batch)
    items = batch.items
    assert places.tolist().count(-1) == 1
    position = int((items[0] == trained.targets[-1]).nonzero())
    for other in range(items.shape[1]):
        changed = items.clone()
        changed[0, other] = next(item for item in range(1, NUM_ITEMS + 1) if item not in items)
        state = given(model, of_items(changed))[0].states[-1]
        assert torch.allclose(state, trained.states[-1], rtol=1e-9, atol=1e-10) == (other == position)


def test_what_is_drawn_follows_from_example_ids_and_seed() -> None:
    model, batch = make(prefixes=2), windows([10, 7, 4])
    torch.manual_seed(1)
    together, places = given(model, batch)
    torch.manual_seed(2)
    alone = [given(model, batch_of(batch.items[rows], batch.example_offsets[rows])) for rows in ([2], [0, 1])]
    found = sorted(map(tuple, together.states.round(decimals=8).tolist()))
    assert found == sorted(tuple(row) for part, _ in alone for row in part.states.round(decimals=8).tolist())
    other, _ = given(model, batch, seed=12)
    assert sorted(other.targets.tolist()) != sorted(together.targets.tolist())
    assert int((places >= 0).sum()) == 6


def test_prefixes_are_equally_likely_and_masks_have_their_ratio() -> None:
    model = make(prefixes=2, mask_ratio=0.3, num_layers=1)
    items = torch.arange(1, MAX_LENGTH + 2).expand(3000, -1)
    trained, places = given(model, of_items(items))
    ends = places[places >= 0] % MAX_LENGTH
    frequencies = ends.bincount(minlength=MAX_LENGTH) / 3000
    torch.testing.assert_close(frequencies, torch.full((MAX_LENGTH,), 2 / MAX_LENGTH), rtol=0, atol=0.03)
    masked = trained.targets[places < 0]
    masks = masked.bincount(minlength=MAX_LENGTH + 2)[1:] / 3000
    expected = 0.3 + 0.7 ** (MAX_LENGTH + 1) / (MAX_LENGTH + 1)
    torch.testing.assert_close(masks, torch.full((MAX_LENGTH + 1,), expected), rtol=0, atol=0.03)
    both = (masked[:-1] == 1) & (masked[1:] == 2)
    assert float(both.sum()) / 3000 == pytest.approx(0.3 * 0.3, abs=0.03)


def test_a_batch_without_items_trains_nothing() -> None:
    model = make().train()
    trained = model.training_states(model.inputs(of_items(torch.zeros(1, 4, dtype=torch.int64)), 1))
    assert trained.states.shape == (0, WIDTH)
    mixed = windows([0, 5])
    model.training_states(model.inputs(mixed, 1)).states.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    model.zero_grad()
    trained.states.sum().backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == ["item_table.bias"]


def test_a_mask_behind_the_longest_history_stands_where_masks_are_trained() -> None:
    model = make().train()
    shorter = windows([4, 6, 5])
    trained = model.training_states(model.inputs(shorter, 1))
    trained.states.square().sum().backward()
    gradient = model.get_parameter("positions").grad
    assert gradient is not None
    moved = gradient.abs().sum(1) > 0
    assert moved.tolist() == [True] * 6 + [False] * (MAX_LENGTH - 5)
    with torch.no_grad():
        model.eval().get_parameter("positions")[~moved] += 100.0
        longest = torch.arange(1, MAX_LENGTH + 1).unsqueeze(0)
        assert not torch.equal(model.encode_last(longest), model.encode_last(longest[:, -5:]))
        assert torch.equal(model.encode_last(longest[:, -5:]), make().encode_last(longest[:, -5:]))
