"""Whether flipped bits are said before a wrong number is used: `python -m benchmarks.flips [--flips N] [--commands N]`.

Makes a small run that is finished and one that is cut off within its student's training, in a temporary folder. Then
bits flip one at a time, in a file of either run drawn with equal chances, and everything that the project reads from
that file is read: rows, ids and counts of the dataset, labels, weights, checkpoints as a training resumes from them,
ranks, metrics and records. A flip is reported (one sentence, or a checkpoint that is set aside with one), or it left
all numbers the same, or it is in a file from which no number is read (TensorBoard's, the report), or it is wrong.
Of every hundredth flip `verify RUN` must say something if it was reported.

`--commands` more flips meet whole commands: of the finished run `report` and `recommend`, of the other one the command
that resumes it, whose student and metrics must then be those of an unbroken run.

Counts are printed by the kind of file; the last line is one JSON object. Exit status 1 if a flip went wrong.
"""

import argparse
import contextlib
import io
import json
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path

from csrec_dist.cli import main as command
from csrec_dist.config import load_config
from csrec_dist.distributed import Runtime
from csrec_dist.files import read_json
from csrec_dist.runs.pipeline import execute
from csrec_dist.runs.verify import verify
from tests.helpers import flips
from tests.helpers.run_folders import write_log
from tests.helpers.training_streams import at_each_batch

CONFIG = """
name: {name}
output: {folder}/runs
dataset: {{source: {folder}/log.csv, window: 8, min_interactions: 2, num_shards: 3}}
model: {{name: gru4rec, width: 8, hidden: 8, dropout: 0}}
training: {{max_epochs: 2, batch_size: 16, learning_rate: 0.01, checkpoint_steps: 1}}
"""
VERIFIED = 100
"""Of so many flips one is shown to `verify` too."""


class CutOffError(Exception):
    """Ends a training within an epoch."""


def make_runs(folder: Path) -> tuple[Path, Path, Path]:
    """A finished run, one that is cut off, and that one's unbroken twin."""
    write_log(folder / "log.csv")
    for name in ("whole", "cut"):
        (folder / f"{name}.yaml").write_text(CONFIG.format(name=name, folder=folder))
    _quietly("run", "--config", str(folder / "whole.yaml"))
    for stage in ("prepare", "teach", "label"):
        _quietly(stage, "--config", str(folder / "cut.yaml"))
    left = 6

    def cut() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise CutOffError

    with at_each_batch(cut), contextlib.suppress(CutOffError), contextlib.redirect_stdout(io.StringIO()):
        execute(load_config(folder / "cut.yaml"), Runtime.start(), ["distill"])
    shutil.copytree(folder / "runs/cut", folder / "kept/cut")
    _quietly("run", "--config", str(folder / "cut.yaml"))
    (folder / "runs/cut").rename(folder / "unbroken")
    (folder / "kept/cut").rename(folder / "runs/cut")
    return folder / "runs/whole", folder / "runs/cut", folder / "unbroken"


