"""Which GPUs the Triton kernels are for, and how they are launched. Triton is imported at the first launch."""

import importlib
import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

ARCHITECTURES = {(9, 0)}
"""Compute capabilities that the kernels' tiles were chosen on."""
_COMPILED: dict[tuple[Any, ...], Any] = {}


def run_on(device: torch.device) -> bool:
    """Whether there are kernels for this device."""
    return device.type == "cuda" and _has_triton() and torch.cuda.get_device_capability(device) in ARCHITECTURES


@cache
def _has_triton() -> bool:
    """torch brings Triton along where it is built for GPUs."""
    return importlib.util.find_spec("triton") is not None


def launch(
    module: str,
    name: str,
    grid: tuple[int, int, int],
    arguments: list[Any],
    constants: dict[str, Any],
    warps: int,
    stages: int,
) -> None:
    """Launch a kernel of a module, compiled or loaded at its first call for these types and constants.

    Later calls go to the compiled kernel: Triton's own way there takes the host about as long as eight operations of
    torch, longer than a GPU takes for a piece.
    """
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    # Triton compiles for types, and for whether an address is a multiple of 16.
    kinds = ((tensor.dtype, tensor.data_ptr() % 16 == 0) for tensor in tensors)
    key = (module, name, *constants.values(), warps, stages, *kinds, tensors[0].device)
    if compiled := _COMPILED.get(key):
        compiled[grid](*arguments, *constants.values())
    else:
        kernel = getattr(importlib.import_module(module), name)
        _COMPILED[key] = kernel[grid](*arguments, **constants, num_warps=warps, num_stages=stages)
