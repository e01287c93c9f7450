"""Launchers over two machines with networks of their own: the same run as one process."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from csrec_dist.files import read_json
from tests.helpers.cluster_runs import EPOCHS, arguments, check_equal, said_epochs, student
from tests.helpers.machines import DEVICE, NAMESPACES, ROOT, Machine, environment, two_machines
from tests.helpers.ranks import wait_until

pytestmark = pytest.mark.cluster
PORT = "29577"  # nobody else is on these networks
SETTINGS = {"PYTHON": sys.executable, "GLOO_SOCKET_IFNAME": DEVICE, "MAIN_PORT": PORT}


def start_nodes(
    machines: tuple[Machine, Machine], folder: Path, command: list[str], **settings: str
) -> list[subprocess.Popen[str]]:
    """Give multinode.sh's command on both machines, each with its rank; the output goes to node0.log and node1.log."""
    options = ["--num-nodes", "2", "--address", machines[0].address, "--processes", "1"]
    nodes = []
    for rank, machine in enumerate(machines):
        words = ["bash", str(ROOT / "launchers" / "multinode.sh"), "--node-rank", str(rank), *options, *command]
        with (folder / f"{machine.name}.log").open("w") as log:
            nodes.append(machine.start(words, env=environment(SETTINGS | settings), stdout=log))
    return nodes


def outputs(nodes: list[subprocess.Popen[str]], folder: Path) -> list[str]:
    """What the nodes printed, when they have ended well."""
    statuses = [node.wait(180) for node in nodes]
    texts = [(folder / f"node{rank}.log").read_text() for rank in range(len(nodes))]
    assert statuses == [0, 0], "\n".join(texts)
    return texts


def check_run(folder: Path, one_process: Path) -> None:
    assert len(read_json(folder / "r/distill.done.json")["usage"]) == 2
    check_equal(folder / "r", one_process)


def test_a_run_on_two_machines_equals_one_process(tmp_path: Path, config: Path, one_process: Path) -> None:
    with two_machines(tmp_path) as machines:
        first, second = outputs(start_nodes(machines, tmp_path, arguments(config, tmp_path)), tmp_path)
    assert "--num_machines 2 --num_processes 2" in first
    assert "Recall@10" in first
    assert "--machine_rank 1" in second
    assert "Recall@10" not in second
    check_run(tmp_path, one_process)


def test_a_killed_rank_comes_back(tmp_path: Path, config: Path, one_process: Path) -> None:
    with two_machines(tmp_path) as machines:
        nodes = start_nodes(machines, tmp_path, arguments(config, tmp_path), MAX_RESTARTS="1")
        wait_until(lambda: len(said_epochs((tmp_path / "node0.log").read_text())) >= 2, 120, "two epochs")
        ranks = [
            process
            for process in psutil.Process(nodes[1].pid).children(recursive=True)
            if "csrec_dist" in process.cmdline() and "accelerate.commands.launch" not in process.cmdline()
        ]
        ranks[0].kill()
        first, _ = outputs(nodes, tmp_path)
    assert "teach done already" in first
    epochs = said_epochs(first[first.index("teach done already") :])
    assert epochs[0] > 1, "it goes on from its newest checkpoint"
    assert epochs[-1] == EPOCHS
    check_run(tmp_path, one_process)


def write_ssh(path: Path, machines: tuple[Machine, Machine]) -> Path:
    """A command with ssh's way of calling that reaches the machines, with the environment of a new login."""
    pids = "".join(f"{machine.name}) pid={machine.pid} ;;\n" for machine in machines)
    path.write_text(
        f"#!/bin/sh\ncase $1 in\n{pids}esac\nshift\n"
        f'exec nsenter --target "$pid" {" ".join(NAMESPACES)} env -i PATH="$PATH" HOME=/root sh -c "$*"\n'
    )
    path.chmod(0o755)
    return path


