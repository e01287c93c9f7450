"""Runs that are killed, or whose disk fails, at points drawn by chance, and started again until they are done."""

import ctypes
import errno
import os
import random
import shutil
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytest

from csrec_dist.cli import main
from csrec_dist.files import read_json
from csrec_dist.processes import PARENT, PR_SET_PDEATHSIG
from csrec_dist.writers import LEFTOVER
from tests.helpers.disks import before_calls, cut_next_file, lift_limit
from tests.helpers.ranks import CONTEXT, PRELOADED, free_port
from tests.helpers.run_folders import write_log

CONFIG = """
name: {name}
output: {folder}
dataset: {{source: {log}, window: 8, min_interactions: 2, num_shards: 3}}
model: {{name: gru4rec, width: 8, hidden: 8, dropout: 0.1}}
training: {{max_epochs: 2, batch_size: 64, learning_rate: 0.01, checkpoint_steps: 2}}
baseline: true
distributed: {{reassign: false, timeout_minutes: {minutes}}}
"""
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)
SHORT_BYTES = (0, 1, 100, 1_000, 10_000)
FURTHEST = 40
"""Points of a start after which it is cut off at the latest: a whole run passes some hundreds."""
MOST_STARTS = 300
ENDED_SECONDS = 60
"""Within this time all processes of a start have ended after one of them was killed."""
NEW_NAMESPACES = 0x20000000 | 0x00020000 | 0x04000000  # CLONE_NEWPID, CLONE_NEWNS, CLONE_NEWUTS
PRIVATE = 0x4000 | 0x40000  # MS_REC, MS_PRIVATE
WORKING = (
    "distributed.joining",
    "distributed.engines.ddp",
    "models.gru4rec",
    "models.registry",
    "recommend.lists",
    "report",
    "report.figures",
    "report.html",
    "runs.stages.distill",
    "runs.stages.evaluate",
    "runs.stages.label",
    "runs.stages.teach",
    "runs.threads",
)
"""Parts of the package that a run imports when it needs them."""
LIBC = ctypes.CDLL(None, use_errno=True)

# A trial begins with all imports done: they take longer than the run itself.
CONTEXT.set_forkserver_preload([*PRELOADED, *(f"csrec_dist.{name}" for name in WORKING)])

GRACE_SECONDS = 20
"""Between SIGTERM and SIGKILL to the ranks of a launcher, one of which has failed: torch's gives them 30."""

Victim = Literal["rank", "launcher", "all", "node", "disk", "short", "told", "frozen", "hung"]


@dataclass(frozen=True)
class Cut:
    """What happens when `rank` comes to the point of that number, from 1: somebody is killed, or its disk fails.

    A point is a call that opens, syncs or renames a file of the run, or a step of a stage. "rank" and "launcher" are
    killed alone, "all" are both with the other ranks; a "node" is a pid namespace, which ends with all processes in it.
    "disk": the call fails with `error`; "short": a file takes `error` bytes from then on, and the next write fails.
    "told": the launcher gets the signal `error`; "frozen": the rank is stopped; "hung": its call never comes back.
    """

    victim: Victim
    rank: int
    number: int
    error: int = 0

    @classmethod
    def drawn(cls, draw: random.Random, num_ranks: int, furthest: int = FURTHEST) -> "Cut":
        """One by chance; where there is one process, it or its disk."""
        rank, number = draw.randrange(num_ranks), draw.randint(1, furthest)
        victims: list[Victim] = ["rank", "disk", "short"]
        victim = draw.choice(victims if num_ranks == 1 else [*victims, "launcher", "all", "node"])
        return cls(victim, rank, number, draw.choice(SHORT_BYTES if victim == "short" else ERRORS))


NEVER = Cut("rank", 0, 0)