def _quietly(*arguments: str) -> tuple[int, str]:
    """The exit status of a command, and what it says of errors."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        return command(arguments), said.getvalue()


def kind(run: Path, path: Path) -> str:
    """What a file is, for the table."""
    place = path.relative_to(run).parts
    if place[0] == "dataset":
        return path.name if path.name == "dataset.json" else f"dataset/{path.name.split('-')[0].split('.')[0]}"
    if place[0] in ("teachers", "student"):
        return f"model/{path.name}"
    if place[0] == "labels":
        return f"labels/{path.name.split('-')[0]}"
    if place[0] == "checkpoints":
        return f"checkpoint/{path.name}"
    if path.name.endswith(".done.json"):
        return "<stage>.done.json"
    return place[0]


def flip_bits(runs: list[Path], number: int, draw: random.Random, scratch: Path) -> tuple[dict[str, Counter[str]], int]:
    """Outcomes by kind of file; how often `verify` said nothing of what a reader reported."""
    files = [(run, path) for run in runs for path in flips.files_of(run)]
    before: dict[Path, str] = {}
    counts: dict[str, Counter[str]] = {}
    unseen = 0
    for each in range(number):
        run, path = draw.choice(files)
        read, bit = flips.reader_of(run, path, scratch), draw.randrange(8 * path.stat().st_size)
        if read is not None and path not in before:
            before[path] = read()
            shutil.rmtree(scratch, ignore_errors=True)
        found = flips.outcome(path, bit, read, before.get(path, ""), scratch)
        counts.setdefault(kind(run, path), Counter())[found] += 1
        if each % 1000 == 999:
            print(f"after {each + 1:,} flips: {dict(sum(counts.values(), Counter()))}", flush=True)
        if found == "wrong":
            print(f"WRONG: bit {bit} of {path.relative_to(run.parent)}", flush=True)
        if each % VERIFIED == 0 and found == "reported" and path.name != "config.yaml":
            with flips.flipped(path, bit):
                unseen += not verify(run)
    return counts, unseen


def flip_under_commands(folder: Path, runs: tuple[Path, Path, Path], number: int, draw: random.Random) -> Counter[str]:
    """Outcomes of whole commands on copies with one bit flipped."""
    whole, cut, unbroken = runs
    _quietly("recommend", str(whole), "--output", str(folder / "lists.parquet"))
    counts: Counter[str] = Counter()
    for each in range(number):
        run = (whole, cut)[each % 2]
        shutil.copytree(run, folder / "saved")
        path, bit = flips.random_bit(flips.files_of(run), draw)
        content = bytearray(path.read_bytes())
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        found = _of_finished(folder, run) if run == whole else _of_cut(folder, run, unbroken)
        if found == "wrong":
            print(f"WRONG under a command: bit {bit} of {path.relative_to(run.parent)}", flush=True)
        counts[found] += 1
        shutil.rmtree(run)
        (folder / "saved").rename(run)
    return counts


def _of_finished(folder: Path, run: Path) -> str:
    before = read_json(folder / "saved/metrics.json")
    for arguments in (["report", str(run)], ["recommend", str(run), "--output", str(folder / "now.parquet")]):
        status, said = _quietly(*arguments)
        if status:
            return "reported" if status == 2 and said else "wrong"
    is_same = read_json(run / "metrics.json") == before
    return "same numbers" if is_same and _bytes(folder / "now.parquet") == _bytes(folder / "lists.parquet") else "wrong"


def _of_cut(folder: Path, run: Path, unbroken: Path) -> str:
    status, said = _quietly("run", "--config", str(folder / "cut.yaml"))
    if status:
        return "reported" if status == 2 and said else "wrong"
    is_same = all(_bytes(run / name) == _bytes(unbroken / name) for name in ("student/model.safetensors",))
    metrics = [read_json(each / "metrics.json") for each in (run, unbroken)]
    return "same numbers" if is_same and metrics[0] == metrics[1] else "wrong"


def _bytes(path: Path) -> bytes:
    return path.read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000, help="bits that flip (default 1000)")
    parser.add_argument("--commands", type=int, default=20, help="bits that flip under whole commands (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn bits (default 0)")
    args = parser.parse_args()
    draw, begin = random.Random(args.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = make_runs(folder)
        counts, unseen = flip_bits([*runs[:2]], args.flips, draw, folder / "scratch")
        under_commands = flip_under_commands(folder, runs, args.commands, draw)
    total = sum(counts.values(), Counter())
    for each in sorted(counts):
        print(f"{each:34}", dict(counts[each]))
    print(f"{'all files':34}", dict(total), f"; verify said nothing of {unseen}")
    print(f"{'under whole commands':34}", dict(under_commands))
    machine = {"date": date.today().isoformat(), "python": platform.python_version(), "machine": platform.platform()}
    settings = {"flips": args.flips, "commands": args.commands, "seed": args.seed}
    found = {"outcomes": total, "under_commands": under_commands, "not_seen_by_verify": unseen}
    print(json.dumps({**settings, **found, "seconds": round(time.monotonic() - begin, 1), **machine}))
    return int(total["wrong"] + under_commands["wrong"] + unseen > 0)


if __name__ == "__main__":
    sys.exit(main())
