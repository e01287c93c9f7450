"""What tests on a GPU share: devices, and comparing what lies on them."""

from typing import Any

import torch
from torch import Tensor

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def assert_near(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Tensors on any device, in nests of dictionaries and lists."""
    torch.testing.assert_close(to_cpu(found), to_cpu(expected), rtol=tolerance, atol=tolerance)


def to_cpu(value: Any) -> Any:
    """The same with all tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: to_cpu(each) for key, each in value.items()}
    return [to_cpu(each) for each in value] if isinstance(value, list | tuple) else value
