"""DreamRec: the diffusion's formulas against float64 loops, its draws, guidance, and determinism in any batch."""

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from csrec_dist.data.batches import Batch
from csrec_dist.models import build
from csrec_dist.models.dreamrec import (
    SAMPLING_SEED,
    DreamRec,
    DreamRecConfig,
    alphas_cumprod,
    ancestral_step,
    ddim_step,
    guided,
    noised,
    sampled_steps,
    sinusoids,
)
from csrec_dist.models.rng import key_of, normal
from tests.helpers.windows import batch_of, inputs_of

NUM_ITEMS, MAX_LENGTH, WIDTH = 37, 11, 16


def make(dtype: torch.dtype = torch.float64, **keys: float | None) -> DreamRec:
    model = build(DreamRecConfig.model_validate({"width": WIDTH, **keys}), NUM_ITEMS, MAX_LENGTH, 1).eval().to(dtype)
    assert isinstance(model, DreamRec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def windows(num: int, length: int = MAX_LENGTH) -> Tensor:
    return torch.randint(1, NUM_ITEMS + 1, (num, length), generator=torch.Generator().manual_seed(5))


SEED = 3


def training_batch(num: int) -> Batch:
    return batch_of(windows(num, MAX_LENGTH + 1))


def alphas_by_loop(num_steps: int = 500, first: float = 1e-4, last: float = 2e-2) -> list[float]:
    """ā_0 … ā_T, multiplied step by step."""
    alphas = [1.0]
    for step in range(num_steps):
        beta = first * (last / first) ** (step / (num_steps - 1))
        alphas.append(alphas[-1] * (1 - beta))
    return alphas


def test_the_schedule_grows_by_one_factor_from_its_first_to_its_last_variance() -> None:
    alphas = alphas_cumprod(500, 1e-4, 2e-2)
    assert alphas.tolist() == pytest.approx(alphas_by_loop(), rel=1e-11)
    betas = 1 - alphas[1:] / alphas[:-1]
    assert betas[0].item() == pytest.approx(1e-4, rel=1e-9)
    assert betas[-1].item() == pytest.approx(2e-2, rel=1e-9)
    assert alphas[-1].item() == pytest.approx(0.1505, abs=0.0005)


def test_noised_vectors_have_the_mean_and_variance_of_the_forward_process() -> None:
    start, kept = torch.tensor([2.0, -1.0]), torch.tensor(0.36)
    x = noised(start, normal(torch.arange(50_000), 1, 2, 2), kept)
    assert x.mean(0).tolist() == pytest.approx([1.2, -0.6], abs=0.02)
    assert x.var(0).tolist() == pytest.approx([0.64, 0.64], abs=0.02)


def test_the_ddim_step_keeps_the_noise_that_the_start_leaves() -> None:
    x, start = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).unbind()
    found = ddim_step(x, start, torch.tensor(0.3).double(), torch.tensor(0.7).double())
    for row in range(5):
        for place in range(3):
            noise = (x[row, place].item() - math.sqrt(0.3) * start[row, place].item()) / math.sqrt(0.7)
            expected = math.sqrt(0.7) * start[row, place].item() + math.sqrt(0.3) * noise
            assert found[row, place].item() == pytest.approx(expected, rel=1e-6)


def test_ancestral_steps_lead_to_the_forward_process_s_distribution() -> None:
    """With the true start at hand, x_s from x_t must have the mean and variance of q(x_s | x_0)."""
    num, start = 40_000, torch.tensor(1.5)
    noise = normal(torch.arange(num), 1, 0, 2)
    kept, kept_after = torch.tensor(0.3), torch.tensor(0.8)
    x = ancestral_step(noised(start, noise[:, 0], kept), start, kept, kept_after, noise[:, 1])
    assert x.mean().item() == pytest.approx(math.sqrt(0.8) * 1.5, abs=0.01)
    assert x.var().item() == pytest.approx(0.2, abs=0.01)
    zero, one = (ancestral_step(torch.tensor(x), start, kept, kept_after, torch.tensor(0.0)).item() for x in (0.0, 1.0))
    beta = 1 - 0.3 / 0.8
    assert one - zero == pytest.approx(math.sqrt(1 - beta) * (1 - 0.8) / (1 - 0.3), rel=1e-5)


