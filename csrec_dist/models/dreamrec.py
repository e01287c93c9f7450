"""DreamRec (Yang et al., 2023): Gaussian diffusion of item vectors, conditioned on a causal transformer's states.

ā_t is the share of x_0's variance that is left after t of T steps (Ho et al., 2020); ā_0 = 1.
"""

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csrec_dist.data.batches import Batch
from csrec_dist.models.base import TrainingStates, picked
from csrec_dist.models.inputs import TrainingInputs, pick
from csrec_dist.models.options import DreamRecConfig
from csrec_dist.models.rng import key_of, normal, prefix_keys, uniform
from csrec_dist.models.sasrec import INITIAL_DEVIATION, SASRec


def alphas_cumprod(num_steps: int, first: float, last: float) -> Tensor:
    """ā_0 … ā_T [T + 1] float64, for noise variances β_1 … β_T that grow by one factor from `first` to `last`."""
    betas = torch.logspace(math.log10(first), math.log10(last), num_steps, dtype=torch.float64)
    return torch.cat([betas.new_ones(1), torch.cumprod(1 - betas, 0)])


@cache
def alphas_cumprod_on(device: torch.device, dtype: torch.dtype, num_steps: int, first: float, last: float) -> Tensor:
    """`alphas_cumprod` in this type on this device, copied there once: the host waits for each copy."""
    return alphas_cumprod(num_steps, first, last).to(device, dtype)


