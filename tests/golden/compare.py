"""Whether a change has moved any number: `python -m tests.golden.compare BASE [HEAD]`.

Does the cases of `cases.py` with two versions of csrec_dist on this machine, side by side, and compares losses, the
bytes of weights and labels, and metrics, each case with itself in the other version. The exit status is 1 when anything
differs. HEAD is a commit, or without it the working tree. `--write` writes digits.json, which test_golden.py reads.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.golden.cases import CASES, chosen
from tests.golden.summary import Summary, differences

ROOT = Path(__file__).resolve().parents[2]
DIGITS = Path(__file__).with_name("digits.json")
NUM_DIGITS = 6
SHOWN = 5
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def unpack(commit: str, folder: Path) -> Path:
    """The csrec_dist of a commit in a folder of its own, so that nothing else of the commit can be imported."""
    folder.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit, "csrec_dist"], capture_output=True)
    if archive.returncode:
        raise SystemExit(f"git has no csrec_dist of {commit}: {archive.stderr.decode().strip()}")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def start(tree: Path, folder: Path, cases: Sequence[str]) -> subprocess.Popen[bytes]:
    """Begin the cases with the csrec_dist of `tree`; folder/summary.json comes of it."""
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(tree), str(ROOT)]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }
    command = [sys.executable, "-m", "tests.golden.runs", str(folder), *cases]
    return subprocess.Popen(command, cwd=folder, env=environment)


def summaries(trees: dict[str, Path], folder: Path, cases: Sequence[str]) -> list[dict[str, Summary]]:
    """The summaries of all cases with each tree, which work side by side."""
    started = {name: start(tree, folder / f"{name}-runs", cases) for name, tree in trees.items()}
    failed = [name for name, process in started.items() if process.wait()]
    if failed:
        raise SystemExit(f"The runs of {' and '.join(failed)} failed; see above.")
    return [json.loads((folder / f"{name}-runs" / "summary.json").read_text()) for name in trees]


def report(base: dict[str, Summary], head: dict[str, Summary]) -> bool:
    """Print what differs, the first things of each case; whether all is equal."""
    num_different = 0
    for case in base:
        different = differences(base[case], head[case])
        num_different += bool(different)
        for each in different[:SHOWN]:
            print(f"{case}: {each}")
        if len(different) > SHOWN:
            print(f"{case}: and {len(different) - SHOWN} more")
    num_compared = sum(len(part) for summary in base.values() for part in summary.values())
    print(f"{num_different} of {len(base)} cases differ; compared {num_compared} curves, tensors and metrics")
    return num_different == 0


def digits(summary: Summary) -> dict[str, dict[str, list[float] | float]]:
    """What is written down of a case: the loss of every step and the metrics at 10 on test, to six digits."""
    losses = {name: curve for name, curve in summary["losses"].items() if name.endswith("train/loss")}
    metrics = {name: value for name, value in summary["metrics"].items() if ".test." in name and name.endswith("@10")}
    assert losses, "no curve is called train/loss"
    assert metrics, "no metric at 10 is of the split test"
    return {
        "losses": {name: [rounded(loss) for loss in curve] for name, curve in losses.items()},
        "metrics": {name: rounded(value) for name, value in metrics.items()},
    }


def lines(value: Any, indent: str = "") -> str:
    """JSON with a line for each number, and for each list."""
    if not isinstance(value, dict):
        return json.dumps(value)
    inner = indent + " "
    body = ",\n".join(f"{inner}{json.dumps(key)}: {lines(each, inner)}" for key, each in value.items())
    return f"{{\n{body}\n{indent}}}"


def rounded(value: float) -> float:
    """To six significant digits."""
    return float(f"{value:.{NUM_DIGITS}g}")


def main() -> int:
    """Compare, or write digits.json; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.compare", description=__doc__.partition("\n")[0])
    parser.add_argument("base", nargs="?", metavar="BASE", help="a commit")
    parser.add_argument("head", nargs="?", metavar="HEAD", help="another; default: the working tree")
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT", help="only cases with TEXT in their name; repeatable"
    )
    parser.add_argument("--write", action="store_true", help="write digits.json from the working tree")
    options = parser.parse_args()
    if options.write == bool(options.base) or (options.write and options.only):
        parser.error("give BASE, or --write alone")
    if not chosen(options.only):
        parser.error(
            f"no case has {' or '.join(options.only)} in its name; there are {', '.join(case.name for case in CASES)}"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        head = unpack(options.head, folder / "head") if options.head else ROOT
        if not options.write:
            trees = {"base": unpack(options.base, folder / "base"), "head": head}
            return 0 if report(*summaries(trees, folder, options.only)) else 1
        [written] = summaries({"head": head}, folder, [])
    DIGITS.write_text(lines({case: digits(summary) for case, summary in written.items()}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