def hostfile_command(folder: Path, command: list[str]) -> list[str]:
    """The command of deepspeed.sh for both machines."""
    hostfile = folder / "hostfile"
    hostfile.write_text("# the machines\nnode0 slots=1\nnode1 slots=1  # the other\n")
    return ["bash", str(ROOT / "launchers" / "deepspeed.sh"), "--hostfile", str(hostfile), *command]


def over_hostfile(folder: Path, machines: tuple[Machine, Machine], command: list[str]) -> subprocess.Popen[str]:
    """Start deepspeed.sh on this machine, for both others; its output is in a pipe."""
    return subprocess.Popen(
        hostfile_command(folder, command),
        env=environment(SETTINGS | {"SSH": str(write_ssh(folder / "ssh", machines))}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def test_a_run_over_a_hostfile_equals_one_process(tmp_path: Path, config: Path, one_process: Path) -> None:
    with two_machines(tmp_path) as machines:
        started = over_hostfile(tmp_path, machines, arguments(config, tmp_path))
        output = started.communicate(timeout=180)[0]
    assert started.returncode == 0, output
    assert output.count("--address node0") == 2
    check_run(tmp_path, one_process)


def test_a_hostfile_run_that_is_stopped_leaves_nothing_behind(tmp_path: Path, config: Path) -> None:
    with two_machines(tmp_path) as machines:
        started = over_hostfile(tmp_path, machines, arguments(config, tmp_path))
        wait_until((tmp_path / "r" / "config.yaml").exists, 120, "the run's folder")
        started.terminate()
        output = started.communicate(timeout=60)[0]
        left = [machine.run(["ps", "-A", "-o", "args="]) for machine in machines]
    assert started.returncode != 0
    assert output.count("the ranks are told to stop") == 1
    assert "csrec_dist" not in "".join(left)


@contextmanager
def ssh_servers(folder: Path, machines: tuple[Machine, Machine]) -> Iterator[str]:
    """An ssh server on each machine, and the command that reaches them with a key; they end with the machines."""
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True, timeout=30)
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd insists on a folder of its own
    server, client = folder / "sshd_config", folder / "ssh_config"
    server.write_text(
        f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\n"
    )
    client.write_text(
        f"BatchMode yes\nIdentityFile {folder}/user\nUserKnownHostsFile {folder}/known\nStrictHostKeyChecking no\n"
        "LogLevel ERROR\n"
    )
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    servers = [machine.start([program, "-D", "-e", "-f", server]) for machine in machines]
    ssh = f"ssh -F {client}"
    for machine in machines:
        wait_until(partial(_answers, machines[0], [*ssh.split(), machine.name, "true"]), 20, f"sshd of {machine.name}")
    yield ssh
    for each in servers:
        each.kill()
        each.wait(10)


def _answers(machine: Machine, command: list[str]) -> bool:
    return machine.start(command).wait(10) == 0


@pytest.mark.skipif(
    shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") is None, reason="sshd is missing (openssh-server)"
)
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_zero_over_a_hostfile_by_ssh_equals_one_process(tmp_path: Path, config: Path, one_process: Path) -> None:
    zero = ["--set", "distributed.engine=deepspeed"]
    zero += ["--set", f"distributed.deepspeed={ROOT / 'configs/deepspeed/zero2.json'}"]
    with two_machines(tmp_path) as machines, ssh_servers(tmp_path, machines) as ssh:
        words = hostfile_command(tmp_path, [*arguments(config, tmp_path), *zero])
        started = machines[0].start(words, env=environment(SETTINGS | {"SSH": ssh}))
        output = started.communicate(timeout=240)[0]
    assert started.returncode == 0, output
    assert student(tmp_path / "r")["trained_by"] == {
        "engine": "deepspeed", "ranks": [0, 1], "catalog_parallel": 1, "zero_stage": 2,
    }  # fmt: skip
    check_run(tmp_path, one_process)
