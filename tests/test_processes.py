"""Processes end with those that started them: runs with their study, ranks with their launcher."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120
TRAINING = "training: {batch_size: 2, max_epochs: 100000, patience: 100000, checkpoint_steps: 2}\n"
STUDY = "title: Two\nconfig: config.yaml\nseeds: [0, 1]\naxes: {method: {Base: {method: base}}}\n"


@pytest.fixture
def config(tmp_path: Path, small_log: Path) -> Path:
    """A run that is not done before the test is."""
    path = tmp_path / "config.yaml"
    dataset = f"{{source: {small_log}, window: 8, min_interactions: 3, num_shards: 4}}"
    path.write_text(f"name: r\ndataset: {dataset}\nmodel: {{name: gru4rec, width: 8}}\nmethod: base\n{TRAINING}")
    return path


def start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    environ = {key: value for key, value in os.environ.items() if key not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
    environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(folder / "said", "a") as said:
        return subprocess.Popen([sys.executable, "-m", *command], cwd=folder, env=environ, stdout=said, stderr=said)


def until(is_so: Callable[[], bool], process: subprocess.Popen[bytes], folder: Path) -> None:
    """Look until something is so, while a process runs."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert process.poll() is None, (folder / "said").read_text()
        assert time.monotonic() < deadline, (folder / "said").read_text()
        time.sleep(0.02)


def begun(runs: Path) -> set[Path]:
    """The runs of a folder that have a checkpoint."""
    return {path.parents[2] for path in runs.glob("*/checkpoints/distill/step-*")}


def have_ended(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    for process in alive:
        process.kill()
    return not alive


@pytest.mark.launch
@pytest.mark.parametrize(
    "signum",
    [signal.SIGTERM, signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.long)],
    ids=["SIGTERM", "SIGKILL", "SIGINT"],
)
def test_the_runs_of_a_study_end_with_it_and_leave_checkpoints(
    tmp_path: Path, config: Path, signum: signal.Signals
) -> None:
    (tmp_path / "two.yaml").write_text(STUDY)
    study = start(["csrec_dist", "study", "two.yaml", "--jobs", "2"], tmp_path)
    runs = tmp_path / "studies/two/runs"
    try:
        until(lambda: len(begun(runs)) == 2, study, tmp_path)
    finally:
        children = psutil.Process(study.pid).children(recursive=True)
        study.send_signal(signum)
        ended = have_ended(children)
    assert len(children) == 2
    assert ended
    assert study.wait(PATIENCE) == (-signum if signum == signal.SIGKILL else 128 + signum)
    for log in runs.glob("*/study.log"):
        assert "stopped by SIGTERM after step" in log.read_text()
    if signum != signal.SIGKILL:
        assert f"stopped by {signum.name}; give the same command again to resume" in (tmp_path / "said").read_text()


TORCHRUN = ["torch.distributed.run", "--nproc_per_node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--mixed_precision", "no", "--dynamo_backend", "no", "--num_machines", "1"]


@pytest.mark.launch
@pytest.mark.parametrize(
    ("launcher", "num_ranks"),
    [
        (TORCHRUN, 2),
        pytest.param(
            [*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"], 2, marks=pytest.mark.long
        ),
        ([*ACCELERATE, "--num_processes", "1"], 1),
    ],
    ids=["torchrun", "accelerate", "accelerate-one"],
)
def test_ranks_end_with_a_killed_launcher_and_the_same_command_goes_on(
    tmp_path: Path, config: Path, launcher: list[str], num_ranks: int
) -> None:
    command = [*launcher, "-m", "csrec_dist", "run", "--config", config.name]
    for text in ("", "continues at epoch"):
        launched = start(command, tmp_path)
        try:
            until(lambda: bool(begun(tmp_path / "runs")), launched, tmp_path)
            until(lambda text=text: text in (tmp_path / "said").read_text(), launched, tmp_path)
        finally:
            ranks = psutil.Process(launched.pid).children()
            launched.kill()
            ended = have_ended(ranks)
        assert len(ranks) == num_ranks
        assert ended
        launched.wait(PATIENCE)


SIGNAL_AT_PARENT_S_END = """\
import ctypes
from csrec_dist.processes import end_with_parent

end_with_parent()
signum = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(signum))  # PR_GET_PDEATHSIG
print("signal at the parent's end:", signum.value)
"""


@pytest.mark.launch
@pytest.mark.parametrize(
    ("command", "signum"),
    [
        (["PYTHON", "-m", *ACCELERATE, "--num_processes", "1", "child.py"], signal.SIGTERM),
        (["accelerate", "launch", *ACCELERATE[1:], "--num_processes", "1", "child.py"], signal.SIGTERM),
        (["accelerate-launch", *ACCELERATE[1:], "--num_processes", "1", "child.py"], signal.SIGTERM),
        pytest.param(
            ["PYTHON", "-m", "deepspeed.launcher.runner", "--num_gpus", "1", "--no_local_rank", "child.py"],
            signal.SIGTERM,
            marks=pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
        ),
        (
            ["PYTHON", "-m", *ACCELERATE, "--num_processes", "1", "--no_python", "sh", "-c", "PYTHON child.py; true"],
            0,
        ),
        (["sh", "-c", "PYTHON child.py; true", "accelerate"], 0),
        (["PYTHON", "parent.py", "accelerate", "launch"], 0),
    ],
    ids=["module", "command", "script", "deepspeed", "shell-below-a-launcher", "shell", "another-program"],
)
def test_only_the_child_of_a_launcher_ends_with_its_parent(tmp_path: Path, command: list[str], signum: int) -> None:
    """A launcher's variables, or its name among the arguments, do not make a parent a launcher."""
    (tmp_path / "child.py").write_text(SIGNAL_AT_PARENT_S_END)
    (tmp_path / "parent.py").write_text("import subprocess, sys\nsubprocess.run([sys.executable, 'child.py'])\n")
    environ = {key: value for key, value in os.environ.items() if key not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
    environ |= {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environ["ACCELERATE_MIXED_PRECISION"] = "no"
    words = [word.replace("PYTHON", sys.executable) for word in command]
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=PATIENCE)
    assert f"signal at the parent's end: {int(signum)}\n" in done.stdout, done.stderr
