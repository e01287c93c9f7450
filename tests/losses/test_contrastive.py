"""InfoNCE against a float64 loop over pairs, and its laws."""

import math

import pytest
import torch
from torch import Tensor

from csrec_dist.losses.contrastive import info_nce


def views(num: int, width: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num)
    first, second = torch.randn(2, num, width, generator=generator, dtype=torch.float64).to(dtype).unbind()
    return first.requires_grad_(), second.requires_grad_()


def oracle(first: list[list[float]], second: list[list[float]], temperature: float) -> list[float]:
    """The loss of each window, from the words of the definition."""
    everyone = [("first", row, vector) for row, vector in enumerate(first)]
    everyone += [("second", row, vector) for row, vector in enumerate(second)]
    losses = [0.0] * len(first)
    for view, row, vector in everyone:
        products = {
            (other, place): sum(a * b for a, b in zip(vector, candidate, strict=True)) / temperature
            for other, place, candidate in everyone
            if (other, place) != (view, row)
        }
        partner = products["second" if view == "first" else "first", row]
        losses[row] += (math.log(sum(map(math.exp, products.values()))) - partner) / 2
    return losses


@pytest.mark.parametrize("num", [1, 2, 7])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_values_agree_with_the_definition(num: int, temperature: float) -> None:
    first, second = views(num)
    total, count = info_nce(first, second, temperature=temperature)
    assert total.item() == pytest.approx(
        sum(oracle(first.tolist(), second.tolist(), temperature)), rel=1e-12, abs=1e-12
    )
    assert count.item() == num


def test_gradients_are_those_of_finite_differences() -> None:
    first, second = views(4)
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, slice(1, 3), temperature=0.7)[0], (first, second))


def test_parts_add_up_to_the_whole() -> None:
    first, second = views(7)
    whole, _ = info_nce(first, second)
    parts = [info_nce(first, second, own) for own in (slice(0, 3), slice(3, 3), slice(3, 7))]
    torch.testing.assert_close(sum(total for total, _ in parts), whole, rtol=1e-12, atol=0)
    assert [count.item() for _, count in parts] == [3, 0, 4]
    losses = oracle(first.tolist(), second.tolist(), 1.0)
    assert parts[2][0].item() == pytest.approx(sum(losses[3:]), rel=1e-12)


def test_a_lone_window_has_nothing_to_learn() -> None:
    first, second = views(1)
    total, count = info_nce(first, second)
    assert (total.item(), count.item()) == (0, 1)
    total.backward()
    assert first.grad is not None
    assert first.grad.abs().sum() == 0


def test_no_window_gives_zero_and_a_graph() -> None:
    first, second = views(0)
    total, count = info_nce(first, second)
    assert (total.item(), count.item()) == (0, 0)
    total.backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    first, second = views(6, dtype=dtype)
    total, count = info_nce(first, second)
    assert total.dtype == count.dtype == torch.float32
    expected = sum(oracle(first.tolist(), second.tolist(), 1.0))
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_large_products_do_not_overflow() -> None:
    first, second = views(5, dtype=torch.float32)
    assert info_nce(first.detach() * 1e3, second.detach() * 1e3)[0].isfinite()


def test_wrong_shapes_and_temperatures_are_refused() -> None:
    first, second = views(3)
    with pytest.raises(ValueError, match="two views"):
        info_nce(first, second[:2])
    with pytest.raises(ValueError, match="temperature > 0"):
        info_nce(first, second, temperature=0)


def test_padding_windows_are_met_by_no_view_and_do_not_count() -> None:
    first, second = views(4)
    total, count = info_nce(first, second, temperature=0.7)
    expected = torch.autograd.grad(total, (first, second))
    generator = torch.Generator().manual_seed(1)
    order = torch.tensor([4, 0, 1, 5, 2, 3])
    weights = (order < 4).float()
    padded = [torch.cat([view, 30 * torch.randn(2, 5, generator=generator).double()]) for view in (first, second)]
    wide = [each.detach()[order].requires_grad_() for each in padded]
    found, counted = info_nce(*wide, temperature=0.7, weights=weights)
    torch.testing.assert_close((found, counted), (total, count), rtol=1e-12, atol=0)
    for gradient, exact in zip(torch.autograd.grad(found, wide), expected, strict=True):
        torch.testing.assert_close(gradient[weights > 0], exact, rtol=1e-10, atol=1e-12)
        assert not gradient[weights == 0].any()
    parts = [info_nce(*wide, own, temperature=0.7, weights=weights)[0] for own in (slice(0, 4), slice(4, 6))]
    torch.testing.assert_close(sum(parts), total, rtol=1e-12, atol=0)
