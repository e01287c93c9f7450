"""Progress in a notebook: frames for IPython's display, and a real kernel where one is installed."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from csrec_dist.training import notebook
from csrec_dist.training.telemetry import StageLog

ROOT = Path(__file__).resolve().parents[2]


class Frames:
    """IPython's display of one output, which keeps what is shown."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def display(self, frame: Any, display_id: bool) -> "Frames":
        assert display_id
        self.update(frame)
        return self

    def update(self, frame: Any) -> None:
        self.shown.append(frame._repr_html_())


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> Frames:
    """This process is a kernel's as far as IPython tells."""
    shell, ipython, display, frames = (
        type("ZMQInteractiveShell", (), {}),
        ModuleType("IPython"),
        ModuleType(""),
        Frames(),
    )
    ipython.get_ipython, display.display = shell, frames.display  # type: ignore[attr-defined]
    monkeypatch.setattr("builtins.get_ipython", shell, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(notebook, "SECONDS_A_FRAME", 0.0)
    return frames


def test_a_stage_moves_a_bar_and_removes_it(frames: Frames) -> None:
    with StageLog("teach/<b>", None, show=True) as log:
        log.advance("before the total is known")
        assert frames.shown == []
        log.expect(4, 1)
        log.advance("loss 2.5")
        log.progress(3, 4)
    assert ['value="1" max="4"' in frames.shown[0], 'value="2" max="4"' in frames.shown[1]] == [True, True]
    assert "loss 2.5" in frames.shown[1]
    assert "3/4 loss 2.5" in frames.shown[2]
    assert all("teach/&lt;b&gt;" in frame for frame in frames.shown[:-1])
    assert frames.shown[-1] == ""


def test_other_ranks_show_nothing(frames: Frames) -> None:
    with StageLog("teach", None, show=False) as log:
        log.expect(4)
        log.advance()
    assert frames.shown == []


def test_few_frames_are_sent(frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "SECONDS_A_FRAME", 3600.0)
    with StageLog("teach", None, show=True) as log:
        log.expect(1000)
        for _ in range(1000):
            log.advance()
    assert frames.shown == []


CELLS = [
    "from csrec_dist import CSRec, Dataset\nfrom tests.helpers.shop import DATASET, MODEL, TRAINING, shop_log",
    "Dataset.prepare(shop_log(), 'data', **DATASET)",
    "run = CSRec('shop', MODEL, training=TRAINING)\nrun.fit(Dataset('data'))",
]


@pytest.mark.skipif(not importlib.util.find_spec("nbclient"), reason="nbclient and ipykernel are not installed")
def test_a_notebook_shows_results_as_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbclient
    import nbformat

    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    sheet = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    client = nbclient.NotebookClient(sheet, timeout=240, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    results = [cell.outputs[-1]["data"]["text/html"] for cell in sheet.cells[1:]]
    assert "<td>train</td>" in results[0]
    assert "<td>CSRec-M student</td>" in results[1]
    said = "".join(str(output.get("data", {}).get("text/plain")) for output in sheet.cells[2].outputs)
    assert "epoch 2/2" in said