def start(arguments: Sequence[str], run: str, num_ranks: int, cut: Cut, said: str, alive: Any) -> None:
    """One start, as a launcher in a process of its own: it starts the ranks, and ends the others when one fails.

    All of its processes hold `alive`, an end of a pipe, until they end.
    """
    os.setpgrp()
    port, statuses = free_port(), Counter[int]()
    begin = _on_a_node if cut.victim == "node" else _in_a_process
    ranks = {
        begin(rank, lambda r=rank: _be_rank(arguments, run, r, num_ranks, port, cut, f"{said}-{r}"))
        for rank in range(num_ranks)
    }

    def kill(*_: object) -> None:
        for each in list(ranks):
            os.kill(each, signal.SIGKILL)

    def tell(*_: object) -> None:
        for each in list(ranks):
            os.kill(each, signal.SIGTERM)
        signal.alarm(GRACE_SECONDS)

    signal.signal(signal.SIGALRM, kill)
    signal.signal(signal.SIGTERM, tell)
    signal.signal(signal.SIGINT, tell)
    while ranks:
        pid, waited = os.wait()
        ranks.discard(pid)
        statuses[os.waitstatus_to_exitcode(waited)] += 1
        if waited:
            tell()
    # A rank that was told to end by the launcher is not the one that failed.
    failed = [abs(status) for status in statuses if status not in (0, 128 + signal.SIGTERM)]
    os._exit(failed[0] if failed else max(statuses))


def _in_a_process(rank: int, work: Callable[[], NoReturn]) -> int:
    """A process that ends with its parent, as the ranks of a launcher do."""
    pid = os.fork()
    if pid == 0:
        work()
    return pid


def _on_a_node(rank: int, work: Callable[[], NoReturn]) -> int:
    """A process on a node of its own: a host name and a pid namespace, whose first process ends when it is told to.

    Its death is that of the node: the kernel kills all other processes in it with that.
    """
    pid = os.fork()
    if pid:
        return pid
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if LIBC.unshare(NEW_NAMESPACES) != 0:
        os._exit(98)
    node = _in_a_process(rank, lambda: _be_node(rank, work))
    _pass_on(node)
    os._exit(abs(os.waitstatus_to_exitcode(os.waitpid(node, 0)[1])))


def _be_node(rank: int, work: Callable[[], NoReturn]) -> NoReturn:
    """The first process of a node."""
    socket.sethostname(f"node{rank}")
    LIBC.mount(b"none", b"/", None, PRIVATE, None)
    LIBC.mount(b"proc", b"/proc", b"proc", 0, None)
    worker = _in_a_process(rank, work)
    _pass_on(worker)
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(signal.SIGKILL))
    os._exit(abs(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])))


def _pass_on(pid: int) -> None:
    def tell(*_: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, tell)


def _be_rank(arguments: Sequence[str], run: str, rank: int, num_ranks: int, port: int, cut: Cut, said: str) -> NoReturn:
    """A rank: the command line, with a point at which it is cut off."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ[PARENT] = str(os.getppid())
    if num_ranks > 1:
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
        there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        os.environ |= {name: str(value) for name, value in (here | there).items()} | {"ACCELERATE_USE_CPU": "true"}
    status = 99
    with suppress(BaseException):
        status = _until_cut(arguments, Path(run), rank, cut)
    sys.stderr.flush()
    os._exit(status)


def _until_cut(arguments: Sequence[str], run: Path, rank: int, cut: Cut) -> int:
    from csrec_dist.distributed.watchdog import Watch

    num_points, stage, at = 0, "start", Watch.at
    signal.signal(signal.SIGXFSZ, lift_limit)

    def pass_point(call: str, path: str) -> None:
        nonlocal num_points
        num_points += 1
        if rank == cut.rank and num_points == cut.number:
            with open(run.parent / "cuts", "a") as cuts:
                cuts.write(f"{cut.victim} {stage.partition('/')[0]} {call}\n")
            _strike(cut, path)

    def be_at(watch: Watch, name: str, step: int = 0) -> None:
        nonlocal stage
        stage = name
        at(watch, name, step)
        if cut.victim not in ("disk", "short"):
            pass_point("step", "")

    with pytest.MonkeyPatch.context() as patch, before_calls(run, pass_point):
        patch.setattr(Watch, "at", be_at)
        patch.setattr("csrec_dist.report.figures.draw_figures", lambda *_: {})  # it would take most of the time
        try:
            return main(arguments)
        except SystemExit as error:  # a RankFailure, or a training that was stopped
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)
            return error.code if isinstance(error.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
            return 99


def _strike(cut: Cut, path: str) -> None:
    if cut.victim == "disk":
        raise OSError(cut.error, os.strerror(cut.error), path)
    if cut.victim == "short":
        cut_next_file(cut.error)
        return
    if cut.victim == "all":
        os.killpg(0, signal.SIGKILL)
    signum = {"node": signal.SIGUSR1, "told": cut.error, "frozen": signal.SIGSTOP}.get(cut.victim, signal.SIGKILL)
    if cut.victim == "hung":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # as a process in a call of a dead disk
        while True:
            signal.pause()
    os.kill(os.getpid() if cut.victim in ("rank", "frozen") else os.getppid(), signum)


def write_config(folder: Path, name: str, minutes: float = 0.5) -> str:
    """The config of a run in a folder, which gets a log; a rank waits so many minutes for a silent one."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "log.csv").exists():
        write_log(folder / "log.csv")
    path = folder / f"{name}.yaml"
    path.write_text(CONFIG.format(name=name, folder=folder / "runs", log=folder / "log.csv", minutes=minutes))
    return str(path)


