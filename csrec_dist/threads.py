"""How many threads compute, and how they wait for each other: chosen before torch is imported, for what is free now.

OpenMP's threads spin at barriers. A thread whose core another process uses keeps the others spinning until it gets its
turn: on two cores, two threads are half as fast as one beside one busy process, and several times slower beside three.
Both settings are environment variables that are read when torch is imported, so only the command line sets them.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.1
"""/proc/stat counts hundredths of a second. The load average is no help: it lags by a minute in both directions."""
LOOK_SECONDS = 60.0
POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
ROOT = Path("/")


@dataclass(frozen=True)
class Machine:
    """What this process may compute on.

    `cpus` are the logical CPUs of its affinity and `cores` their physical cores; `quota` is the cgroup's limit in CPUs;
    `ranks` are those on this machine; `busy` are CPUs that other processes use now.
    """

    cpus: int
    cores: int
    quota: float | None = None
    ranks: int = 1
    busy: float = 0.0

    @property
    def fitting_threads(self) -> int:
        """The threads of each rank that have a core each, besides what others use and the quota forbids."""
        allowed = self.cores if self.quota is None else min(self.cores, int(self.quota))
        return max(1, min(allowed, self.cpus - round(self.busy)) // self.ranks)


def variables(machine: Machine, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment variables to add; what the user or the launcher has set stays as it is.

    Nothing where torch's own choice (a thread a core) fits. Threads sleep at barriers rather than spin where others
    compute, too: with one thread that costs nothing, and a resumed run may take more (see `runthreads`).
    """
    fitting, added = machine.fitting_threads, {}
    asked = environ.get("OMP_NUM_THREADS", "")
    if not asked and fitting < machine.cores:
        added["OMP_NUM_THREADS"] = str(fitting)
    threads = int(asked) if asked.isdigit() else fitting
    is_crowded = round(machine.busy) > 0 or machine.ranks > 1 or threads > fitting
    if is_crowded and not any(environ.get(name) for name in POLICIES):
        added["OMP_WAIT_POLICY"] = "passive"
    return added


def choose(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Set what `variables` says; whether the number of threads was left to this choice.

    Nothing is changed, and nothing was left to it, where torch is imported already: it would have no effect.
    """
    if "torch" in sys.modules or sys.platform != "linux":
        return False
    is_free = not environ.get("OMP_NUM_THREADS")
    environ.update(variables(this_machine(environ), environ))
    return is_free


def num_usable_cpus() -> int:
    """The logical CPUs that this process may use; all of them where the system does not limit a process to some."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def this_machine(environ: Mapping[str, str]) -> Machine:
    """What this process may compute on now. The load is not measured beside other ranks, which are starting, too."""
    cpus = os.sched_getaffinity(0)
    ranks = max(1, int(environ.get("LOCAL_WORLD_SIZE") or environ.get("WORLD_SIZE") or "1"))
    busy = 0.0
    if ranks == 1 and len(cpus) > 1:
        before = busy_seconds(cpus)
        time.sleep(SAMPLE_SECONDS)
        busy = (busy_seconds(cpus) - before) / SAMPLE_SECONDS
    return Machine(len(cpus), num_cores(cpus), cgroup_quota(), ranks, busy)


def busy_seconds(cpus: set[int], root: Path = ROOT) -> float:
    """Seconds that these CPUs have computed so far, for whomever; 0 where the kernel does not tell."""
    ticks = 0
    for line in _lines(root / "proc/stat"):
        name, *values = line.split()
        if name.removeprefix("cpu").isdigit() and int(name.removeprefix("cpu")) in cpus:
            user, nice, system, _, _, irq, softirq, steal, *_ = map(int, values)
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def num_cores(cpus: set[int], root: Path = ROOT) -> int:
    """The physical cores of these CPUs: hyperthreads of one core name each other as siblings."""
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    return len({tuple(_lines(root / topology.format(cpu))) or cpu for cpu in cpus})


def cgroup_quota(root: Path = ROOT) -> float | None:
    """The smallest limit, in CPUs, of this process's control group and of those above it (versions 1 and 2)."""
    quotas = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup/cpu", root / "sys/fs/cgroup" / controllers]
        else:
            continue
        # In a container the path may be the host's, which is not there: the container's own group is the mount itself.
        group = Path(path.lstrip("/"))
        quotas += [_quota(mount / each) for mount in mounts for each in (group, *group.parents)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(folder: Path) -> float | None:
    texts = [line for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us") for line in _lines(folder / name)]
    words = " ".join(_lines(folder / "cpu.max") or texts).split()
    if len(words) != 2 or words[0] in ("max", "-1"):
        return None
    return int(words[0]) / int(words[1])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def wait_policy(environ: Mapping[str, str] = os.environ) -> str:
    """How this process's threads wait, as the environment says it; "default" is to spin for some milliseconds."""
    settings = [f"{name}={environ[name]}" for name in POLICIES if environ.get(name)]
    return " ".join(settings).lower().replace("omp_wait_policy=", "") or "default"


def crowding(machine: Machine, threads: int, policy: str) -> str | None:
    """A sentence that names what to do where others have come for whom, beside `threads` a rank, no CPU is left."""
    num_threads = threads * machine.ranks + machine.busy
    if threads == 1 or num_threads < machine.cpus + 0.5:
        return None
    fewer = f"OMP_NUM_THREADS={machine.fitting_threads} (which changes the last bits of the weights)"
    passive = "" if policy == "passive" else "OMP_WAIT_POLICY=passive or "
    return (
        f"other processes use {machine.busy:.1f} of this machine's {machine.cpus} CPUs, and this one's {threads} "
        f"threads wait for each other: it may be many times slower. Stop them, or stop this run and start the same "
        f"command with {passive}{fewer}."
    )


@contextmanager
def crowding_named(threads: int, say: Callable[[str], None], seconds: float = LOOK_SECONDS) -> Iterator[None]:
    """Within the block, look every minute whether other processes need this one's cores, and say it once."""
    if threads == 1 or sys.platform != "linux":
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_look, args=(ended, threads, say, seconds), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _look(ended: threading.Event, threads: int, say: Callable[[str], None], seconds: float) -> None:
    cpus, ranks = os.sched_getaffinity(0), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores, quota = num_cores(cpus), cgroup_quota()
    before = time.monotonic(), busy_seconds(cpus), time.process_time()
    while not ended.wait(seconds):
        now = time.monotonic(), busy_seconds(cpus), time.process_time()
        passed, busy, own_seconds = (b - a for a, b in zip(before, now, strict=True))
        # The ranks of a machine do the same work: what this one has used, the others have, too.
        others = max(0.0, (busy - own_seconds * ranks) / passed)
        if sentence := crowding(Machine(len(cpus), cores, quota, ranks, others), threads, wait_policy()):
            say(sentence)
            return
        before = now
