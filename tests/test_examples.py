"""What is in examples/: the notebook runs in Jupyter, each script does what its tutorial says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from csrec_dist.files import read_json
from tests.helpers.ranks import free_port

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
PAGES = (*ROOT.glob("docs/tutorials/*.md"), ROOT / "docs/gallery.md")
SMALL = ("training.max_epochs=1", "dataset.window=8", "dataset.min_interactions=3", "dataset.num_shards=4")


def said(folder: Path, *command: str | Path, **environ: str) -> str:
    """What a program prints in a folder."""
    names = {name: value for name, value in os.environ.items() if name not in {"RANK", "WORLD_SIZE", "LOCAL_RANK"}}
    names |= {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "ACCELERATE_USE_CPU": "true"} | environ
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=names, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def settings(*values: str) -> list[str]:
    """--set for each of the values."""
    return [part for value in (*SMALL, *values) for part in ("--set", value)]


def test_every_script_stands_on_a_page_as_it_is() -> None:
    """By the line that the site replaces by the file; the notebook is linked."""
    texts = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for path in EXAMPLES.iterdir():
        wanted = f"](../../examples/{path.name})" if path.suffix == ".ipynb" else f'--8<-- "examples/{path.name}"'
        assert wanted in texts, path


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.sh")), ids=lambda path: path.name)
def test_a_shell_script_is_executable_and_sound(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True, timeout=20)


def test_the_notebook_has_no_output_and_no_state() -> None:
    """What is run is what is read, and a change of it is a change of its lines."""
    for cell in nbformat.read(EXAMPLES / "own_data.ipynb", as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.long
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    notebook = nbformat.read(EXAMPLES / "own_data.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace('"max_epochs": 10', '"max_epochs": 2')
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    pages = [output["data"]["text/html"] for output in shown if "text/html" in output["data"]]
    assert sum("<table" in page for page in pages) >= 6  # tables of data, dataset, run, metrics and lists
    assert (tmp_path / "models/shop/README.md").is_file()


@pytest.mark.long
def test_own_data_from_a_made_up_log_and_from_a_file(tmp_path: Path, small_log: Path) -> None:
    text = said(tmp_path, sys.executable, EXAMPLES / "own_data.py", "--epochs", "2")
    assert re.search(r"base: NDCG@10 0\.\d+\nstudent: NDCG@10 0\.\d+\nreport: runs/shop/report/report.html", text)
    assert "a new visitor" in text
    text = said(tmp_path, sys.executable, EXAMPLES / "own_data.py", small_log, "--name", "file", "--epochs", "1")
    assert "report: runs/file/report/report.html" in text


@pytest.mark.long
@pytest.mark.launch
def test_two_nodes_give_what_one_process_gives(tmp_path: Path, small_log: Path) -> None:
    config = ROOT / "configs/experiments/demo.yaml"
    same = settings(f"dataset.source={small_log}", "model.dropout=0", "baseline=false")
    port = str(free_port())
    said(tmp_path, EXAMPLES / "two_nodes.sh", config, *same, MAIN_PORT=port, OMP_NUM_THREADS="1")
    alone = [sys.executable, "-m", "csrec_dist", "run", "--config", config, *same, "--set", "name=alone"]
    said(tmp_path, *alone, OMP_NUM_THREADS="1")
    two, one = (read_json(tmp_path / "runs" / name / "metrics.json")["test"] for name in ("demo", "alone"))
    assert two["ndcg@10"] == pytest.approx(one["ndcg@10"], abs=1e-4)
    assert len(read_json(tmp_path / "runs/demo/distill.done.json")["usage"]) == 2


@pytest.mark.long
@pytest.mark.launch
def test_a_large_catalog_in_slices_gives_the_same(tmp_path: Path) -> None:
    sizes = {"ITEMS": "3000", "USERS": "300", "INTERACTIONS": "6000", "STEPS": "2", "OMP_NUM_THREADS": "1"}
    text = said(tmp_path, EXAMPLES / "large_catalog.sh", **sizes)
    assert re.search(r"1 slice: a rank's peak memory [\d,]+ MiB\n2 slices: a rank's peak memory [\d,]+ MiB", text)
    whole, sliced = (read_json(tmp_path / f"runs/large_{slices}/metrics.json")["valid"] for slices in (1, 2))
    assert sliced["ndcg@10"] == pytest.approx(whole["ndcg@10"], abs=1e-3)


@pytest.mark.long
def test_a_row_of_table_3_has_all_methods(tmp_path: Path, small_log: Path) -> None:
    text = said(tmp_path, EXAMPLES / "table3.sh", small_log, *settings(), OMP_NUM_THREADS="1")
    row = next(line for line in text.splitlines() if line.startswith("| gru4rec |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    assert len(cells) == 10  # two metrics of five methods
    assert all(re.match(r"(\*\*)?\d+\.\d\d", cell) for cell in cells), cells


@pytest.mark.long
def test_a_language_model_is_distilled_from_factored_labels(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="pip install 'csrec_dist[examples]'")
    options = ("--steps", "25", "--words", "500")
    text = said(tmp_path, sys.executable, EXAMPLES / "language_model.py", *options, OMP_NUM_THREADS="1")
    assert "labels: 512 bytes a token; dense in half precision: 1,000" in text
    exact, stored = map(float, re.search(r"dense logits: (\S+) off, as stored (\S+)", text).groups())  # type: ignore[union-attr]
    assert exact < 2e-6
    assert stored < 1e-4
    perplexities = [float(value) for value in re.findall(r"perplexity ([\d.]+)", text)]
    assert len(perplexities) == 4
    assert all(1 < value < 500 for value in perplexities)  # better than chance over 500 words
