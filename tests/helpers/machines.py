"""Two machines on one: each has a network, host name and processes of its own; a pair of veth devices joins them."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEVICE = "veth0"
ADDRESSES = ("10.213.0.1", "10.213.0.2")
NAMESPACES = ("--net", "--pid", "--mount", "--uts")
TOOLS = ("ip", "unshare", "nsenter", "setpriv")


@dataclass(frozen=True)
class Machine:
    """A machine: the process that holds its namespaces, and how others reach it."""

    pid: int
    name: str
    address: str

    def inside(self, command: Sequence[str | Path]) -> list[str]:
        """The command that runs `command` on this machine, in the caller's folder."""
        folder = f"--wdns={Path.cwd()}"
        return ["nsenter", "--target", str(self.pid), *NAMESPACES, folder, *map(str, command)]

    def start(self, command: Sequence[str | Path], **options: Any) -> subprocess.Popen[str]:
        """Start `command` on this machine, its output as text in one pipe unless `options` say otherwise."""
        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL, "text": True}
        return subprocess.Popen(self.inside(command), **(settings | options))

    def run(self, command: Sequence[str | Path]) -> str:
        """The output of a short `command` on this machine; its failure fails the test."""
        done = subprocess.run(self.inside(command), capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr}"
        return done.stdout


@contextmanager
def two_machines(folder: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two joined machines with the files of this one, named node0 and node1.

    All that runs on them ends with them, and they end with the test's process, however it ends. The test is skipped
    unless CSREC_CLUSTER_TESTS is 1, and where this process may not make them.
    """
    if os.environ.get("CSREC_CLUSTER_TESTS") != "1":
        pytest.skip("minutes of tests of clusters are asked for by CSREC_CLUSTER_TESTS=1, as .ci/run does")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"machines are made by root with {', '.join(TOOLS)}; missing: {', '.join(missing) or 'root'}")
    with ExitStack() as stack:
        pids = [_child(stack.enter_context(_holder())) for _ in ADDRESSES]
        yield _join(pids, folder)


@contextmanager
def _holder() -> Iterator[subprocess.Popen[str]]:
    """A process with namespaces of its own; with it, the first process in them and so all others are killed."""
    die_with_parent = ["setpriv", "--pdeathsig", "KILL"]
    unshare = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc"]
    reap_and_wait = ["sh", "-c", "echo ready; sleep infinity & wait"]
    holder = subprocess.Popen(
        [*die_with_parent, *unshare, *reap_and_wait],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert holder.stdout is not None
        said = holder.stdout.readline().strip()
        if said != "ready":
            pytest.skip(f"this process may not make namespaces ({said})")
        yield holder
    finally:
        holder.kill()
        holder.wait(10)


def _child(holder: subprocess.Popen[str]) -> int:
    return int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()[0])


def _join(pids: Sequence[int], folder: Path) -> tuple[Machine, Machine]:
    """Join two sets of namespaces by a pair of devices, and let each know both names."""
    ends = [["netns", str(pid), "name", DEVICE] for pid in pids]
    done = subprocess.run(
        ["ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1]], capture_output=True, text=True, timeout=30
    )
    if done.returncode != 0:
        pytest.skip(f"this process may not make veth devices ({done.stderr.strip()})")
    machines = [
        Machine(pid, f"node{rank}", address) for rank, (pid, address) in enumerate(zip(pids, ADDRESSES, strict=True))
    ]
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{each.address} {each.name}\n" for each in machines))
    for machine in machines:
        machine.run(["mount", "--bind", hosts, "/etc/hosts"])
        machine.run(["hostname", machine.name])
        machine.run(["ip", "address", "add", f"{machine.address}/24", "dev", DEVICE])
        for device in ("lo", DEVICE):
            machine.run(["ip", "link", "set", device, "up"])
    return machines[0], machines[1]


def environment(extra: dict[str, str]) -> dict[str, str]:
    """This process's environment, without the ranks of a launcher around it."""
    kept = {key: value for key, value in os.environ.items() if key not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | extra
