"""A run goes on with the threads that it began with, unless the user says otherwise; both are said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from csrec_dist.cli import main
from csrec_dist.distributed import Runtime
from csrec_dist.files import read_json
from csrec_dist.runs.threads import threads_of_run
from tests.helpers.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]


def compute(folder: Path, runtime: Runtime, threads: int, keep: bool) -> tuple[int, list[str]]:
    """The number of threads within a start of the run by a process that has `threads`, and what is said."""
    said: list[str] = []
    torch.set_num_threads(threads)
    try:
        with threads_of_run(folder, runtime, said.append, keep):
            inside = torch.get_num_threads()
        assert torch.get_num_threads() == threads, "the process has its own number again"
    finally:
        torch.set_num_threads(1)
    return inside, said


def test_a_run_keeps_the_threads_that_it_began_with(tmp_path: Path) -> None:
    runtime = Runtime.start()
    assert compute(tmp_path, runtime, 2, keep=True) == (2, [])
    inside, said = compute(tmp_path, runtime, 1, keep=True)
    assert inside == 2
    assert "resumes with 2 threads, as the run began; to use 1, set OMP_NUM_THREADS=1" in said[0]
    assert read_json(tmp_path / "threads.json")["threads"] == [2]
    inside, said = compute(tmp_path, runtime, 1, keep=False)
    assert inside == 1
    assert "began with 2 threads and resumes with 1" in said[0]
    assert compute(tmp_path, runtime, 3, keep=True)[0] == 1, "what it has done last"


def on_ranks(rank: int, world_size: int, folder: str, threads: list[int]) -> int:
    runtime = Runtime.start()
    inside, _ = compute(Path(folder), runtime, threads[rank], keep=True)
    runtime.close()
    return inside


def test_each_rank_keeps_its_own_number_and_other_ranks_begin_anew(tmp_path: Path) -> None:
    assert run_ranks(on_ranks, 2, str(tmp_path), [2, 3]) == [2, 3]
    assert run_ranks(on_ranks, 2, str(tmp_path), [1, 1]) == [2, 3]
    assert run_ranks(on_ranks, 3, str(tmp_path), [1, 2, 1]) == [1, 2, 1]


@pytest.mark.launch
def test_the_command_line_goes_on_with_the_recorded_threads_on_a_machine_with_fewer_cores(
    tmp_path: Path, small_log: Path
) -> None:
    """Begun on two threads, it goes on in a process that may use one core and was told nothing."""
    config, record = tmp_path / "config.yaml", tmp_path / "runs/r/threads.json"
    dataset = f"{{source: {small_log}, window: 8, min_interactions: 3, num_shards: 4}}"
    config.write_text(f"name: r\noutput: {tmp_path / 'runs'}\ndataset: {dataset}\nmodel: {{name: gru4rec}}\n")
    command = ["distill", "--config", str(config), "--set", "method=base", "--set", "training.max_epochs=1"]
    assert main(["prepare", *command[1:]]) == 0
    assert not record.exists()  # a dataset has the same bits whatever the number of threads
    torch.set_num_threads(2)
    try:
        assert main(command) == 0
    finally:
        torch.set_num_threads(1)
    assert read_json(record)["threads"] == [2]
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    cpu = min(os.sched_getaffinity(0))
    script = f"import os, sys; os.sched_setaffinity(0, {{{cpu}}}); os.execv(sys.argv[1], sys.argv[1:])"
    pinned = [sys.executable, "-c", script, sys.executable, "-m", "csrec_dist", *command]
    environ |= {"PYTHONPATH": str(ROOT), "GOMP_SPINCOUNT": "7"}
    done = subprocess.run(pinned, env=environ, capture_output=True, text=True, check=True, timeout=240)
    assert "resumes with 2 threads, as the run began; to use 1" in done.stdout
    assert read_json(record) == {"threads": [2], "wait_policy": ["gomp_spincount=7"]}
