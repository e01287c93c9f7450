"""A start that costs nothing: which large packages each command has imported when it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LARGE = {
    *("accelerate", "datasets", "deepspeed", "matplotlib", "pandas", "polars"),
    *("pyarrow", "pydantic", "scipy", "sympy", "tensorboard", "torch", "torch._dynamo", "transformers"),
}
ENDED = f"""
import sys
from csrec_dist.cli import main
try:
    main()
finally:
    print("imported", *sorted({LARGE} & set(sys.modules)))
"""
CONFIG = {"polars", "pydantic"}
"""What reading a config takes: its schema knows the readers of logs."""
FILES = {*CONFIG, "pyarrow"}

TRAINING = {"accelerate", "datasets", "pandas", "tensorboard"}
"""One process has no wrapper of torch's, which would import its compiler."""

COMMANDS: list[tuple[str, set[str]]] = [
    ("--help", set()),
    ("trian", set()),
    ("run --help", set()),
    ("fetch ml-100k --source none.zip", set()),
    ("init --list", set()),
    ("init demo", set()),
    ("simulate world --interactions 9", {"pyarrow", "pydantic"}),
    ("simulate world --interactions 500 --users 50 --items 60", {"pyarrow", "pydantic"}),
    ("init none.csv", FILES),
    ("init LOG", FILES),
    ("run --config CONFIG --set training.betta=1", CONFIG),
    ("prepare --config CONFIG --set dataset.source=none.csv --set output=.", FILES),
    ("prepare --config CONFIG", FILES),
    ("export none --format onx", set()),
    ("serve none --max-lists 0", set()),
    ("report none", FILES),
    ("report RUN", {*FILES, "matplotlib", "scipy"}),
    ("report RUN RUN", FILES),
    ("compare RUN none", FILES),
    ("compare RUN RUN:teacher-0", {*FILES, "scipy"}),
    ("run --config CONFIG --set output=.", {*FILES, *TRAINING, "matplotlib", "scipy", "torch"}),
    ("recommend none", {*FILES, "torch"}),
    ("recommend RUN -n 3 --output lists.parquet", {*FILES, "pandas", "torch"}),
    ("labels info none", {"pyarrow", "pydantic"}),
    ("labels info RUN", {"pyarrow", "pydantic"}),
    ("labels verify RUN", {"pyarrow", "pydantic"}),
    ("tune --config CONFIG --space none", FILES),
    ("bench --set training.betta=1", CONFIG),
    ("bench --compare none none", CONFIG),
]


@pytest.mark.parametrize(("command", "expected"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_command_imports_what_its_work_needs(
    command: str, expected: set[str], finished_run: tuple[Path, Path], small_log: Path, tmp_path: Path
) -> None:
    config, run = finished_run
    arguments = command.replace("CONFIG", str(config)).replace("RUN", str(run)).replace("LOG", str(small_log)).split()
    assert imported(ENDED, arguments, tmp_path) == expected


def test_a_run_that_is_done_imports_no_engine_and_no_reader_of_training(
    finished_run: tuple[Path, Path], tmp_path: Path
) -> None:
    found = imported(ENDED, ["distill", "--config", str(finished_run[0])], tmp_path)
    assert found == {*FILES, "accelerate", "torch"}


def test_the_package_itself_imports_nothing(tmp_path: Path) -> None:
    code = "import sys, csrec_dist; print('imported', *set(sys.modules) & " + repr(LARGE) + ")"
    assert imported(code, [], tmp_path) == set()


API = f"""
import sys
from csrec_dist import CSRec, Dataset
run = CSRec("r", output=".")
LINES
print("imported", *sorted({LARGE} & set(sys.modules)))
"""
PREPARED = """
import polars
log = polars.read_csv(sys.argv[1])
Dataset.prepare(log, "data", window=8, min_interactions=3, num_shards=4)
"""


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", FILES),
        (PREPARED, FILES),
        ("CSRec.load(sys.argv[2]).metrics", FILES),
        ("CSRec.load(sys.argv[2]).report()", {*FILES, "matplotlib", "scipy"}),
        ("from csrec_dist import Recommender; Recommender.from_pretrained(sys.argv[2])", {*FILES, "torch"}),
        ("from csrec_dist import load_labels; load_labels(sys.argv[2]).rows([1])", {*FILES, "torch"}),
    ],
)
def test_the_python_api_imports_what_a_line_needs(
    lines: str, expected: set[str], finished_run: tuple[Path, Path], small_log: Path, tmp_path: Path
) -> None:
    assert imported(API.replace("LINES", lines), [str(small_log), str(finished_run[1])], tmp_path) == expected


def imported(code: str, arguments: list[str], folder: Path) -> set[str]:
    """The large packages that a process names at its end."""
    command = [sys.executable, "-c", code, *arguments]
    environ = {name: value for name, value in os.environ.items() if name not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
    environ |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=240, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])
