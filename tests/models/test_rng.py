"""Draws by hashing: moments, independence, and that nothing but key, seed, stream and place counts."""

from collections.abc import Callable

import pytest
import torch

from csrec_dist.models.rng import key_of, normal, prefix_keys, uniform, words, words_on_host

KEYS = torch.arange(20_000)
Draw = Callable[[torch.Tensor, int, int, int], torch.Tensor]


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.double().flatten(), b.double().flatten()]))[0, 1])


def splitmix(x: int) -> int:
    """Splitmix64 on Python's unbounded integers."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


@pytest.mark.parametrize("key", [0, 7, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("seed", [0, 2**62 + 5])
def test_numbers_are_those_of_unsigned_arithmetic(key: int, seed: int) -> None:
    golden, stream = 0x9E3779B97F4A7C15, 3
    start = splitmix(splitmix(key % 2**64) + splitmix(splitmix(seed) + stream * golden))
    expected = [(splitmix((start + place * golden) % 2**64) >> 40) / 2**24 for place in (1, 2, 3)]
    assert uniform(torch.tensor([key]), seed, stream, 3).tolist() == [expected]


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    numbers = uniform(KEYS, 3, 0, 8).double()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, 50, 0, 1)
    expected = numbers.numel() / 50
    assert float(((counts - expected) ** 2 / expected).sum()) < 49 + 5 * 99**0.5
    assert correlation(numbers[:, :-1], numbers[:, 1:]) == pytest.approx(0, abs=0.015)


def test_normal_numbers_have_the_moments_of_a_normal() -> None:
    numbers = normal(KEYS, 3, 0, 16).double()
    assert float(numbers.mean()) == pytest.approx(0, abs=0.01)
    assert float(numbers.var()) == pytest.approx(1, abs=0.015)
    assert float(numbers.pow(3).mean()) == pytest.approx(0, abs=0.03)
    assert float(numbers.pow(4).mean()) == pytest.approx(3, abs=0.08)
    for bound, share in ((1.0, 0.8413447), (2.0, 0.9772499), (3.0, 0.9986501)):
        assert float((numbers < bound).double().mean()) == pytest.approx(share, abs=0.004)
    assert 4 < float(numbers.abs().max()) < 4.4


@pytest.mark.parametrize("draw", [uniform, normal])
def test_neighbours_are_independent(draw: Draw) -> None:
    numbers = draw(KEYS, 5, 1, 4)
    others = {
        "key": draw(KEYS + 1, 5, 1, 4),
        "seed": draw(KEYS, 6, 1, 4),
        "stream": draw(KEYS, 5, 2, 4),
        "seed and stream": draw(KEYS, 4, 2, 4),
        "key and stream": draw(KEYS + 1, 5, 0, 4),
    }
    for name, other in others.items():
        assert correlation(numbers, other) == pytest.approx(0, abs=0.015), name
        assert (numbers == other).double().mean() < 0.001, name
    assert correlation(numbers[:, 1:], numbers[:, :-1]) == pytest.approx(0, abs=0.015)
    assert len(numbers.unique()) > 0.6 * min(numbers.numel(), 2**16)


@pytest.mark.parametrize("draw", [uniform, normal])
def test_numbers_do_not_depend_on_the_batch(draw: Draw) -> None:
    random_state = torch.get_rng_state()
    whole = draw(KEYS, 2**63 - 1, 4, 5)
    order = torch.randperm(len(KEYS), generator=torch.Generator().manual_seed(1))
    assert torch.equal(draw(KEYS[order], 2**63 - 1, 4, 5), whole[order])
    assert torch.equal(draw(KEYS.view(100, 200), 2**63 - 1, 4, 5), whole.view(100, 200, 5))
    assert torch.equal(draw(KEYS[17], 2**63 - 1, 4, 5), whole[17])
    assert torch.equal(draw(KEYS, 2**63 - 1, 4, 3), whole[:, :3])
    assert torch.equal(torch.get_rng_state(), random_state)
    assert whole.dtype == torch.float32
    assert draw(KEYS[:0], 1, 4, 5).shape == (0, 5)


def test_a_key_is_of_the_items_and_their_order() -> None:
    histories = torch.tensor([[1, 2, 3, 0], [2, 1, 3, 0], [1, 2, 0, 0], [3, 0, 0, 0], [1, 2, 3, 3], [0, 0, 0, 0]])
    keys = key_of(histories)
    assert len(set(keys.tolist())) == len(keys)
    padded = torch.nn.functional.pad(histories, (0, 9))
    assert torch.equal(key_of(padded), keys)
    assert torch.equal(key_of(histories.view(2, 3, 4)), keys.view(2, 3))


def test_the_keys_of_prefixes_are_those_of_the_histories_that_end_there() -> None:
    histories = torch.randint(1, 9, (50, 6), generator=torch.Generator().manual_seed(2))
    for length in range(1, 7):
        assert torch.equal(prefix_keys(histories)[:, length - 1], key_of(histories[:, :length]))


def test_keys_of_many_histories_differ() -> None:
    histories = torch.cartesian_prod(*[torch.arange(1, 41)] * 3)
    assert len(key_of(histories).unique()) == len(histories)


def test_a_host_draws_what_a_device_does() -> None:
    """Two ways to compute one hash; the seed may be a number or a tensor."""
    edges = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63)])
    keys = torch.cat([edges, torch.randint(-(2**62), 2**62, (50,), generator=torch.Generator().manual_seed(1))])
    for seed in (0, 5, 2**63 - 1):
        for shaped in (keys, keys.view(5, 11), keys.view(5, 11)[:, ::2], keys[0]):
            expected = words(shaped, seed, 3, 4)
            assert torch.equal(words_on_host(shaped, seed, 3, 4), expected)
            assert torch.equal(words(shaped, torch.tensor(seed), 3, 4), expected)
