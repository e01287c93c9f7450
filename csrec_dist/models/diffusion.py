"""Gaussian diffusion of vectors: the schedule, the way forward, and steps backward from a predicted start.

ā_t is the share of the start's variance that is kept after t of T steps (Ho et al., 2020); ā_0 = 1.
"""

import math

import torch
from torch import Tensor


def kept_variance(num_steps: int, first: float, last: float) -> Tensor:
    """ā_0 … ā_T [T + 1] float64, for noise variances β_1 … β_T that grow by one factor from `first` to `last`."""
    betas = torch.logspace(math.log10(first), math.log10(last), num_steps, dtype=torch.float64)
    return torch.cat([betas.new_ones(1), torch.cumprod(1 - betas, 0)])


def noised(start: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """x_t = √ā_t · x_0 + √(1 − ā_t) · ε, with ā_t that broadcasts."""
    return kept.sqrt() * start + (1 - kept).sqrt() * noise


def ddim_step(x: Tensor, start: Tensor, kept: Tensor, kept_after: Tensor) -> Tensor:
    """From x_t to x_s, s < t, without new noise: that in x_t is what `start` leaves unexplained (Song et al., 2021)."""
    noise = (x - kept.sqrt() * start) / (1 - kept).sqrt()
    return noised(start, noise, kept_after)


def ancestral_step(x: Tensor, start: Tensor, kept: Tensor, kept_after: Tensor, noise: Tensor) -> Tensor:
    """From x_t to x_s, drawn from q(x_s | x_t, x_0 = `start`) by the normal `noise` (Ho et al., 2020, Eq. 6–7)."""
    step = kept / kept_after
    of_start = kept_after.sqrt() * (1 - step) / (1 - kept)
    of_x = step.sqrt() * (1 - kept_after) / (1 - kept)
    deviation = ((1 - step) * (1 - kept_after) / (1 - kept)).sqrt()
    return of_start * start + of_x * x + deviation * noise


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """(1 + w) · x̂_0(condition) − w · x̂_0(none) for the guidance w."""
    return (1 + guidance) * conditional - guidance * unconditional


def sampled_steps(num_steps: int, num_sampled: int) -> list[int]:
    """`num_sampled` steps t out of T … 1, evenly, the first being T."""
    return [num_steps - place * num_steps // num_sampled for place in range(num_sampled)]


def sinusoids(steps: Tensor, width: int) -> Tensor:
    """[..., width]: sines and cosines of the steps [...] at geometrically spaced frequencies, 1 … 1/10,000."""
    half = -(-width // 2)
    exponents = torch.arange(half, dtype=torch.float64, device=steps.device) / max(half - 1, 1)
    angles = steps.double().unsqueeze(-1) * torch.pow(1e-4, exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :width]
