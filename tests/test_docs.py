"""The examples of the documentation run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.ranks import free_port
from tests.helpers.shop import shop_log

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def blocks_of(page: str) -> list[str]:
    """The Python blocks of a page, with trainings of a single epoch."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks
    return [re.sub(r'"max_epochs": \d+', '"max_epochs": 1', block) for block in blocks]


def run_blocks(page: str, blocks: list[str]) -> dict[str, object]:
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec"), names)
    return names


@pytest.mark.parametrize("page", ["data"])
def test_the_examples_of_a_page_run(page: str, finished_run: tuple[Path, Path]) -> None:
    run_blocks(page, [block.replace("runs/demo", str(finished_run[1])) for block in blocks_of(page)])


def test_the_examples_of_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop_log().to_csv(tmp_path / "sales.csv", index=False)
    monkeypatch.chdir(tmp_path)
    names = run_blocks("python", blocks_of("python"))
    assert set(names["lists"]["user"]) <= {"c17", "c3"}  # type: ignore[index]


@pytest.mark.launch
def test_the_script_of_python_runs_under_a_launcher(tmp_path: Path) -> None:
    """On two ranks that nobody has joined before: all of them see the same figure, and end well."""
    shop_log().to_csv(tmp_path / "sales.csv", index=False)
    script = next(block for block in blocks_of("python") if block.startswith("# train.py"))
    noted = 'import os; open("figure-" + os.environ["RANK"], "w").write(str(run.metrics["test"]["ndcg@10"]))\n'
    (tmp_path / "train.py").write_text(script + noted)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
    ]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, "train.py"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = [(tmp_path / f"figure-{rank}").read_text() for rank in range(2)]
    assert figures[0] == figures[1] != ""
    assert done.stdout.count("epoch 1/1") == 2  # the first rank alone speaks, of a teacher and the student
