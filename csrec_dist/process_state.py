"""What a run sets in its process, and leaves as it was: torch's modes, random states, warnings, the environment."""

import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from csrec_dist.options import MatmulPrecision


@contextmanager
def variables(values: Mapping[str, str | None]) -> Iterator[None]:
    """Within the block environment variables have these values, or are absent where the value is None."""
    before = {name: os.environ.get(name) for name in values}
    _set_variables(values)
    try:
        yield
    finally:
        _set_variables(before)


def _set_variables(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within the block sums are taken in the same order every time, or else as threads come; begin before a GPU's use.

    torch would also fill every new tensor in this mode; nothing here reads what was not written, so that is left out.
    """
    modes = torch.utils.deterministic
    is_filling = modes.fill_uninitialized_memory  # type: ignore[attr-defined]
    mode = torch.get_deterministic_debug_mode()
    cublas = os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8" if wanted else None)
    with variables({"CUBLAS_WORKSPACE_CONFIG": cublas}):
        try:
            # Not use_deterministic_algorithms, which sets torch.compile's own mode too, and nothing sets that back.
            torch.set_deterministic_debug_mode("error" if wanted else "default")
            modes.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            yield
        finally:
            torch.set_deterministic_debug_mode(mode)
            modes.fill_uninitialized_memory = is_filling  # type: ignore[attr-defined]


@contextmanager
def restored(device: torch.device) -> Iterator[None]:
    """After the block torch's random states on the host and this device, and the filters of warnings, are as before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), warnings.catch_warnings():
        yield


@cache
def described_processor() -> str:
    """What Linux says of the processor, its vendor and instructions among it; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


@cache
def onednn_is_as_exact() -> bool:
    """Whether oneDNN multiplies fp32 matrices as exactly as MKL, and about twice as fast: on AMD's with AVX-512.

    MKL takes no more than AVX2 there. torch leaves fp32 products to oneDNN only where it may round factors to bf16,
    which oneDNN does with AMX alone, as far as is known: so a product is made whose factors bf16 would round to 1.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or "AuthenticAMD" not in described_processor():
        return False
    backend = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, backend.fp32_precision = backend.fp32_precision, "bf16"
    try:
        with torch.autocast("cpu", enabled=False), torch.no_grad():
            factor = torch.full((64, 64), 1 + 2**-12, dtype=torch.float32, device="cpu")
            return bool((factor @ factor > 64).all())
    finally:
        backend.fp32_precision = before


@cache
def cpu_multiplies_bf16() -> bool:
    """Whether the processor has products of bf16 numbers that are summed in fp32."""
    return "avx512_bf16" in described_processor()


class _CuDNN:
    """Recurrent layers and convolutions of cuDNN, set together and with torch's older flag for both, which defaults to
    TF32; torch refuses to read that flag where the three disagree."""

    @property
    def fp32_precision(self) -> tuple[bool | None, str, str]:
        """The older flag if it can be read, and the two settings."""
        cudnn: Any = torch.backends.cudnn
        try:
            is_tf32 = cudnn.allow_tf32
        except RuntimeError:
            is_tf32 = None
        return is_tf32, cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision

    @fp32_precision.setter
    def fp32_precision(self, value: str | tuple[bool | None, str, str]) -> None:
        cudnn: Any = torch.backends.cudnn
        is_tf32, of_rnn, of_conv = (value == "tf32", value, value) if isinstance(value, str) else value
        if is_tf32 is not None:
            cudnn.allow_tf32 = is_tf32
        cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision = of_rnn, of_conv


class _Products:
    """How a backend multiplies fp32 matrices: one setting for the process, which several threads may want at once."""

    def __init__(self, backend: Any) -> None:
        self._backend, self._lock = backend, threading.Lock()
        self._wanted: list[list[str]] = []
        self._outside: Any = None

    @contextmanager
    def set_to(self, precision: str) -> Iterator[None]:
        """Within the block it is set so; then as the block around it wants it, or as it was outside of all."""
        own = [precision]
        with self._lock:
            if not self._wanted:
                self._outside = self._backend.fp32_precision
            self._wanted.append(own)
            self._backend.fp32_precision = precision
        try:
            yield
        finally:
            with self._lock:
                self._wanted = [each for each in self._wanted if each is not own]
                self._backend.fp32_precision = self._wanted[-1][0] if self._wanted else self._outside


_GPU_PRODUCTS = _Products(torch.backends.cuda.matmul)
_GPU_LAYERS = _Products(_CuDNN())
_CPU_PRODUCTS = _Products(torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]


@contextmanager
def matmul_precision(precision: MatmulPrecision) -> Iterator[None]:
    """Within the block torch multiplies fp32 matrices in fp32 ("highest"), or less exactly where that is faster.

    On a GPU "high" and "medium" are TF32: torch has no bf16 products of fp32 matrices there. On a CPU all are fp32.
    cuDNN's recurrent layers and convolutions, which torch leaves to TF32, are fp32 whatever the precision is.
    """
    with (
        _GPU_PRODUCTS.set_to("ieee" if precision == "highest" else "tf32"),
        _GPU_LAYERS.set_to("ieee"),
        _CPU_PRODUCTS.set_to("bf16" if onednn_is_as_exact() else "ieee"),
    ):
        yield


@contextmanager
def small_products() -> Iterator[None]:
    """Within the block a CPU multiplies fp32 matrices by MKL, which begins a product some microseconds sooner."""
    with _CPU_PRODUCTS.set_to("ieee"):
        yield