def noised(start: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """x_t = √ā_t · x_0 + √(1 − ā_t) · ε, with ā_t that broadcasts."""
    return alpha_bar.sqrt() * start + (1 - alpha_bar).sqrt() * noise


def ddim_step(x: Tensor, start: Tensor, alpha_bar: Tensor, alpha_bar_after: Tensor) -> Tensor:
    """From x_t to x_s, s < t, without new noise: with that of x_t (Song et al., 2021, Eq. 12 with σ = 0)."""
    noise = (x - alpha_bar.sqrt() * start) / (1 - alpha_bar).sqrt()
    return noised(start, noise, alpha_bar_after)


def ancestral_step(x: Tensor, start: Tensor, alpha_bar: Tensor, alpha_bar_after: Tensor, noise: Tensor) -> Tensor:
    """From x_t to x_s, drawn from q(x_s | x_t, x_0 = `start`) by the normal `noise` (Ho et al., 2020, Eq. 6–7)."""
    step = alpha_bar / alpha_bar_after  # α of the whole way from s to t, which may be several steps
    of_start = alpha_bar_after.sqrt() * (1 - step) / (1 - alpha_bar)
    of_x = step.sqrt() * (1 - alpha_bar_after) / (1 - alpha_bar)
    deviation = ((1 - step) * (1 - alpha_bar_after) / (1 - alpha_bar)).sqrt()
    return of_start * start + of_x * x + deviation * noise


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """(1 + w) · x̂_0(condition) − w · x̂_0(none) for the guidance w."""
    return (1 + guidance) * conditional - guidance * unconditional


def sampled_steps(num_steps: int, num_sampled: int) -> list[int]:
    """`num_sampled` steps t out of T … 1, evenly, the first being T."""
    return [num_steps - index * num_steps // num_sampled for index in range(num_sampled)]


def sinusoids(steps: Tensor, width: int) -> Tensor:
    """[..., width]: sines and cosines of the steps [...] at geometrically spaced frequencies, 1 … 1/10,000."""
    half = -(-width // 2)
    exponents = torch.arange(half, dtype=torch.float64, device=steps.device) / max(half - 1, 1)
    angles = steps.double().unsqueeze(-1) * torch.pow(1e-4, exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :width]


STEPS, NOISE, DROPS = range(3)  # streams of random numbers in training
SAMPLING_SEED = 0


class DreamRec(SASRec):
    """A causal transformer's state is the condition of a denoiser, whose prediction of x_0 is the state.

    In training x_0 is the target's vector, and the loss sees the predictions from one random step of each
    example. `encode` runs the diffusion backward from noise that the history's own content draws.

    Cross-entropy on x̂_0 · Eᵀ, in place of the squared error, needs two changes to the diffusion. x_0 is read without
    gradient: otherwise the item vectors grow until no noise hides them, and the denoiser copies x_t instead of reading
    the history. And x̂_0 has the norm of a factor of logits, not of an item vector, so each reverse step rescales it.
    """

    Config = DreamRecConfig
    config: DreamRecConfig

    def __init__(self, config: DreamRecConfig, num_items: int, max_length: int) -> None:
        super().__init__(config, num_items, max_length)
        self.denoiser = Denoiser(config.width)
        self.no_condition = nn.Parameter(torch.empty(config.width))
        nn.init.normal_(self.no_condition, std=INITIAL_DEVIATION)

    def inputs(self, batch: Batch, seed: int, *, padded: bool = False) -> TrainingInputs:
        """See `SequentialModel.inputs`; the examples' ids go to the device, where the noise is drawn."""
        inputs = super().inputs(batch, seed, padded=padded)
        return replace(inputs, drawn={"examples": inputs.examples})

    def training_states(self, inputs: TrainingInputs) -> TrainingStates:
        """x̂_0 [N, d] of all examples, each from its own step, noise and dropped or kept condition."""
        conditions = pick(super().encode(inputs.histories), inputs.positions.index, inputs.positions.inverse)
        steps, noise, dropped = self.training_noise(inputs.drawn["examples"], inputs.seed)
        conditions = torch.where(dropped, self.no_condition, conditions)
        start = self.item_table(inputs.targets).detach()
        x = noised(start, noise.to(start.dtype), self._alpha_bars(start)[steps].unsqueeze(-1))
        return TrainingStates(self.denoiser(x, conditions, steps))

    def encode(self, histories: Tensor) -> Tensor:
        """States [B, L, d] by the reverse diffusion, in either mode; zeros at padding."""
        mask = histories != 0
        states = super().encode(histories)
        sampled = self._sample(*picked(mask, states, prefix_keys(histories)))
        return torch.zeros_like(states).index_put((mask,), sampled)

    def encode_last(self, histories: Tensor) -> Tensor:
        """States [B, d] of whole histories, for which alone the diffusion is run."""
        last = ((histories != 0).sum(1) - 1).clamp(min=0)
        conditions = super().encode(histories)[torch.arange(histories.shape[0], device=histories.device), last]
        return self._sample(conditions, key_of(histories))

    def training_noise(self, examples: Tensor, seed: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Steps [N] in 1…T, noise [N, d], and whether the condition is dropped [N, 1]."""
        steps = (uniform(examples, seed, STEPS, 1).squeeze(-1) * self.config.num_steps).long() + 1
        dropped = uniform(examples, seed, DROPS, 1) < self.config.condition_drop
        return steps, normal(examples, seed, NOISE, self.config.width), dropped

    def _sample(self, conditions: Tensor, keys: Tensor) -> Tensor:
        """x̂_0 [n, d] at the end of the reverse diffusion from the noise that `keys` [n] draw."""
        config = self.config
        steps = sampled_steps(config.num_steps, config.sampling_steps or config.num_steps)
        alpha_bars = self._alpha_bars(conditions)
        x = normal(keys, SAMPLING_SEED, config.num_steps, config.width).to(conditions.dtype)
        item_norm = self.item_table.mean_square().sqrt()
        for step, after in pairwise(steps):
            start = F.normalize(self._guided_start(x, conditions, step), dim=-1) * item_norm
            if config.sampling_steps is None:
                noise = normal(keys, SAMPLING_SEED, after, config.width).to(x.dtype)
                x = ancestral_step(x, start, alpha_bars[step], alpha_bars[after], noise)
            else:
                x = ddim_step(x, start, alpha_bars[step], alpha_bars[after])
        return self._guided_start(x, conditions, steps[-1])

    def _guided_start(self, x: Tensor, conditions: Tensor, step: int) -> Tensor:
        steps = torch.tensor(step, device=x.device)
        conditional = self.denoiser(x, conditions, steps)
        if self.config.guidance == 0:
            return conditional
        return guided(conditional, self.denoiser(x, self.no_condition, steps), self.config.guidance)

    def _alpha_bars(self, like: Tensor) -> Tensor:
        """ā_0 … ā_T in the type and on the device of `like`."""
        config = self.config
        schedule = config.num_steps, config.first_variance, config.last_variance
        return alphas_cumprod_on(like.device, like.dtype, *schedule)


class Denoiser(nn.Module):
    """x̂_0 from [x_t, condition, embedded step] by one linear layer, as the authors' code does by default.

    Its layers keep torch's initial weights: with N(0, 0.02²) its output stays close to 0 for many epochs.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.step_inner = nn.Linear(width, 2 * width)
        self.step_output = nn.Linear(2 * width, width)
        self.output = nn.Linear(3 * width, width)

    def forward(self, x: Tensor, conditions: Tensor, steps: Tensor) -> Tensor:
        """[n, d] of x [n, d], conditions [n, d] or [d], and steps [n] or a single one."""
        embedded = self.step_output(F.gelu(self.step_inner(sinusoids(steps, self.width).to(x.dtype))))
        return self.output(torch.cat([x, conditions.expand_as(x), embedded.expand_as(x)], dim=-1))
