"""Whole runs on a GPU: the same as on a CPU, over two ranks, on two GPUs by every engine, and cut off in the middle.

They prepare data and write reports, so they need all of csrec_dist's dependencies; tests/test_gpu.py needs few.
"""
# ruff: noqa: E402 (without the packages nothing that needs them is imported)

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

for package in ("datasets", "polars", "scipy", "matplotlib", "tensorboard"):
    pytest.importorskip(package, reason=f"whole runs need {package}, which is not installed")

from safetensors.torch import load_file
from torch import Tensor

from csrec_dist.config import parse_config
from csrec_dist.distributed import Runtime
from csrec_dist.files import read_json
from csrec_dist.models import load
from csrec_dist.runs.pipeline import execute
from csrec_dist.runs.run import Run
from tests.helpers.on_gpu import CPU, assert_near
from tests.helpers.ranks import run_ranks
from tests.helpers.training_streams import at_each_batch

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[1]

RUNS: dict[str, dict[str, Any]] = {
    "softrec": {"method": "softrec"},
    "model_level": {"method": "model_level", "model": {"name": "sasrec", "width": 16, "dropout": 0}},
    "weighted": {
        "method": "model_level",
        "labels": {"combine": "weighted", "weights": [0.3, 0.7]},
        "model": {"name": "srgnn", "width": 8},
    },
    "data_level": {"method": "data_level", "labels": {"combine": "prob_mean"}},
    "training_level": {"method": "training_level", "teachers": {"noise_rank": 4, "noise_refresh": 3}},
    "top_k": {"method": "model_level", "labels": {"form": "topk", "keep": 9}, "training": {"kl": "forward"}},
    "cl4srec": {"method": "softrec", "model": {"name": "cl4srec", "width": 16, "dropout": 0}},
    "dreamrec": {"method": "base", "model": {"name": "dreamrec", "width": 16, "dropout": 0}},
    "graphs": {"method": "model_level", "training": {"cuda_graph": "on"}},
}


def config_values(folder: Path | str, dataset: Path, changes: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "run",
        "output": str(folder),
        "dataset": {"path": str(dataset)},
        "model": {"name": "gru4rec", "width": 16, "dropout": 0},
        "training": {"batch_size": 7, "max_epochs": 2, "learning_rate": 0.01, "schedule": "linear", "log_steps": 1},
    }
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(values.get(key), dict) and key != "model" else value
    return values