def run_once(arguments: Sequence[str], run: Path, num_ranks: int = 1, cut: Cut = NEVER) -> tuple[int, str]:
    """The status of one start, when all of its processes have ended, and what went wrong besides.

    A killed launcher's status is −SIGKILL; a rank's failure is the launcher's status.
    """
    run.parent.mkdir(parents=True, exist_ok=True)
    said = run.parent / f"{run.name}-said"
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=start, args=(["run", *arguments], str(run), num_ranks, cut, str(said), sender))
    process.start()
    sender.close()
    process.join(5 * ENDED_SECONDS)
    problem = ""
    if not receiver.poll(ENDED_SECONDS):
        problem = "processes that do not end"
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    words = "\n".join(path.read_text(errors="replace") for path in sorted(said.parent.glob(f"{said.name}-*")))
    # A limit on files holds for torch's shared memory, too, which is none of the run's.
    if "Traceback" in words and "unable to resize file </torch_" not in words:
        problem = f"a traceback: {words}"
    assert process.exitcode is not None
    return process.exitcode, problem


def cut_until_done(
    arguments: Sequence[str], run: Path, draw: random.Random, num_ranks: int
) -> tuple[Counter[str], list[str]]:
    """Start a run until it is done, cutting each start off: how often which victim was struck, and what went wrong."""
    counts, problems = Counter[str](), []
    for start in range(MOST_STARTS):
        (run.parent / "cuts").unlink(missing_ok=True)
        # Later starts get further: a stage that begins anew each time, such as evaluate, would never be done.
        cut = Cut.drawn(draw, num_ranks, FURTHEST + 2 * start)
        status, problem = run_once(arguments, run, num_ranks, cut)
        struck = (run.parent / "cuts").read_text().split() if (run.parent / "cuts").exists() else []
        if struck:
            counts[f"{struck[0]} in {struck[1]}"] += 1
        if problem:
            problems.append(f"{cut}: {problem}")
        if status == 0 and not struck:
            return counts, problems
        if not struck:
            return counts, [*problems, f"{cut}: status {status} although nothing was struck"]
    return counts, [*problems, "never done"]


def differences(run: Path, unbroken: Path) -> list[str]:
    """What is otherwise in a run that was cut off than in an unbroken one: bytes, numbers, and files left behind."""
    files, expected = (
        {str(path.relative_to(each)) for path in each.rglob("*") if path.is_file() and "tensorboard" not in path.parts}
        for each in (run, unbroken)
    )
    found = [f"{name} is left" for name in sorted(files - expected)]
    found += [f"{name} is missing" for name in sorted(expected - files)]
    for name in sorted(files & expected):
        if name.endswith((".safetensors", ".parquet")) and (run / name).read_bytes() != (unbroken / name).read_bytes():
            found.append(f"{name} has other bytes")
    if not found and read_json(run / "metrics.json") != read_json(unbroken / "metrics.json"):
        found.append("metrics.json has other numbers")
    return found


def age_leftovers(run: Path) -> None:
    """Have the files of writers on other nodes look as old as they will be in a minute: they are kept until then."""
    for path in run.rglob(".*.tmp"):
        if LEFTOVER.fullmatch(path.name):
            for each in [*path.rglob("*"), path]:
                os.utime(each, (0, 0))


def clear(run: Path) -> None:
    """Remove a run that is no longer needed."""
    shutil.rmtree(run)
