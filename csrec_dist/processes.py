"""Processes that end with the one that started them: ranks with their launcher, runs of a study with the study."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from csrec_dist.errors import UserError, quoted

PARENT = "CSREC_PARENT"
"""Names, in the environment of a process that was started by csrec_dist, the process that it ends with."""
PR_SET_PDEATHSIG = 1

VARIABLES = (
    *((name, r"\d+", "number of a rank, from 0") for name in ("RANK", "LOCAL_RANK")),
    *((name, r"0*[1-9]\d*", "number of processes, from 1") for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")),
    ("MASTER_PORT", r"(\d{1,5})?", "number of a port"),
    ("OMP_NUM_THREADS", r"(0*[1-9]\d*(,\d+)*)?", "number of threads, from 1"),
)
"""Of the variables that launchers set, those that are numbers: name, form, and what they are."""
LAUNCHERS = ("accelerate", "accelerate-launch", "accelerate.commands.launch", "deepspeed.launcher.launch")
"""Scripts and modules that start ranks without marking their environment as torch's launcher does.

With one process and without --multi_gpu, accelerate only sets variables that every program in a shell below inherits.
"""


def end_with_parent(environ: Mapping[str, str] = os.environ) -> None:
    """Have Linux send this process SIGTERM when its parent ends, if that is a study or a launcher of ranks.

    SIGTERM lets a training write a checkpoint first. A killed launcher would otherwise leave its ranks training, and
    a killed study its runs. A process that somebody else has started, such as a shell that the run is to outlive, does
    not end with it.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    if PARENT not in environ and "TORCHELASTIC_RUN_ID" not in environ and not _is_launcher(parent):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    # The end of a parent before this call sends nothing any more.
    if os.getppid() != int(environ.get(PARENT, parent)):
        signal.raise_signal(signal.SIGTERM)


def check_variables(environ: Mapping[str, str] = os.environ) -> None:
    """UserError where what launchers say of a process in its environment cannot be meant."""
    for name, form, what in VARIABLES:
        value = environ.get(name)
        if value is not None and not re.fullmatch(form, value.strip()):
            raise UserError(f"The environment has {name}={quoted(value)}, which is no {what}; unset it, or mend it.")
    rank, world_size = environ.get("RANK") or "0", environ.get("WORLD_SIZE") or "1"
    if int(rank) >= int(world_size):
        raise UserError(
            f"The environment has RANK={rank} and WORLD_SIZE={environ.get('WORLD_SIZE', 'unset')}, but ranks are 0 to "
            "WORLD_SIZE - 1; unset both to run alone, or start with a launcher, which sets them."
        )
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not (environ.get(name) or "").strip()]
    if int(world_size) > 1 and missing:
        raise UserError(
            f"The environment has WORLD_SIZE={world_size} but no {' and no '.join(missing)}, where ranks meet; unset "
            "RANK and WORLD_SIZE to run alone, or start with a launcher (`accelerate launch`), which sets them all."
        )


def _is_launcher(pid: int) -> bool:
    """Whether the process runs one of LAUNCHERS in Python; False if it has ended."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return False
    # What follows the script or module are arguments, in which a launcher may only be mentioned.
    program = next((word for word in words[1:] if not word.startswith("-")), "")
    return Path(program).name in LAUNCHERS


def leave(status: int) -> NoReturn:
    """End this process. A rank whose work is done ends at once, so that nothing can turn its status into another.

    gloo's threads free tensors just after a collective has returned, and take Python's lock for it. On a busy machine
    one of them may be late enough to meet the end of the interpreter, which ends every thread that asks for the lock,
    in the middle of C++: `terminate called without an active exception`, status -6. The launcher would take that for
    a rank that died, and stop the others. The same happens to any other thread that returns from C++ then.
    """
    if status == 0 and "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    sys.exit(status)


class Children:
    """The processes that this one has started and waits for: a signal that ends this one ends them first."""

    def __init__(self) -> None:
        self.stopped_by: signal.Signals | None = None
        # A second signal may come while one is passed on: `timeout` sends its to the whole group, too.
        self._lock = threading.RLock()
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, command: Sequence[str], environ: Mapping[str, str], **options: Any) -> int:
        """Start a process, wait for it, and return its status; once stopped, start none.

        Called by a thread that lives as long as the process does: Linux takes the end of the thread for the parent's.
        """
        with self._lock:
            if self.stopped_by:
                return 128 + self.stopped_by
            variables = {**environ, PARENT: str(os.getpid())}
            # A command of this package; no shell reads it.
            process = subprocess.Popen(command, env=variables, **options)  # nosec B603
            self._running.add(process)
        status = process.wait()
        with self._lock:
            self._running.discard(process)
        return status

    @contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """Within the block SIGTERM and SIGINT are passed on as SIGTERM; at its end this process exits.

        A training takes either for the wish to write a checkpoint, and the first one counts: by Ctrl-C on a terminal
        the children have had SIGINT already. In another thread than the main one, signals are left alone.
        """
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {each: signal.signal(each, self._pass_on) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
        if self.stopped_by:
            raise SystemExit(128 + self.stopped_by)

    def _pass_on(self, signum: int, _: object) -> None:
        # The lock is never taken by the main thread otherwise, and by others only for as long as a process starts.
        with self._lock:
            self.stopped_by = self.stopped_by or signal.Signals(signum)
            for process in self._running:
                process.terminate()
