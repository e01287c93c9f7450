"""Fixtures shared by all tests."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: processes that tests start inherit it
if os.environ.get("CSREC_GPU_TESTS") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests start ranks that must all compute on CPUs
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read where kernels are defined
else:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the GPU is first used, as by a run

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# The same drawn inputs in every run, and no time limit on a machine that may be busy.
settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.load_profile("same")

ON_GPU = os.environ.get("CSREC_GPU_TESTS") == "1"
DATA = Path(os.environ.get("CSREC_TEST_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data")).resolve()


@pytest.fixture(autouse=True)
def models_of_ours() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    yield
    if registry := sys.modules.get("csrec_dist.models.registry"):
        for name in [
            name for name, model in registry.MODELS.items() if model.__module__ != f"csrec_dist.models.{name}"
        ]:
            del registry.MODELS[name], registry.CONFIGS[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what takes longest, unless it is asked for, and with a GPU all but what needs one."""
    if ON_GPU and not torch.cuda.is_available():
        raise pytest.UsageError("CSREC_GPU_TESTS=1 asks for tests on a GPU, but torch finds no CUDA device")
    for item in items:
        if ON_GPU and not item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="CSREC_GPU_TESTS=1 asks for tests on a GPU only"))
        if not ON_GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="tests on a GPU are asked for by CSREC_GPU_TESTS=1"))
    if os.environ.get("CSREC_LONG_TESTS") != "1":
        skip = pytest.mark.skip(reason="minutes of whole runs on many ranks are asked for by CSREC_LONG_TESTS=1")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def test_data() -> Callable[[str], Path]:
    """A function from a real log's name to its folder; the test is skipped where the log is missing."""

    def find(name: str) -> Path:
        folder = DATA / name
        if not folder.is_dir():
            pytest.skip(f"the real log {name} is not in {DATA} (set CSREC_TEST_DATA)")
        return folder

    return find


@pytest.fixture(scope="session")
def small_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV log of 40 users and 30 items, in which the next item mostly follows from the last one."""
    random = np.random.default_rng(7)
    lines = ["user,item,rating,timestamp"]
    for user in range(40):
        item = int(random.integers(30))
        for time in range(int(random.integers(6, 19))):
            lines.append(f"u{user},i{item},{random.integers(1, 6)},{time}")
            item = (item + 1) % 30 if random.random() < 0.8 else int(random.integers(30))
    path = tmp_path_factory.mktemp("log") / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def small_dataset(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small log, prepared: windows of 8, five shards."""
    # Imported here: tests on a GPU do without what only preparing and whole runs need.
    from csrec_dist.data.options import DatasetOptions
    from csrec_dist.data.prepare import prepare

    folder = tmp_path_factory.mktemp("prepared") / "dataset"
    prepare(DatasetOptions(source=str(small_log), min_interactions=3, window=8, num_shards=5), folder)
    return folder


@pytest.fixture(scope="session")
def finished_run(small_log: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The config and the folder of a finished run, which no test changes."""
    from tests.helpers.finished_runs import finish_run

    return finish_run(tmp_path_factory.mktemp("finished"), small_log)


@pytest.fixture
def run_copy(finished_run: tuple[Path, Path], tmp_path: Path) -> tuple[list[str], Path]:
    """Arguments and folder of a copy of the finished run."""
    config, folder = finished_run
    shutil.copytree(folder, tmp_path / "r")
    return ["--config", str(config), "--set", f"output={tmp_path}"], tmp_path / "r"
