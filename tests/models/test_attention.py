"""Which of torch's kernels computes attention on a CPU where oneDNN multiplies."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from csrec_dist import models
from csrec_dist.models import SequentialModel

HISTORIES = torch.tensor([[1, 2, 3, 0], [4, 5, 6, 7]])


class BlockwiseAttention(TorchDispatchMode):
    """Notes in which precision products were made at each call of the kernel that computes attention in blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.precisions: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "flash_attention" in str(function):
            self.precisions.append(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]
        return function(*args, **(kwargs or {}))


@pytest.fixture
def by_onednn() -> Iterator[None]:
    backend = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, backend.fp32_precision = backend.fp32_precision, "bf16"
    yield
    backend.fp32_precision = before


def model(name: str) -> SequentialModel:
    config = models.config_class(name).model_validate({"name": name, "width": 8, "num_heads": 2, "dropout": 0})
    return models.build(config, 9, 4, seed=0)


@pytest.mark.usefixtures("by_onednn")
@pytest.mark.parametrize("name", ["bert4rec", "sasrec"])
def test_blocks_are_multiplied_by_mkl(name: str) -> None:
    with BlockwiseAttention() as attention, torch.no_grad():
        model(name).eval().encode_last(HISTORIES)
    assert set(attention.precisions) == {"ieee"}
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"  # type: ignore[attr-defined]


@pytest.mark.usefixtures("by_onednn")
@pytest.mark.parametrize("name", ["bert4rec", "sasrec"])
def test_training_computes_attention_by_whole_products(name: str) -> None:
    with BlockwiseAttention() as attention:
        model(name).train().encode_last(HISTORIES).sum().backward()
    assert attention.precisions == []


@pytest.mark.parametrize("name", ["bert4rec", "sasrec"])
def test_elsewhere_torch_chooses(name: str) -> None:
    with BlockwiseAttention() as attention:
        model(name).train().encode_last(HISTORIES).sum().backward()
    assert attention.precisions