def test_guidance_extrapolates_from_the_unconditional() -> None:
    assert guided(torch.tensor(3.0), torch.tensor(1.0), 2.0).item() == 7
    assert guided(torch.tensor(3.0), torch.tensor(1.0), 0.0).item() == 3


def test_sampled_steps_begin_at_the_last_and_are_even() -> None:
    assert sampled_steps(500, 1) == [500]
    assert sampled_steps(500, 5) == [500, 400, 300, 200, 100]
    assert sampled_steps(7, 7) == [7, 6, 5, 4, 3, 2, 1]
    assert sampled_steps(500, 3) == [500, 334, 167]


def test_sinusoids_tell_steps_apart() -> None:
    found = sinusoids(torch.arange(1, 501), 8)
    assert found[3].tolist() == pytest.approx(
        [f(4 * 1e-4 ** (k / 3)) for f in (math.sin, math.cos) for k in range(4)], rel=1e-9
    )
    assert torch.pdist(found).min() > 1e-3
    assert sinusoids(torch.tensor(3), 5).shape == (5,)


def state_by_loop(model: DreamRec, history: list[int], guidance: float, steps: list[int]) -> Tensor:
    """The reverse diffusion of one history, step by step, with this file's own schedule and formulas."""
    items = torch.tensor([history])
    condition = super(DreamRec, model).encode(items)[0, -1]
    norm = math.sqrt(sum(v * v for v in model.item_table.weight.flatten().tolist()) / NUM_ITEMS)
    x = normal(key_of(items), SAMPLING_SEED, 500, WIDTH)[0].double()
    kept = alphas_by_loop()

    def predicted(step: int) -> Tensor:
        steps = torch.tensor([step])
        with_it = model.denoiser(x.unsqueeze(0), condition.unsqueeze(0), steps)[0]
        without = model.denoiser(x.unsqueeze(0), model.no_condition.unsqueeze(0), steps)[0]
        return with_it + guidance * (with_it - without)

    for step, after in zip(steps, [*steps[1:], 0], strict=True):
        start = predicted(step)
        if after:
            start = start * norm / math.sqrt(sum(v * v for v in start.tolist()))
            noise = (x - math.sqrt(kept[step]) * start) / math.sqrt(1 - kept[step])
            x = math.sqrt(kept[after]) * start + math.sqrt(1 - kept[after]) * noise
    return start


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_states_are_those_of_a_plain_reverse_loop(guidance: float) -> None:
    model = make(guidance=guidance, sampling_steps=5)
    for history in ([4], [1, 2, 3], [9] * MAX_LENGTH):
        expected = state_by_loop(model, history, guidance, [500, 400, 300, 200, 100])
        torch.testing.assert_close(model.encode_last(torch.tensor([history]))[0], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sampling_steps", [1, 10, None])
def test_states_are_reproducible_in_any_batch_and_padding(sampling_steps: int | None) -> None:
    model = make(sampling_steps=sampling_steps, num_steps=40)
    histories = windows(7)
    histories[:3, 6:] = 0
    random_state = torch.get_rng_state()
    whole = model.encode_last(histories)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(model.encode_last(histories), whole)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(2))
    parts = torch.cat([model.encode_last(histories[order[:2]]), model.encode_last(histories[order[2:]])])
    torch.testing.assert_close(parts, whole[order], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(model.encode_last(histories[:3, :6]), whole[:3], rtol=1e-6, atol=1e-8)
    every = model.encode(histories)
    torch.testing.assert_close(every[:3, 5], whole[:3], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(every[3:, -1], whole[3:], rtol=1e-6, atol=1e-8)
    assert not every[:3, 6:].any()


def test_all_steps_and_few_steps_are_two_samplers() -> None:
    few, everything = make(sampling_steps=40, num_steps=40), make(sampling_steps=None, num_steps=40)
    assert not torch.allclose(few.encode_last(windows(3)), everything.encode_last(windows(3)), atol=1e-3)


def test_an_empty_history_has_some_state() -> None:
    assert make().encode_last(torch.zeros(2, 3, dtype=torch.int64)).isfinite().all()


def test_draws_cover_the_steps_drop_a_tenth_and_follow_from_the_examples() -> None:
    model, examples = make(), training_batch(300).examples.flatten()
    steps, noise, dropped = model.training_noise(examples, 3)
    assert (int(steps.min()), int(steps.max())) == (1, 500)
    assert steps.double().mean().item() == pytest.approx(250.5, abs=10)
    assert dropped.double().mean().item() == pytest.approx(0.1, abs=0.02)
    assert noise.shape == (len(examples), WIDTH)
    for whole, part in zip((steps, noise, dropped), model.training_noise(examples[5:9], 3), strict=True):
        assert torch.equal(whole[5:9], part)
    assert not torch.equal(model.training_noise(examples, 4)[0], steps)


def test_training_states_predict_from_the_noised_target() -> None:
    model, batch = make(condition_drop=0.5), training_batch(8)
    inputs = model.inputs(batch, SEED)
    given = model.training_states(inputs)
    assert torch.equal(inputs.targets, batch.targets.flatten())
    conditions = super(DreamRec, model).encode(batch.histories).flatten(0, 1)
    steps, noise, dropped = model.training_noise(batch.examples.flatten(), SEED)
    kept = alphas_by_loop()
    assert 0 < int(dropped.sum()) < len(dropped)
    for place in range(0, len(steps), 7):
        step = int(steps[place])
        start = model.item_table.weight[inputs.targets[place] - 1]
        x = math.sqrt(kept[step]) * start + math.sqrt(1 - kept[step]) * noise[place].double()
        condition = model.no_condition if dropped[place] else conditions[place]
        expected = model.denoiser(x.unsqueeze(0), condition.unsqueeze(0), steps[place : place + 1])[0]
        torch.testing.assert_close(given.states[place], expected, rtol=1e-6, atol=1e-8)


def test_training_does_not_depend_on_the_share_of_the_batch() -> None:
    model, batch = make(), training_batch(9)

    def states(items: Tensor, first_examples: Tensor) -> Tensor:
        return model.training_states(inputs_of(model, items, SEED, first_examples)).states

    items, first_examples = batch.items, batch.example_offsets
    whole = states(items, first_examples)
    parts = [states(items[rows], first_examples[rows]) for rows in (slice(0, 4), slice(4, 9))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=1e-9)
    shorter = whole.view(9, MAX_LENGTH, -1)[:, :-1].flatten(0, 1)
    padded = states(F.pad(items[:, :-1], (0, 1)), first_examples)
    torch.testing.assert_close(padded, shorter, rtol=1e-6, atol=1e-9)


def test_the_target_s_vector_gets_no_gradient_from_being_noised() -> None:
    model = make(condition_drop=0)
    inputs = inputs_of(model, torch.tensor([[3, 9, 4]]))
    model.training_states(inputs).states.square().sum().backward()
    gradient = model.item_table.weight.grad
    assert gradient is not None
    assert (gradient.abs().sum(1).nonzero().flatten() + 1).tolist() == [3, 9]


def test_more_sampled_steps_than_steps_are_refused() -> None:
    with pytest.raises(ValidationError, match="sampling_steps 60 is more than num_steps 50"):
        DreamRecConfig(num_steps=50, sampling_steps=60)
