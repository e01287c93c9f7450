"""Random numbers that depend on a step's seed and an example or a history, and on nothing else; and a fast dropout."""

from functools import cache
from statistics import NormalDist

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMAL_BITS = 16
_STEP = 0x9E3779B97F4A7C15
"""2⁶⁴ over the golden ratio: consecutive counters far apart, as in splitmix64 (Steele et al., 2014)."""
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31


def uniform(keys: Tensor, seed: int | Tensor, stream: int, size: int) -> Tensor:
    """Numbers [..., size] float32 in [0, 1), on 2²⁴ equal steps, for int64 `keys` [...].

    `stream` separates what is drawn for different purposes with one seed. A larger `size` only adds numbers. The seed
    may be an int64 scalar on the device: a CUDA graph then draws anew at each replay.
    """
    return _top_bits(_words(keys, seed, stream, size), 24).float() * 2.0**-24


def normal(keys: Tensor, seed: int | Tensor, stream: int, size: int) -> Tensor:
    """Standard normal numbers [..., size] float32, as `uniform`: of 2¹⁶ equally probable quantiles, |x| < 4.4."""
    index = _top_bits(_words(keys, seed, stream, size), NORMAL_BITS)
    return _normal_quantiles(keys.device)[index]


def key_of(items: Tensor) -> Tensor:
    """A key [...] int64 of each history [..., L] (right-padded with 0), which depends on its items and their order."""
    return _mixed(_located(items).cumsum(-1)[..., -1])


def prefix_keys(items: Tensor) -> Tensor:
    """The key [..., L] of the prefix that ends at each position; at padding, that of the whole history."""
    return _mixed(_located(items).cumsum(-1))


def _located(items: Tensor) -> Tensor:
    """Hashes [..., L] of (position, item) pairs, 0 at padding; their sum identifies a history."""
    positions = torch.arange(1, items.shape[-1] + 1, device=items.device) * _signed(_STEP)
    return _mixed(_mixed(items.long()) + positions).masked_fill(items == 0, 0)


def _words(keys: Tensor, seed: int | Tensor, stream: int, size: int) -> Tensor:
    """Hashes [..., size]: a counter from a start that depends on key, seed and stream, each mixed in turn."""
    has_memory = type(keys) is Tensor and keys.device.type == "cpu"  # numpy cannot read a tracer's tensors
    return (words_on_host if has_memory else words)(keys, seed, stream, size)


def words_on_host(keys: Tensor, seed: int | Tensor, stream: int, size: int) -> Tensor:
    """`words` on a CPU, where numpy begins small operations three times as fast as torch does."""
    base = _mixed_array(_mixed_array(np.array([int(seed) % 2**64], np.uint64)) + np.uint64(stream * _STEP % 2**64))
    start = _mixed_array(_mixed_array(keys.numpy().reshape(-1).view(np.uint64)) + base)
    counters = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(_STEP)
    return torch.from_numpy(_mixed_array(start[:, None] + counters).view(np.int64)).view(*keys.shape, size)


def _mixed_array(x: np.ndarray) -> np.ndarray:
    """`_mixed` of uint64 numbers."""
    x = x + np.uint64(_STEP)
    for shift, factor in _ROUNDS:
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(_LAST_SHIFT)
    return x


def words(keys: Tensor, seed: int | Tensor, stream: int, size: int) -> Tensor:
    """The hashes on any device, as int64."""
    seed = seed if isinstance(seed, Tensor) else torch.tensor(_signed(seed))
    base = _mixed(_mixed(seed) + _signed(stream * _STEP))
    start = _mixed(_mixed(keys) + base)
    counters = torch.arange(1, size + 1, device=keys.device) * _signed(_STEP)
    return _mixed(start.unsqueeze(-1) + counters)


def _mixed(x: Tensor) -> Tensor:
    """Splitmix64's finaliser, a bijection of the 64 bits of each number."""
    x = x + _signed(_STEP)
    for shift, factor in _ROUNDS:
        x = (x ^ _top_bits(x, 64 - shift)) * _signed(factor)
    return x ^ _top_bits(x, 64 - _LAST_SHIFT)


def _top_bits(x: Tensor, num: int) -> Tensor:
    """The `num` highest bits, as a number ≥ 0: int64 shifts copy the sign, which is masked out again."""
    return (x >> (64 - num)) & ((1 << num) - 1)


def _signed(x: int) -> int:
    """The int64 with the 64 lowest bits of `x`."""
    return (x + 2**63) % 2**64 - 2**63


@cache
def _normal_quantiles(device: torch.device) -> Tensor:
    """The normal quantiles at the middles of 2¹⁶ equal probabilities, scaled to variance 1."""
    num = 1 << NORMAL_BITS
    upper = torch.tensor([NormalDist().inv_cdf(0.5 + (index + 0.5) / num) for index in range(num // 2)]).double()
    quantiles = torch.cat([-upper.flip(0), upper])
    return (quantiles / quantiles.square().mean().sqrt()).float().to(device)


class Dropout(nn.Module):
    """`nn.Dropout` in distribution and in gradient, in training mode only.

    On a CPU the mask is drawn by comparing uniform numbers with `probability`, three times as fast as
    torch's Bernoulli numbers, which take a quarter of a small transformer's step.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Zero each number of `x` with `probability` and scale the others by 1/(1 − probability)."""
        if not self.training or self.probability == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.probability)
        mask = torch.rand_like(x, dtype=torch.float32).ge_(self.probability)
        return x * mask.mul_(1 / (1 - self.probability)).to(x.dtype)
