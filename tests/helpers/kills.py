"""Runs that are killed, or whose disk fails, at points drawn by chance, and started again until they are done."""

import errno
import io
import os
import random
import shutil
import signal
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from csrec_dist.cli import main
from csrec_dist.files import read_json
from tests.helpers.disks import before_calls
from tests.helpers.ranks import CONTEXT
from tests.helpers.run_folders import write_log

CONFIG = """
name: {name}
output: {folder}
dataset: {{source: {log}, window: 8, min_interactions: 2, num_shards: 3}}
model: {{name: gru4rec, width: 8, hidden: 8, dropout: 0.1}}
training: {{max_epochs: 2, batch_size: 64, learning_rate: 0.01, checkpoint_steps: 2}}
distributed: {{reassign: false}}
"""
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)
FURTHEST = 60
"""Calls of a start after which it is killed at the latest: a whole run makes some hundreds."""
MOST_STARTS = 200


def start(config: str, folder: str, number: int, error: int | None) -> None:
    """One start, in a process of its own: at so many calls of the disk it is killed, or the disk fails."""
    num_calls = 0

    def act(call: str, path: str) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls != number:
            return
        if error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            raise OSError(error, os.strerror(error), path)

    with before_calls(Path(folder), act), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
        status = main(["run", "--config", config])
    lines = said.getvalue().splitlines()
    is_sentence = len(lines) == 1 and lines[0].startswith("csrec-dist: ")
    os._exit(status if status == 0 or (status == 1 and is_sentence) else 99)


def write_config(folder: Path, name: str) -> str:
    """The config of a run in a folder, which gets a log."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "log.csv").exists():
        write_log(folder / "log.csv")
    path = folder / f"{name}.yaml"
    path.write_text(CONFIG.format(name=name, folder=folder / "runs", log=folder / "log.csv"))
    return str(path)


def run_once(config: str, run: Path, number: int = 0, error: int | None = None) -> int:
    """The exit status of one start that is cut off at a call, 0 for none."""
    process = CONTEXT.Process(target=start, args=(config, str(run), number, error))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def cut_until_done(folder: Path, name: str, draw: random.Random) -> Counter[str]:
    """Start a run until it is done, cutting each start off; what happened: kills, errors, and what went wrong."""
    config, run = write_config(folder, name), folder / "runs" / name
    counts: Counter[str] = Counter()
    for _ in range(MOST_STARTS):
        error = draw.choice([None, None, *ERRORS])
        status = run_once(config, run, draw.randint(1, FURTHEST), error)
        if status == 0:
            return counts
        counts["kills" if status == -signal.SIGKILL else "failures of the disk" if status == 1 else "tracebacks"] += 1
    counts["never done"] += 1
    return counts


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


def clear(folder: Path, name: str) -> None:
    """Remove a run that is no longer needed."""
    shutil.rmtree(folder / "runs" / name)
