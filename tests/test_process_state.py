"""A run leaves the process as it was: whether it ends well or with an error, on one rank and on two."""

import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csrec_dist import CSRec, Dataset
from csrec_dist.config import load_config, parse_config
from csrec_dist.distributed import Runtime
from csrec_dist.errors import UserError
from csrec_dist.models import SequentialModel, TrainingInputs, TrainingStates, model_class
from csrec_dist.models.gru4rec import GRU4Rec
from csrec_dist.process_state import matmul_precision, onednn_is_as_exact, small_products, variables
from csrec_dist.runs.pipeline import execute
from tests.helpers.ranks import run_ranks
from tests.helpers.shop import DATASET, MODEL, TRAINING, shop_log

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
name: r
output: {output}
dataset: {{source: {log}, window: 8, min_interactions: 3, num_shards: 4}}
model: {{name: gru4rec, width: 8, hidden: 8, dropout: 0.2}}
teachers: {{num: 2}}
training: {{max_epochs: 1, batch_size: 8, precision: bf16}}
"""


def state() -> dict[str, Any]:
    """The settings of this process that a library may change, by name.

    Without sys.excepthook: where a launcher started the process, torch has its tracebacks name the rank from then on.
    """
    loggers = {name: logging.getLogger(name) for name in [None, *logging.root.manager.loggerDict]}
    backends = torch.backends
    return {
        "environment": dict(os.environ),
        "working folder": os.getcwd(),
        "hooks": (sys.displayhook, threading.excepthook, sys.stdout, sys.stderr),
        "threads of Python": {thread.name for thread in threading.enumerate()},
        "signal handlers": {each: signal.getsignal(each) for each in signal.valid_signals()},
        "warnings": (list(warnings.filters), warnings.showwarning),
        "logging": {name: (each.level, each.disabled, list(each.handlers)) for name, each in loggers.items()},
        "random": random.getstate(),
        "numpy's random": np.random.get_state()[1].tolist(),
        "torch's random": torch.get_rng_state().tolist(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "deterministic compilation": torch._inductor.config.deterministic,
        "filled memory": torch.utils.deterministic.fill_uninitialized_memory,
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "matrix products": (torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32),
        "matrix products on the CPU": backends.mkldnn.matmul.fp32_precision,
        "cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic),
        "cudnn's layers": (backends.cudnn.allow_tf32, *layers_of_cudnn()),
        "mkldnn": backends.mkldnn.enabled,
    }


def layers_of_cudnn() -> tuple[str, str]:
    cudnn: Any = torch.backends.cudnn
    return cudnn.rnn.fp32_precision, cudnn.conv.fp32_precision


def changes(work: Callable[[], object]) -> dict[str, str]:
    """What is other after the work; a logger that was not there before was not changed."""
    before, known = state(), threading.enumerate()
    work()
    for thread in set(threading.enumerate()).difference(known):
        thread.join(timeout=10)  # one that was told to end may need a moment
    after = state()
    after["logging"] = {name: after["logging"][name] for name in before["logging"]}
    return {name: difference(before[name], after[name]) for name in before if before[name] != after[name]}


def difference(before: Any, after: Any) -> str:
    """Two values in words; of two dicts what they have not in common."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        before, after = ({name: each.get(name) for name in names} for each in (before, after))
    return f"{before} → {after}"


@contextmanager
def broken_training() -> Iterator[None]:
    """Within the block the third step of a training raises ArithmeticError."""
    real, steps = GRU4Rec.training_states, count()

    def training_states(model: GRU4Rec, inputs: TrainingInputs) -> TrainingStates:
        if next(steps) == 2:
            raise ArithmeticError("broken")
        return real(model, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRU4Rec, "training_states", training_states)
        yield


def run_on_rank(rank: int, world_size: int, config: str, is_broken: bool, *settings: str) -> dict[str, str]:
    """What a run changes in its process, whose settings are others than the run's."""
    if "distributed.engine=deepspeed" in settings:  # its import adds to the environment
        with variables({"DS_ACCELERATOR": "cpu"}):
            import deepspeed  # noqa: F401
    torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = True
    os.environ["ACCELERATE_USE_FSDP"] = "false"

    def work() -> None:
        runtime = Runtime.start()
        if is_broken:
            with broken_training(), pytest.raises(ArithmeticError, match="broken"):
                execute(load_config(config, settings), runtime)
        else:
            execute(load_config(config, settings), runtime)
        runtime.close()

    return changes(work)


@pytest.fixture
def config(small_log: Path, tmp_path: Path) -> str:
    """The path of the run's config."""
    (tmp_path / "config.yaml").write_text(CONFIG.format(output=tmp_path, log=small_log))
    return str(tmp_path / "config.yaml")


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("is_broken", [False, True])
@pytest.mark.parametrize("order", ["true", "false"])
def test_a_run_leaves_the_process_as_it_was(world_size: int, is_broken: bool, order: str, config: str) -> None:
    setting = f"distributed.deterministic={order}"
    assert run_ranks(run_on_rank, world_size, config, is_broken, setting) == [{}] * world_size


@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
def test_every_engine_leaves_the_process_as_it_was(engine: str, config: str) -> None:
    settings = [f"distributed.engine={engine}"]
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
        settings += [f"distributed.deepspeed={ROOT}/configs/deepspeed/zero1.json", "training.precision=fp32"]
    assert run_ranks(run_on_rank, 2, config, False, *settings) == [{}] * 2


