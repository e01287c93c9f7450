"""launchers/slurm.sbatch on a real Slurm of two nodes: to the end, and through requeues."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from csrec_dist.files import read_json
from tests.helpers.cluster_runs import EPOCHS, arguments, check_equal, said_epochs
from tests.helpers.machines import DEVICE, ROOT
from tests.helpers.ranks import wait_until
from tests.helpers.slurm import MISSING, Slurm, slurm_cluster

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(MISSING), reason=f"not found: {', '.join(MISSING)} (apt-get install slurm-wlm munge)"),
]
SCRIPT = ROOT / "launchers" / "slurm.sbatch"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm_cluster() as slurm:
        yield slurm


def submit(cluster: Slurm, config: Path, folder: Path) -> str:
    """Submit the run, with its folder and its log in `folder`; the job's number."""
    exports = {"PYTHON": sys.executable, "CSREC_ROOT": ROOT, "GLOO_SOCKET_IFNAME": DEVICE}
    export = ",".join(["ALL", *(f"{name}={value}" for name, value in exports.items())])
    options = [f"--chdir={folder}", f"--output={folder}/job.log", f"--export={export}"]
    return cluster.submit(options, SCRIPT, arguments(config, folder))


def check_done(cluster: Slurm, number: str, folder: Path, restarts: int) -> str:
    """The job ends well after so many restarts, on two ranks; its log."""
    job = cluster.wait(number, 180)
    log = (folder / "job.log").read_text()
    assert job["JobState"] == "COMPLETED", log + cluster.logs()
    assert (job["NumNodes"], job["Restarts"]) == ("2", str(restarts)), log
    assert len(read_json(folder / "r/distill.done.json")["usage"]) == 2
    return log


def test_a_job_of_two_nodes_equals_one_process(cluster: Slurm, tmp_path: Path, config: Path, one_process: Path) -> None:
    number = submit(cluster, config, tmp_path)
    log = check_done(cluster, number, tmp_path, restarts=0)
    assert f"job {number}, start 1, 2 nodes (node[0-1]), they meet at {cluster.machines[0].address}:" in log
    for rank in (0, 1):
        assert (
            f"--num_machines 2 --num_processes 2 --main_process_port {20000 + int(number)} --machine_rank {rank}" in log
        )
    check_equal(tmp_path / "r", one_process)


def epochs_of_start(log: Path, start: int) -> list[int]:
    """The numbers of the student's epochs that the job told of since that start."""
    text = log.read_text() if log.exists() else ""
    mark = f", start {start}, 2 nodes"
    return said_epochs(text[text.index(mark) :]) if mark in text else []


def interrupt(cluster: Slurm, log: Path, start: int, *cause: str) -> None:
    """Give the command `cause` in that start's third epoch or later; its last word is the job's number."""
    wait_until(lambda: len(epochs_of_start(log, start)) >= 2, 120, f"two epochs of start {start}")
    cluster.command(*cause)
    wait_until(lambda: int(cluster.job(cause[-1])["Restarts"]) == start, 60, f"the requeue after start {start}")


def test_a_job_goes_on_after_each_requeue(cluster: Slurm, tmp_path: Path, config: Path, one_process: Path) -> None:
    """First by Slurm, as at a preemption; then by the script, told by SIGTERM that the job's time is ending."""
    number = submit(cluster, config, tmp_path)
    log = tmp_path / "job.log"
    interrupt(cluster, log, 1, "scontrol", "requeue", number)
    interrupt(cluster, log, 2, "scancel", "--batch", "--signal=TERM", number)
    text = check_done(cluster, number, tmp_path, restarts=2)
    assert text.count("the job is queued again") == 1
    second, third = epochs_of_start(log, 2), epochs_of_start(log, 3)
    assert third[0] > second[0] > 1, "each start goes on from the newest checkpoint"
    assert third[-1] == EPOCHS
    check_equal(tmp_path / "r", one_process)
