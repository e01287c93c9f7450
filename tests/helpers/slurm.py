"""A Slurm cluster of two machines, made in a folder for the length of a test."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.machines import Machine, environment, two_machines
from tests.helpers.ranks import wait_until

SEARCH_PATH = f"{os.environ['PATH']}:/usr/sbin"
MISSING = [name for name in ("munged", "slurmctld", "slurmd", "srun") if shutil.which(name, path=SEARCH_PATH) is None]

CONFIG = """\
ClusterName=test
SlurmctldHost={head.name}({head.address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=10
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A running cluster; its commands are given on the first machine."""

    folder: Path
    machines: tuple[Machine, Machine]
    environ: Mapping[str, str]

    def command(self, *words: str | Path) -> str:
        """The output of one of Slurm's commands; its failure fails the test."""
        done = subprocess.run(
            self.machines[0].inside(words), env=self.environ, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}{self.logs()}"
        return done.stdout

    def submit(self, options: Sequence[str], script: Path, arguments: Sequence[str]) -> str:
        """Submit a script; the job's number."""
        return self.command("sbatch", "--parsable", *options, script, *arguments).strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, Restarts, NodeList, ..."""
        words = self.command("scontrol", "show", "job", "--oneliner", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, seconds: float) -> dict[str, str]:
        """Wait until a job has ended and will not start again; what Slurm knows of it."""
        going = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"}
        wait_until(lambda: self.job(number)["JobState"] not in going, seconds, f"the end of job {number}")
        return self.job(number)

    def logs(self) -> str:
        """The ends of the daemons' logs, for the message of a failed test."""
        return "".join(f"\n--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))


@contextmanager
def slurm_cluster() -> Iterator[Slurm]:
    """A cluster of two nodes, the first of which is its head; the test is skipped where machines cannot be made."""
    with tempfile.TemporaryDirectory(prefix="csrec-slurm-", ignore_cleanup_errors=True) as name:
        folder = Path(name)  # short: a socket's path has at most 107 characters
        folder.chmod(0o755)  # as munge asks for its socket
        daemons: list[subprocess.Popen[str]] = []
        with two_machines(folder) as machines:
            cluster = Slurm(folder, machines, _write_config(folder, machines))
            daemons += _start_daemons(cluster)
            yield cluster
        for daemon in daemons:
            daemon.wait(10)


def _write_config(folder: Path, machines: tuple[Machine, Machine]) -> dict[str, str]:
    nodes = [f"NodeName={each.name} NodeAddr={each.address} CPUs=2 State=UNKNOWN" for each in machines]
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(folder=folder, head=machines[0], nodes="\n".join(nodes)))
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    ours = {key: value for key, value in environment({}).items() if not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
    return ours | {"SLURM_CONF": str(config), "PATH": SEARCH_PATH}


def _start_daemons(cluster: Slurm) -> list[subprocess.Popen[str]]:
    """Start munge, the controller and a node's daemon on each machine; they end with the machines."""
    folder, (head, _) = cluster.folder, cluster.machines
    files = {"key-file": "munge.key", "pid-file": "munge.pid", "log-file": "munge.log", "seed-file": "munge.seed"}
    options = [f"--{option}={folder / file}" for option, file in files.items()]
    socket = folder / "munge.socket"
    daemons = [_start(cluster, head, "munged", "--foreground", f"--socket={socket}", *options)]
    wait_until(socket.exists, 20, "munge's socket")
    daemons.append(_start(cluster, head, "slurmctld", "-D", "-i"))
    for machine in cluster.machines:
        (folder / f"spool.{machine.name}").mkdir()
        daemons.append(_start(cluster, machine, "slurmd", "-D", "-N", machine.name))
    ready = ["sinfo", "--noheader", "--format=%T"]

    def idle() -> bool:
        done = subprocess.run(head.inside(ready), env=cluster.environ, capture_output=True, text=True, timeout=30)
        return done.returncode == 0 and done.stdout.split() == ["idle"]

    wait_until(idle, 30, "two idle nodes")
    return daemons


def _start(cluster: Slurm, machine: Machine, *command: str) -> subprocess.Popen[str]:
    with (cluster.folder / f"{command[0]}.{machine.name}.log").open("w") as log:
        return machine.start(command, env=cluster.environ, stdout=log)
