"""Launchers and accelerate's configs: what they start, and what they say when something is missing."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


def local(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", ROOT / "launchers" / "local.sh", *arguments],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def python(tmp_path: Path) -> str:
    """An interpreter that has every module and prints its arguments, one a line."""
    path = tmp_path / "python"
    path.write_text('#!/bin/sh\n[ "$1" = -c ] || printf "%s\\n" "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_the_config_and_starts_ranks_with_it(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.distributed_type == "MULTI_GPU", "what starts ranks with and without GPUs"
    assert config.num_processes >= 2
    assert config.use_cpu == path.stem.startswith("cpu")
    assert yaml.safe_load(path.read_text())["mixed_precision"] == "no"


def test_help_is_printed() -> None:
    assert "usage: launchers/local.sh" in local("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the number of processes is missing"),
        (("two", "run"), "the number of processes is 'two'"),
        (("0", "run"), "the number of processes is '0'"),
        (("2",), "the command is missing"),
    ],
)
def test_what_is_missing_is_said(arguments: tuple[str, ...], message: str, python: str) -> None:
    done = local(*arguments, PYTHON=python)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_a_missing_interpreter_or_package_is_said(tmp_path: Path) -> None:
    assert "was not found; run make install" in local("2", "run", PYTHON="/no/python").stderr
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\nexit 1\n")
    bare.chmod(0o755)
    assert "has no accelerate; run make install" in local("2", "run", PYTHON=str(bare)).stderr


def test_one_process_needs_no_launcher(python: str) -> None:
    lines = local("1", "run", "--config", "a b.yaml", PYTHON=python).stdout.splitlines()
    assert lines == [
        f"+ {python} -m csrec_dist run --config a\\ b.yaml",
        "-m",
        "csrec_dist",
        "run",
        "--config",
        "a b.yaml",
    ]


def test_several_processes_start_under_accelerate(python: str) -> None:
    lines = local("3", "run", "--set", "name=a b", PYTHON=python, MAIN_PORT="29999").stdout.splitlines()
    command = lines[1:]
    assert command[:2] == ["-m", "accelerate.commands.launch"]
    assert command[command.index("--num_processes") + 1] == "3"
    assert command[command.index("--main_process_port") + 1] == "29999"
    assert "--multi_gpu" in command
    assert command[-5:] == ["-m", "csrec_dist", "run", "--set", "name=a b"]
    assert lines[0].startswith(f"+ {python} -m accelerate.commands.launch")
