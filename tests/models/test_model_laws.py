"""Laws that every model in the table obeys."""

import math
from pathlib import Path

import pytest
import torch

from csrec_dist.errors import UserError
from csrec_dist.models import MODELS, ModelConfig, SequentialModel, build, config_class, load
from tests.helpers.windows import inputs_of

NUM_ITEMS, MAX_LENGTH, WIDTH = 37, 11, 16

every_model = pytest.mark.parametrize("name", sorted(MODELS))


def small(name: str, **keys: float) -> ModelConfig:
    return config_class(name).model_validate({"width": WIDTH, **keys})


def make(name: str, dtype: torch.dtype = torch.float64, **keys: float) -> SequentialModel:
    """A small model in evaluation mode whose weights are far from zero, so that laws can be broken."""
    model = build(small(name, **keys), NUM_ITEMS, MAX_LENGTH, 1).eval().to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def assert_near(actual: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-9, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def windows(num: int = 6, length: int = MAX_LENGTH) -> torch.Tensor:
    return torch.randint(1, NUM_ITEMS + 1, (num, length), generator=torch.Generator().manual_seed(5))


@every_model
def test_the_future_does_not_change_the_past(name: str) -> None:
    model, items = make(name), windows()
    before = model.encode(items)
    for cut in range(1, MAX_LENGTH):
        changed = items.clone()
        changed[:, cut:] = changed[:, cut:] % NUM_ITEMS + 1
        after = model.encode(changed)
        assert_near(after[:, :cut], before[:, :cut])
        assert not torch.allclose(after[:, cut], before[:, cut], atol=1e-3)


@every_model
def test_padding_does_not_matter(name: str) -> None:
    model, items = make(name), windows(length=5)
    padded = torch.nn.functional.pad(items, (0, MAX_LENGTH - 5))
    states = model.encode(padded)
    assert states.isfinite().all()
    assert_near(states[:, :5], model.encode(items))


@every_model
def test_one_pass_gives_the_state_of_every_prefix(name: str) -> None:
    model, items = make(name), windows()
    states = model.encode(items)
    assert states.shape == (len(items), MAX_LENGTH, WIDTH)
    for length in range(1, MAX_LENGTH + 1):
        alone = model.encode(items[:, :length])[:, -1]
        assert_near(states[:, length - 1], alone)
        padded = items.masked_fill(torch.arange(MAX_LENGTH) >= length, 0)
        assert_near(model.encode_last(padded), alone)


@every_model
def test_windows_in_one_batch_do_not_meet(name: str) -> None:
    model, items = make(name), windows()
    together = model.encode(items)
    for row in range(len(items)):
        assert_near(together[row], model.encode(items[row : row + 1])[0])


@every_model
def test_the_order_of_the_items_matters(name: str) -> None:
    model, items = make(name), windows()
    swapped = items.clone()
    swapped[:, [0, 1]] = items[:, [1, 0]]
    swapped[:, 0] = torch.where(items[:, 0] == items[:, 1], items[:, 0] % NUM_ITEMS + 1, swapped[:, 0])
    assert not torch.allclose(model.encode(swapped)[:, -1], model.encode(items)[:, -1], atol=1e-4)


@every_model
def test_save_and_load_keep_every_bit(name: str, tmp_path: Path) -> None:
    model = make(name, torch.float32)
    model.save_pretrained(tmp_path)
    random_state = torch.get_rng_state()
    loaded = load(tmp_path).eval()
    assert torch.equal(random_state, torch.get_rng_state())
    assert type(loaded) is MODELS[name]
    assert loaded.config == model.config
    assert (loaded.num_items, loaded.max_length) == (NUM_ITEMS, MAX_LENGTH)
    assert {key: value.tolist() for key, value in loaded.state_dict().items()} == {
        key: value.tolist() for key, value in model.state_dict().items()
    }
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded.score(windows()), model.score(windows()))


@every_model
def test_build_depends_on_the_seed_alone(name: str) -> None:
    config = small(name)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = build(config, NUM_ITEMS, MAX_LENGTH, 7)
    assert torch.equal(torch.rand(3), expected)
    again = build(config, NUM_ITEMS, MAX_LENGTH, 7)
    other = build(config, NUM_ITEMS, MAX_LENGTH, 8)
    for (key, weight), same in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, same), key
    assert not torch.equal(first.item_table.weight, other.item_table.weight)


