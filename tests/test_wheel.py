"""The wheel, installed into a fresh environment: its content, and commands in an empty folder."""

import shutil
import site
import subprocess
import sys
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import polars as pl
import pytest

from csrec_dist import __version__
from csrec_dist.files import read_json
from csrec_dist.packaged_configs import packaged_configs

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("csrec_dist", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CITATION.cff")
SMALL = ("training.max_epochs=1", "dataset.num_shards=4", "dataset.window=8", "dataset.min_interactions=3")
OFFLINE = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")

pytestmark = pytest.mark.long


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True, timeout=300, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the checkout, which gets no build folder."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "checkout").mkdir()
    for name in SOURCES:
        source, copy = ROOT / name, folder / "checkout" / name
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, copy)
    pip("wheel", *OFFLINE, "--wheel-dir", str(folder), str(folder / "checkout"))
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheel; what it needs is read where these tests have it.

    A .pth file names that place. The .pth files there are not followed, so the checkout is not found by them.
    """
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    pip("--python", str(python), "install", *OFFLINE, str(wheel))
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return python


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """An empty folder to work in."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def said(folder: Path, *command: str | Path) -> str:
    """What a program prints in a folder, which finds nothing of this checkout."""
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environ, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_has_the_configs_the_mark_of_types_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = message_from_bytes(archive.read(f"csrec_dist-{__version__}.dist-info/METADATA"))
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*") if path.is_file()}
    packaged = {name.removeprefix("csrec_dist/") for name in names if name.startswith("csrec_dist/configs/")}
    assert packaged == configs
    assert "csrec_dist/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"csrec_dist", f"csrec_dist-{__version__}.dist-info"}
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"deepspeed", "docs", "examples", "test", "dev"} <= set(metadata.get_all("Provides-Extra"))
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# csrec_dist")


def test_the_package_is_that_of_the_wheel(installed: Path, empty: Path) -> None:
    place = said(empty, installed, "-c", "import csrec_dist; print(csrec_dist.__file__)").strip()
    assert Path(place).is_relative_to(installed.parents[1])
    listed = said(empty, installed.with_name("csrec-dist"), "init", "--list")
    assert all(f"  {config.name}" in listed for config in packaged_configs())


def test_a_run_like_the_demo_works_in_an_empty_folder(installed: Path, empty: Path, small_log: Path) -> None:
    csrec_dist = installed.with_name("csrec-dist")
    assert "next: csrec-dist run --config demo.yaml" in said(empty, csrec_dist, "init", "demo")
    settings = [part for setting in (*SMALL, f"dataset.source={small_log}") for part in ("--set", setting)]
    said(empty, csrec_dist, "run", "--config", "demo.yaml", *settings)
    said(empty, csrec_dist, "recommend", "runs/demo", "-n", "5", "--output", "lists.parquet")
    assert set(read_json(empty / "runs/demo/metrics.json")["models"]) >= {"student", "base"}
    assert (empty / "runs/demo/report/report.html").is_file()
    assert pl.read_parquet(empty / "lists.parquet")["user"].n_unique() == 40


def test_a_study_of_the_package_works_in_an_empty_folder(installed: Path, empty: Path, small_log: Path) -> None:
    settings = [part for setting in (*SMALL, f"dataset.source={small_log}") for part in ("--set", setting)]
    cell = ("seed=0", "student=gru4rec", "windows=disjoint", "method=Base")
    only = [part for value in cell for part in ("--only", value)]
    said(empty, installed.with_name("csrec-dist"), "study", "table3_lastfm", *only, *settings)
    assert "1 of 240 runs are done" in (empty / "studies/table3_lastfm/results.md").read_text(encoding="utf-8")
