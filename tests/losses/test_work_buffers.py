"""Work buffers that outlive a call: what earlier calls and other threads leave in them changes nothing."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from csrec_dist.losses import FactoredLabels, distillation


def gradients(seed: int, num_examples: int, num_items: int) -> list[Tensor]:
    draws = torch.Generator().manual_seed(seed)
    states, weight = (torch.randn(n, 8, generator=draws).requires_grad_() for n in (num_examples, num_items))
    labels = FactoredLabels(*(torch.randn(n, 16, generator=draws) for n in (num_examples, num_items)))
    targets = torch.randint(1, num_items + 1, (num_examples,), generator=draws)
    distillation(states, weight, targets, labels, temperature=2.0, beta=0.5)[0].backward()
    assert states.grad is not None
    assert weight.grad is not None
    return [states.grad, weight.grad]


def test_a_call_does_not_see_what_larger_smaller_and_other_calls_left() -> None:
    with ThreadPoolExecutor(1) as fresh:
        expected = fresh.submit(gradients, 0, 37, 501).result()
    for num_examples, num_items in [(300, 2000), (1, 3), (37, 501)]:
        gradients(1, num_examples, num_items)
        torch.testing.assert_close(gradients(0, 37, 501), expected, rtol=0, atol=0)


def test_a_first_call_in_inference_mode_leaves_buffers_that_training_can_use() -> None:
    def infer_then_train() -> list[Tensor]:
        weight, targets = torch.ones(50, 4), torch.ones(5, dtype=torch.int64)
        with torch.inference_mode():
            distillation(
                torch.ones(5, 4), weight, targets, FactoredLabels(torch.ones(5, 4), weight), temperature=1.0, beta=0.5
            )
        return gradients(0, 5, 50)

    with ThreadPoolExecutor(1) as fresh:
        found = fresh.submit(infer_then_train).result()
    torch.testing.assert_close(found, gradients(0, 5, 50), rtol=0, atol=0)


def test_threads_have_buffers_of_their_own() -> None:
    expected = [gradients(seed, 200, 1000) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = list(pool.map(gradients, range(4), [200] * 4, [1000] * 4))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