def api_on_rank(rank: int, world_size: int, folder: str) -> dict[str, str]:
    """What a notebook's cells, or a script's lines on all ranks, change in their process."""
    os.chdir(folder)
    torch.set_deterministic_debug_mode("warn")
    torch.manual_seed(5)

    def work() -> None:
        data = Dataset.prepare(shop_log(), "data/shop", **DATASET)
        run = CSRec("shop", MODEL, training=TRAINING).fit(data)
        run.evaluate(top_n=[2])
        run.report()
        rec = run.recommender
        rec.recommend(users=["c1"], top_n=2)
        rec.similar_items(["sku1"], top_n=2)
        rec.save_pretrained("saved")
        with pytest.raises(UserError):
            CSRec("shop", MODEL, training=TRAINING | {"beta": 0.1}).fit(data)

    return changes(work)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_python_api_leaves_the_process_as_it_was(world_size: int, tmp_path: Path) -> None:
    assert run_ranks(api_on_rank, world_size, str(tmp_path)) == [{}] * world_size


def test_blocks_of_two_threads_leave_the_precision_as_it_was() -> None:
    """Whichever ends first: each would put back what it found, and the other's setting would stay."""
    backend = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = backend.fp32_precision
    for ends_first in (0, 1):
        blocks = [matmul_precision("highest"), small_products()]
        for block in blocks:
            block.__enter__()
        assert backend.fp32_precision == "ieee"
        blocks[ends_first].__exit__(None, None, None)
        inner = "ieee" if ends_first == 0 or not onednn_is_as_exact() else "bf16"
        assert backend.fp32_precision == inner
        blocks[1 - ends_first].__exit__(None, None, None)
        assert backend.fp32_precision == before


@pytest.mark.parametrize(("precision", "expected"), [("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")])
def test_products_on_a_gpu_have_their_precision_within_the_block(precision: Any, expected: str) -> None:
    backend = torch.backends.cuda.matmul
    before = backend.fp32_precision
    try:
        backend.fp32_precision = "tf32"
        with matmul_precision(precision):
            assert backend.fp32_precision == expected
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("outside", ["tf32", "ieee", "mixed"])
def test_cudnns_layers_are_fp32_within_the_block(precision: Any, outside: str) -> None:
    cudnn: Any = torch.backends.cudnn
    assert cudnn.allow_tf32, "torch's default"
    try:
        cudnn.allow_tf32 = outside == "tf32"
        if outside == "mixed":
            cudnn.rnn.fp32_precision = "tf32"
        before = layers_of_cudnn()
        with matmul_precision(precision):
            assert layers_of_cudnn() == ("ieee", "ieee")
            assert not cudnn.allow_tf32, "torch refuses to say where its settings disagree"
        assert layers_of_cudnn() == before
    finally:
        cudnn.allow_tf32 = True
    assert layers_of_cudnn() == ("tf32", "tf32")


@pytest.mark.parametrize("name", ["gru4rec", "bert4rec"])
def test_a_model_trains_in_fp32_whatever_the_process_is_set_to(
    name: str, small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen from a forward pass in training."""
    kind, matmul, seen = model_class(name), torch.backends.mkldnn.matmul, []
    real = kind.training_states

    def training_states(model: SequentialModel, inputs: TrainingInputs) -> TrainingStates:
        seen.append((matmul.fp32_precision, *layers_of_cudnn()))
        return real(model, inputs)

    monkeypatch.setattr(kind, "training_states", training_states)
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "bf16"
        values = {"name": "r", "output": str(tmp_path), "dataset": {"path": str(small_dataset)}, "method": "base"}
        values |= {"model": {"name": name, "width": 8}, "training": {"batch_size": 8, "max_steps": 2}}
        execute(parse_config(values), Runtime.start())
    finally:
        matmul.fp32_precision = before
    if name == "bert4rec":  # on a CPU, where cuDNN is not asked
        assert {precision for precision, *_ in seen} == {"ieee"}
    else:
        assert set(seen) == {("bf16" if onednn_is_as_exact() else "ieee", "ieee", "ieee")}


@pytest.mark.parametrize("as_exact", [False, True])
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_on_a_cpu_go_to_onednn_where_they_may(
    precision: Any, as_exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csrec_dist.process_state.onednn_is_as_exact", lambda: as_exact)
    backend = torch.backends.mkldnn.matmul
    before = backend.fp32_precision
    with matmul_precision(precision):
        assert backend.fp32_precision == ("bf16" if as_exact else "ieee")
    assert backend.fp32_precision == before


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize(
    ("processor", "capability"), [("AuthenticAMD", "AVX512"), ("GenuineIntel", "AVX512"), ("AuthenticAMD", "AVX2")]
)
def test_onednn_is_as_exact_on_amd_with_avx512_unless_it_rounds(
    rounds: bool, processor: str, capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csrec_dist.process_state.described_processor", lambda: processor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    dtype = torch.bfloat16 if rounds else torch.float64
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda one, other: one.to(dtype).mm(other.to(dtype)).float())
    before = torch.backends.mkldnn.matmul.fp32_precision
    expected = (rounds, processor, capability) == (False, "AuthenticAMD", "AVX512")
    assert onednn_is_as_exact.__wrapped__() is expected
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize(("rows", "columns", "inner"), [(243, 3646, 64), (7, 33, 5), (300, 128, 256), (64, 4096, 130)])
def test_products_on_a_cpu_are_as_exact_as_fp32(precision: Any, rows: int, columns: int, inner: int) -> None:
    draws = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, inner, generator=draws) for size in (rows, columns))
    longer = torch.randn(rows, columns, generator=draws)
    with matmul_precision(precision):
        pairs = [(left @ right.T, left, right.T), (longer @ right, longer, right), (longer.T @ left, longer.T, left)]
    for product, first, second in pairs:
        exact = first.double() @ second.double()
        bound = first.double().abs() @ second.double().abs()
        # Rounding the factors to bf16 leaves an error of about 2⁻⁹ of the bound over √K.
        assert ((product - exact).abs() / bound).max() < 2**-20
