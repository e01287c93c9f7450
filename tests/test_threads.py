"""Threads: how many for which machine, how they wait, and that a run that goes on has those that it began with."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from csrec_dist import threads
from csrec_dist.threads import Machine, busy_seconds, cgroup_quota, crowding, num_cores, variables, wait_policy

ROOT = Path(__file__).resolve().parents[1]
ONE = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
PASSIVE = {"OMP_WAIT_POLICY": "passive"}


@pytest.mark.parametrize(
    ("machine", "environ", "added"),
    [
        (Machine(2, 2), {}, {}),
        (Machine(2, 2, busy=0.4), {}, {}),
        (Machine(2, 2, busy=1.0), {}, ONE),
        (Machine(2, 2, busy=2.0), {}, ONE),
        (Machine(16, 16, busy=3.0), {}, {"OMP_NUM_THREADS": "13", **PASSIVE}),
        (Machine(32, 16, busy=3.0), {}, PASSIVE),
        (Machine(32, 16, busy=20.0), {}, {"OMP_NUM_THREADS": "12", **PASSIVE}),
        (Machine(1, 1), {}, {}),
        (Machine(64, 64, quota=2.0), {}, {"OMP_NUM_THREADS": "2"}),
        (Machine(64, 64, quota=2.5, busy=40.0), {}, {"OMP_NUM_THREADS": "2", **PASSIVE}),
        (Machine(64, 64, quota=2.0, busy=64.0), {}, ONE),
        (Machine(8, 8, quota=0.5), {}, {"OMP_NUM_THREADS": "1"}),
        (Machine(2, 2, quota=8.0), {}, {}),
        (Machine(8, 8, ranks=2), {}, {"OMP_NUM_THREADS": "4", **PASSIVE}),
        (Machine(2, 2, ranks=4), {}, ONE),
        (Machine(64, 64, quota=8.0, ranks=4), {}, {"OMP_NUM_THREADS": "2", **PASSIVE}),
        (Machine(2, 2), {"OMP_NUM_THREADS": "1"}, {}),
        (Machine(2, 2, busy=1.0), {"OMP_NUM_THREADS": "2"}, PASSIVE),
        (Machine(2, 2), {"OMP_NUM_THREADS": "4"}, PASSIVE),
        (Machine(2, 2, ranks=2), {"OMP_NUM_THREADS": "1"}, PASSIVE),
        (Machine(2, 2, busy=1.0), {"OMP_WAIT_POLICY": "active"}, {"OMP_NUM_THREADS": "1"}),
        (Machine(2, 2, busy=1.0), {"GOMP_SPINCOUNT": "0"}, {"OMP_NUM_THREADS": "1"}),
        (Machine(2, 2, busy=1.0), {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "active"}, {}),
        (Machine(2, 2, busy=1.0), {"OMP_NUM_THREADS": "", "OMP_WAIT_POLICY": ""}, ONE),
    ],
)
def test_what_is_added_to_the_environment(machine: Machine, environ: dict[str, str], added: dict[str, str]) -> None:
    assert variables(machine, environ) == added


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2, V1 = "0::/a/b\n", "4:cpu,cpuacct:/a\n3:memory:/\n0::/\n"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": V2}, None),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
          "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 0.5),
        ({"proc/self/cgroup": "0::/host/only\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4.0),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/unified/cpu.max": "400000 100000\n"}, 4.0),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n"}, None),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "300000\n",
          "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"}, 3.0),
        ({"proc/self/cgroup": "1:cpu:/docker/1\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"proc/self/cgroup": "1:cpuset:/a\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None),
    ],
)  # fmt: skip
def test_the_smallest_limit_of_the_control_groups_counts(tmp_path: Path, files: dict[str, str], quota: float) -> None:
    assert cgroup_quota(write(tmp_path, files)) == quota


def test_hyperthreads_of_a_core_count_once(tmp_path: Path) -> None:
    siblings = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
    name = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    write(tmp_path, {name.format(cpu): f"{text}\n" for cpu, text in siblings.items()})
    assert num_cores({0, 1, 2, 3}, tmp_path) == 2
    assert num_cores({0, 2}, tmp_path) == 1
    assert num_cores({0, 1, 7}, tmp_path) == 3, "a CPU of which nothing is told is a core"


def test_only_the_cpus_of_the_process_count_as_busy(tmp_path: Path) -> None:
    each = {"cpu": [9] * 10, "cpu0": [100, 20, 3, 5000, 700, 4, 5, 6, 0, 0], "cpu1": [1] * 10, "cpu10": [7] * 10}
    stat = "".join(f"{name} {' '.join(map(str, values))}\n" for name, values in each.items())
    write(tmp_path, {"proc/stat": stat + "intr 1 2 3\n"})
    ticks = os.sysconf("SC_CLK_TCK")
    assert busy_seconds({0}, tmp_path) == pytest.approx(138 / ticks)
    assert busy_seconds({0, 1}, tmp_path) == pytest.approx(144 / ticks)
    assert busy_seconds({0}, tmp_path / "none") == 0


def test_this_machine_has_what_the_kernel_gives() -> None:
    machine = threads.this_machine({"LOCAL_WORLD_SIZE": "3"})
    assert (machine.cpus, machine.ranks, machine.busy) == (len(os.sched_getaffinity(0)), 3, 0)
    assert 1 <= machine.cores <= machine.cpus


@pytest.mark.parametrize(
    ("environ", "policy"),
    [
        ({}, "default"),
        (PASSIVE, "passive"),
        ({"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "9"}, "active gomp_spincount=9"),
    ],
)
def test_the_wait_policy_is_what_the_environment_says(environ: dict[str, str], policy: str) -> None:
    assert wait_policy(environ) == policy


@pytest.mark.parametrize(
    ("machine", "num", "policy", "words"),
    [
        (Machine(2, 2, busy=0.4), 2, "default", None),
        (Machine(2, 2, busy=1.0), 2, "default", "OMP_WAIT_POLICY=passive or OMP_NUM_THREADS=1"),
        (Machine(2, 2, busy=1.0), 2, "passive", "with OMP_NUM_THREADS=1"),
        (Machine(2, 2, busy=1.9), 1, "default", None),
        (Machine(16, 16, busy=3.0), 13, "passive", None),
        (Machine(16, 16, busy=6.0), 13, "passive", "OMP_NUM_THREADS=10"),
        (Machine(16, 16, ranks=2, busy=4.0), 8, "default", "OMP_NUM_THREADS=6"),
    ],
)
def test_crowding_is_named_with_its_remedy(machine: Machine, num: int, policy: str, words: str | None) -> None:
    said = crowding(machine, num, policy)
    assert said is None if words is None else words in (said or "")


def test_load_that_comes_later_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's counts are made up: other processes use all of two CPUs, this one nothing."""
    said, was_said = [], threading.Event()
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(threads, "busy_seconds", lambda _: 2 * time.monotonic())

    def say(text: str) -> None:
        said.append(text)
        was_said.set()

    with threads.crowding_named(2, say, seconds=0.01):
        assert was_said.wait(30)
    assert len(said) == 1
    assert "of this machine's 2 CPUs, and this one's 2 threads wait" in said[0]


def test_importing_changes_no_environment_and_the_command_line_does_before_torch() -> None:
    """On one core of several ranks, where there is something to choose."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    environ |= {"PYTHONPATH": str(ROOT), "LOCAL_WORLD_SIZE": str(4 * (os.cpu_count() or 1))}
    show = "import os, torch; print(os.environ.get('OMP_NUM_THREADS'), torch.get_num_threads())"
    imported = f"import csrec_dist, csrec_dist.config, csrec_dist.cli; {show}"
    told = "print(threads.choose({'OMP_NUM_THREADS': '2'}))"
    started = f"from csrec_dist import cli, threads\n{told}\nprint(threads.choose())\n{show}"
    late = f"import torch\nfrom csrec_dist import threads\nprint(threads.choose())\n{show}"
    outputs = [
        subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True).stdout
        for code in (imported, started, late)
    ]
    assert outputs[0].startswith("None ")
    assert outputs[1] == "False\nTrue\n1 1\n"
    assert outputs[2].startswith("False\nNone ")