@every_model
def test_inputs_train_the_item_table(name: str) -> None:
    model = make(name)
    items = torch.tensor([[3, 9, 0, 0], [9, 4, 30, 0]])
    states = model.encode(items)
    (states[0, :2].square().sum() + states[1, :3].square().sum()).backward()
    gradient = model.item_table.weight.grad
    assert gradient is not None
    touched = gradient.abs().sum(1).nonzero().flatten() + 1
    assert touched.tolist() == [3, 4, 9, 30]


@every_model
def test_every_parameter_is_trained(name: str) -> None:
    model = make(name).train()
    torch.manual_seed(0)
    items = windows()
    given = model.training_states(inputs_of(model, items))
    trained = [given.states, *(given.views or ())]
    sum(model.item_table.logits(states).square().sum() for states in trained).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@every_model
def test_dropout_zero_makes_training_mode_deterministic(name: str) -> None:
    rates = [key for key in config_class(name).model_fields if key.endswith("dropout")]
    model, items = make(name, torch.float32, **dict.fromkeys(rates, 0.0)), windows()
    assert torch.equal(model.train().encode(items), model.encode(items))
    assert_near(model.train().encode(items), model.eval().encode(items), rtol=1e-4, atol=1e-5)


@every_model
def test_dropout_acts_in_training_mode_only(name: str) -> None:
    model, items = make(name, dropout=0.5), windows()
    assert torch.equal(model.encode(items), model.encode(items))
    model.train()
    assert not torch.equal(model.encode(items), model.encode(items))


@every_model
def test_scores_are_products_with_the_item_table(name: str) -> None:
    model = make(name)
    histories = [[4], [1, 2, 3], [NUM_ITEMS] * 5]
    scores = model.score(histories)
    assert scores.shape == (3, NUM_ITEMS + 1)
    assert scores[:, 0].tolist() == [-math.inf] * 3
    for row, history in enumerate(histories):
        state = model.encode(torch.tensor([history]))[0, -1]
        table, bias = model.item_table.weight, model.item_table.bias
        offsets = [0.0] * NUM_ITEMS if bias is None else bias.tolist()
        expected = [sum((state * table[item]).tolist()) + offsets[item] for item in range(NUM_ITEMS)]
        assert scores[row, 1:].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-10)


@every_model
def test_lists_and_padded_tensors_score_alike(name: str) -> None:
    model = make(name)
    padded = torch.tensor([[4, 0, 0], [1, 2, 3], [5, 5, 0]])
    assert torch.equal(model.score(padded), model.score([[4], [1, 2, 3], [5, 5]]))
    assert_near(model.score(padded)[:1], model.score([[4]]))


@every_model
def test_a_long_history_counts_by_its_latest_items(name: str) -> None:
    model = make(name)
    long = windows(1, 3 * MAX_LENGTH)[0].tolist()
    scores = model.score([long, long[:2]])
    assert_near(scores, model.score([long[-MAX_LENGTH:], long[:2]]), rtol=0, atol=0)
    padded = torch.tensor([long, long[:2] + [0] * (len(long) - 2)])
    assert torch.equal(model.score(padded), scores)


@every_model
def test_a_folder_says_what_it_holds(name: str, tmp_path: Path) -> None:
    make(name).save_pretrained(tmp_path)
    others = [cls for key, cls in MODELS.items() if key != name]
    for other in others:
        with pytest.raises(UserError, match=f"holds a {MODELS[name].__name__}, not a {other.__name__}"):
            other.from_pretrained(tmp_path)


@every_model
def test_the_name_in_the_config_is_the_file_s(name: str) -> None:
    assert MODELS[name].__module__ == f"csrec_dist.models.{name}"
    assert small(name).name == name


@every_model
def test_gradients_are_the_same_to_the_bit_on_several_threads(name: str) -> None:
    """A resumed training has the parameters of the unbroken one only if no sum depends on the order of threads."""
    model = make(name, torch.float32).train()
    items = windows(num=200, length=MAX_LENGTH)
    inputs = inputs_of(model, items, 5)

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(0)
        model.zero_grad()
        model.training_states(inputs).states.sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(4)
    try:
        first = gradients()
        for _ in range(4):
            assert all(map(torch.equal, gradients(), first))
    finally:
        torch.set_num_threads(threads)
