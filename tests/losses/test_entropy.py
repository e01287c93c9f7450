"""The entropy of soft labels against its definition, in float64 and of dense probabilities."""

import math

import pytest
import torch

from csrec_dist.losses.entropy import label_entropy
from csrec_dist.losses.soft_labels import DenseLabels, FactoredLabels, MixtureLabels, SoftLabels
from csrec_dist.losses.tiles import choose_tiling
from csrec_dist.losses.top_k_labels import TopKLabels

N, V, K = 7, 40, 6
TEMPERATURE = 2.0


def logits(seed: int) -> torch.Tensor:
    return 6 * torch.randn(N, V, generator=torch.Generator().manual_seed(seed))


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    return -torch.special.xlogy(probabilities.double(), probabilities.double()).sum(1)


def probabilities(seed: int) -> torch.Tensor:
    return (logits(seed).double() / TEMPERATURE).softmax(1)


def factored(seed: int) -> FactoredLabels:
    """Labels with those logits: an identity for item vectors, and a bias that is taken from the states."""
    bias = torch.linspace(-1, 1, V)
    return FactoredLabels(logits(seed) - bias, torch.eye(V), bias)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (DenseLabels(logits(0)), probabilities(0)),
        (factored(1), probabilities(1)),
        (
            MixtureLabels((factored(2), DenseLabels(logits(3))), (0.25, 0.75)),
            0.25 * probabilities(2) + 0.75 * probabilities(3),
        ),
    ],
    ids=["dense", "factored", "mixture"],
)
def test_the_entropy_is_that_of_the_definition(labels: SoftLabels, expected: torch.Tensor) -> None:
    torch.testing.assert_close(label_entropy(labels, TEMPERATURE).double(), entropy(expected), rtol=1e-4, atol=1e-5)


def test_its_ends_are_one_item_and_all_alike() -> None:
    one, alike = torch.full((1, V), -1e4), torch.zeros(1, V)
    one[0, 3] = 1e4
    assert label_entropy(DenseLabels(one), 1.0).item() == 0
    assert label_entropy(DenseLabels(one[:0]), 1.0).shape == (0,)
    assert label_entropy(DenseLabels(alike), 1.0).item() == pytest.approx(math.log(V), rel=1e-6)


def test_items_that_are_not_kept_count_as_one() -> None:
    found, rest = logits(4).topk(K), probabilities(4).topk(K).values
    sums = (logits(4).double() / TEMPERATURE).logsumexp(1).float()
    labels = TopKLabels(found.values, found.indices + 1, sums, TEMPERATURE, V)
    merged = torch.cat([rest, 1 - rest.sum(1, keepdim=True)], dim=1)
    torch.testing.assert_close(label_entropy(labels, TEMPERATURE).double(), entropy(merged), rtol=1e-3, atol=1e-4)
    assert (entropy(merged) <= entropy(probabilities(4))).all()


def test_a_large_catalog_is_read_by_tiles() -> None:
    generator = torch.Generator().manual_seed(5)
    states, weight = torch.randn(300, 2, generator=generator), torch.randn(30_000, 2, generator=generator)
    tiling = choose_tiling(300, 30_000, 1, torch.float32, states.device)
    assert len(list(tiling.item_slices())) > 1
    assert len(list(tiling.row_blocks())) > 1
    expected = torch.cat([entropy((part.double() @ weight.double().T).softmax(1)) for part in states.split(50)])
    found = label_entropy(FactoredLabels(states, weight), 1.0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
