"""Processes end with those that started them: runs with their study, ranks with their launcher."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from csrec_dist.processes import Children
from tests.helpers.ranks import wait_until

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 120
TRAINING = "training: {batch_size: 2, max_epochs: 100000, patience: 100000, checkpoint_steps: 2}\n"
STUDY = "title: Three\nconfig: config.yaml\nseeds: [0, 1, 2]\naxes: {method: {Base: {method: base}}}\n"


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

    def is_so_while_it_runs() -> bool:
        assert process.poll() is None, (folder / "said").read_text()
        return is_so()

    wait_until(is_so_while_it_runs, PATIENCE, "what the process does")


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
    (tmp_path / "three.yaml").write_text(STUDY)
    study = start(["csrec_dist", "study", "three.yaml", "--jobs", "2"], tmp_path)
    runs = tmp_path / "studies/three/runs"
    try:
        until(lambda: len(begun(runs)) == 2, study, tmp_path)
    finally:
        children = psutil.Process(study.pid).children(recursive=True)
        study.send_signal(signum)
        ended = have_ended(children)
    assert len(children) == 2
    assert ended
    assert study.wait(PATIENCE) == (-signum if signum == signal.SIGKILL else 128 + signum)
    logs = [log.read_text() for log in runs.glob("*/study.log")]
    assert ["stopped by SIGTERM after step" in log for log in logs] == [True, True], "the third run was not begun"
    if signum != signal.SIGKILL:
        assert f"stopped by {signum.name}; give the same command again to resume" in (tmp_path / "said").read_text()


def test_a_signal_ends_the_children_and_lets_none_start_before_this_process_ends(tmp_path: Path) -> None:
    children, handler = Children(), signal.getsignal(signal.SIGTERM)
    ready, late = tmp_path / "ready", tmp_path / "late"
    wait_for_a_signal = (
        f"import pathlib, signal; signal.alarm({PATIENCE}); pathlib.Path({str(ready)!r}).touch(); signal.pause()"
    )

    def run_two() -> list[int]:
        first = children.run([sys.executable, "-c", wait_for_a_signal], os.environ)
        return [first, children.run(["touch", str(late)], os.environ)]

    def end_both() -> None:
        with children.stopped_by_signals(), ThreadPoolExecutor() as pool:
            statuses = pool.submit(run_two)
            while not ready.exists():
                assert not statuses.done()
            signal.raise_signal(signal.SIGTERM)
            assert statuses.result() == [-signal.SIGTERM, 128 + signal.SIGTERM]

    with pytest.raises(SystemExit) as ended:
        end_both()
    assert ended.value.code == 128 + signal.SIGTERM
    assert not late.exists()
    assert signal.getsignal(signal.SIGTERM) == handler


TWICE = """
import os, pathlib, signal, subprocess, sys, threading, time
from csrec_dist.processes import Children

children, ready, terminate, signals = Children(), pathlib.Path(sys.argv[1]), subprocess.Popen.terminate, []

def signalled_again(process):
    terminate(process)
    signals.append(process)
    if len(signals) == 1:
        signal.raise_signal(signal.SIGTERM)

subprocess.Popen.terminate = signalled_again
command = ["sh", "-c", 'touch "$0"; exec sleep 1000', str(ready)]
with children.stopped_by_signals():
    thread = threading.Thread(target=children.run, args=(command, os.environ))
    thread.start()
    while not ready.exists():
        time.sleep(0.01)
    signal.raise_signal(signal.SIGTERM)
    thread.join()
"""
"""A process with one child that gets a second SIGTERM while it passes the first on."""


def test_a_signal_that_comes_while_another_is_passed_on_hangs_nothing(tmp_path: Path) -> None:
    """In a process of its own, which could not be ended otherwise."""
    program, ready = tmp_path / "program.py", tmp_path / "ready"
    program.write_text(TWICE)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(program), str(ready)], env=environ, timeout=PATIENCE, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert ready.exists()


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


THREAD_IN_THE_STORE = """\
import runpy, sys, threading
import torch.distributed as dist

store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
threading.Thread(target=store.clone().get, args=["a key that nobody sets"], daemon=True).start()
sys.argv[0] = "csrec-dist"
runpy.run_module("csrec_dist", run_name="__main__")
"""


@pytest.mark.launch
def test_a_rank_that_is_done_ends_well_whatever_its_threads_do(tmp_path: Path, config: Path) -> None:
    """A thread that is in C++ as the interpreter ends, as gloo's may be, would have the process aborted."""
    (tmp_path / "rank.py").write_text(THREAD_IN_THE_STORE)
    command = ["torch.distributed.run", "--nproc_per_node", "1", "rank.py", "prepare", "--config", config.name]
    launched = start(command, tmp_path)
    assert launched.wait(PATIENCE) == 0, (tmp_path / "said").read_text()
    assert "prepare wrote" in (tmp_path / "said").read_text(), "what is printed is not lost"


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