def by_command(folder: Path, dataset: Path, changes: dict[str, Any], *, gpu: bool, ranks: int = 1) -> Path:
    """A whole run in a process of its own, or in one for each rank, with or without the GPUs; its folder."""
    config = parse_config(config_values(folder, dataset, changes))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config.to_yaml())
    environment = {key: value for key, value in os.environ.items() if key not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
    environment |= {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "csrec_dist", "run", "--config", str(folder / "config.yaml")]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    return Run.of(config).folder


def curve(run: Path) -> Tensor:
    epochs = read_json(run / "student" / "metrics.json")["epochs"]
    return torch.tensor([[each["loss"], each["cross_entropy"], each["divergence"]] for each in epochs])


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_the_gpu_is_the_run_on_the_cpu(tmp_path: Path, small_dataset: Path, name: str) -> None:
    gpu, cpu = (by_command(tmp_path / str(gpu), small_dataset, RUNS[name], gpu=gpu) for gpu in (True, False))
    assert_near(curve(gpu), curve(cpu), 1e-3)
    weights, expected = (load_file(run / "student/model.safetensors") for run in (gpu, cpu))
    assert_near(weights, expected, 2e-2)
    assert (gpu / "report/report.md").exists()


class CutOffError(Exception):
    """What ends a training in its middle."""


@pytest.mark.parametrize("graphs", ["off", "on"])
def test_a_cut_off_run_goes_on_where_it_was(tmp_path: Path, small_dataset: Path, graphs: str) -> None:
    """Checkpoints are copied from the device while it trains on, and read back to it; dropout is drawn there."""
    model = {"name": "sasrec", "width": 16, "dropout": 0.5}
    changes = {
        "method": "base",
        "model": model,
        "training": {"checkpoint_steps": 4, "max_epochs": 3, "cuda_graph": graphs},
    }
    whole, cut = (parse_config(config_values(tmp_path / name, small_dataset, changes)) for name in ("whole", "cut"))
    execute(whole, Runtime.start())
    left = 9

    def count() -> None:
        nonlocal left
        if left == 0:
            raise CutOffError
        left -= 1

    with at_each_batch(count), pytest.raises(CutOffError):
        execute(cut, Runtime.start(), ["prepare", "distill"])
    assert list((Run.of(cut).folder / "checkpoints/distill").glob("step-*"))
    execute(cut, Runtime.start())
    weights = [(Run.of(config).folder / "student/model.safetensors").read_bytes() for config in (cut, whole)]
    assert weights[0] == weights[1]


SHARED: dict[str, dict[str, Any]] = {
    "ddp": {"method": "model_level"},
    "catalog": {"method": "model_level", "distributed": {"catalog_parallel": 2}},
    "cl4srec": {"method": "base", "model": {"name": "cl4srec", "width": 16, "dropout": 0}},
    "training_level": {"method": "training_level", "distributed": {"catalog_parallel": 2}},
}


def on_two(rank: int, world_size: int, folder: str, dataset: str) -> list[str]:
    """Runs of two ranks on one device; NCCL would refuse that, gloo does not."""
    os.environ["ACCELERATE_USE_CPU"] = "false"
    runtime, devices = Runtime.start(), []
    for name, changes in SHARED.items():
        execute(parse_config(config_values(f"{folder}/{name}", Path(dataset), changes)), runtime)
        devices.append(str(runtime.device))
    return devices


@pytest.fixture(scope="module")
def of_two(small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    devices = run_ranks(on_two, 2, str(folder), str(small_dataset), timeout=300)
    assert devices == [["cuda:0"] * len(SHARED)] * 2
    return folder


@pytest.mark.parametrize("name", SHARED)
def test_two_ranks_on_the_gpu_are_one(of_two: Path, tmp_path: Path, small_dataset: Path, name: str) -> None:
    changes = {key: value for key, value in SHARED[name].items() if key != "distributed"}
    one = by_command(tmp_path, small_dataset, changes, gpu=True)
    assert_near(curve(of_two / name / "run"), curve(one), 1e-3)


ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "catalog": {"catalog_parallel": 2},
    "fsdp": {"engine": "fsdp"},
    "fsdp-catalog": {"engine": "fsdp", "catalog_parallel": 2},
    **{
        f"zero{stage}": {"engine": "deepspeed", "deepspeed": str(ROOT / f"configs/deepspeed/zero{stage}.json")}
        for stage in (1, 2, 3)
    },
}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two ranks over NCCL need two GPUs")
@pytest.mark.parametrize("engine", ENGINES)
def test_two_gpus_are_one_with_every_engine(tmp_path: Path, small_dataset: Path, engine: str) -> None:
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed", reason="ZeRO needs deepspeed, which is not installed")
    changes = {"method": "model_level"}
    two = by_command(tmp_path / "two", small_dataset, changes | {"distributed": ENGINES[engine]}, gpu=True, ranks=2)
    one = by_command(tmp_path / "one", small_dataset, changes, gpu=True)
    assert_near(curve(two), curve(one), 1e-3)


def test_a_model_trained_on_the_gpu_is_read_without_one(tmp_path: Path, small_dataset: Path) -> None:
    run = by_command(tmp_path, small_dataset, {"method": "base"}, gpu=True)
    model = load(run / "student")
    assert next(model.parameters()).device == CPU
    assert model.encode_last(torch.tensor([[1, 2, 3]])).isfinite().all()
