"""SR-GNN against a loop over one history's graph, kept in dictionaries."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from csrec_dist.models import build, config_class
from csrec_dist.models.srgnn import SRGNN

NUM_ITEMS, MAX_LENGTH, WIDTH = 9, 13, 6
HISTORIES = [[4], [4, 4], [3, 3, 3, 3], [1, 2, 1, 2, 1], [5, 6, 7, 5, 8, 6, 7, 5, 5, 1], [2, 3, 2, 3, 4], [9, 1, 8]]


def make(num_steps: int) -> SRGNN:
    config = config_class("srgnn").model_validate({"width": WIDTH, "num_steps": num_steps})
    model = build(config, NUM_ITEMS, MAX_LENGTH, 3).double().eval()
    assert isinstance(model, SRGNN)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def random_histories(num: int) -> list[list[int]]:
    """Few different items, so that most of them repeat and edges are walked again and again."""
    generator = np.random.default_rng(7)
    return [generator.integers(1, 5, generator.integers(1, MAX_LENGTH + 1)).tolist() for _ in range(num)]


def pad(histories: list[list[int]]) -> torch.Tensor:
    length = max(len(history) for history in histories)
    return torch.tensor([history + [0] * (length - len(history)) for history in histories])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def oracle(model: SRGNN, history: list[int], num_steps: int) -> np.ndarray:
    w = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0.0)

    nodes = {item: w["item_table.weight"][item - 1] for item in history}
    into: dict[int, set[int]] = {item: set() for item in history}
    out: dict[int, set[int]] = {item: set() for item in history}
    for item, following in pairwise(history):
        out[item].add(following)
        into[following].add(item)

    def message(name: str, others: set[int]) -> np.ndarray:
        heard = [linear(f"step.{name}", nodes[other]) for other in others]
        return (sum(heard) / len(heard) if heard else np.zeros(WIDTH)) + w[f"step.{name}_bias"]

    def renewed(item: int) -> np.ndarray:
        heard = np.concatenate([message("incoming", into[item]), message("outgoing", out[item])])
        reset, update, new = np.split(linear("step.message_gates", heard), 3)
        own_reset, own_update, own_new = np.split(linear("step.node_gates", nodes[item]), 3)
        gate = sigmoid(update + own_update)
        return (1 - gate) * nodes[item] + gate * np.tanh(new + sigmoid(reset + own_reset) * own_new)

    for _ in range(num_steps):
        nodes = {item: renewed(item) for item in nodes}
    last = nodes[history[-1]]
    purpose = np.zeros(WIDTH)
    for item in history:
        weight = w["attention.weight"][0] @ sigmoid(linear("present", last) + linear("past", nodes[item]))
        purpose = purpose + weight * nodes[item]
    return linear("output", np.concatenate([purpose, last]))


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_every_prefix_has_the_state_of_its_graph(num_steps: int) -> None:
    model, histories = make(num_steps), HISTORIES + random_histories(12)
    with torch.no_grad():
        states = model.encode(pad(histories)).numpy()
        whole = model.encode_last(pad(histories)).numpy()
    for row, history in enumerate(histories):
        for length in range(1, len(history) + 1):
            expected = oracle(model, history[:length], num_steps)
            np.testing.assert_allclose(states[row, length - 1], expected, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(whole[row], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_states_of_one_pass_have_the_gradients_of_whole_histories(num_steps: int) -> None:
    histories = pad(HISTORIES)
    weights = torch.randn(*histories.shape, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    held = histories != 0
    together, alone = make(num_steps), make(num_steps)
    (together.encode(histories) * weights)[held].sum().backward()
    for row, end in held.nonzero().tolist():
        (alone.encode_last(histories[row : row + 1, : end + 1]) * weights[row, end]).sum().backward()
    for (name, one), other in zip(together.named_parameters(), alone.parameters(), strict=True):
        assert one.grad is not None, name
        assert other.grad is not None, name
        assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-10), name


def test_an_edge_walked_twice_counts_once() -> None:
    model = make(1)
    with torch.no_grad():
        for parameter in model.step.parameters():
            parameter.zero_()
        model.step.message_gates.bias[WIDTH : 2 * WIDTH] = 40.0
        model.step.outgoing.weight.copy_(torch.eye(WIDTH))
        model.step.message_gates.weight[2 * WIDTH :, WIDTH:] = torch.eye(WIDTH)
        vectors = model.item_table.weight
        heard = torch.tanh((vectors[1] + vectors[2]) / 2)
        state = model.encode_last(torch.tensor([[1, 2, 1, 2, 1, 3, 1]]))
        expected = [torch.tanh(vectors[0]), torch.tanh(vectors[0]), heard]
        attended = torch.stack([expected[i] for i in (2, 0, 2, 0, 2, 1, 2)])
        weights = model.attention(torch.sigmoid(model.present(heard) + model.past(attended)))
        purpose = (weights * attended).sum(0)
        torch.testing.assert_close(state[0], model.output(torch.cat([purpose, heard])))


def test_no_windows_and_empty_windows_are_no_trouble() -> None:
    for num_steps in (1, 2):
        model = make(num_steps)
        assert model.encode(torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3, WIDTH)
        states = model.encode(torch.tensor([[0, 0], [1, 2]]))
        states.sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
