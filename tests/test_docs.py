"""The examples of the documentation run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from csrec_dist.cli import build_parser, main
from csrec_dist.experiments.tune.space import read_space
from csrec_dist.files import read_json
from tests.helpers.ranks import free_port
from tests.helpers.shop import fit_shop, shop_log

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PYTHON = DOCS / "python.md"


def blocks_of(page: Path, language: str = "python") -> list[str]:
    """The blocks of a page in a language, with trainings of a single epoch."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks
    return [re.sub(r'max_epochs("?): \d+', r"max_epochs\1: 1", block) for block in blocks]


def run_blocks(page: Path, blocks: list[str]) -> dict[str, object]:
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)
    return names


def test_the_examples_of_a_page_run(finished_run: tuple[Path, Path]) -> None:
    page = DOCS / "data.md"
    run_blocks(page, [block.replace("runs/demo", str(finished_run[1])) for block in blocks_of(page)])


@pytest.fixture
def sales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which there is a sales.csv."""
    shop_log(num_items=12).to_csv(tmp_path / "sales.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_examples_of_python_run(sales: Path) -> None:
    names = run_blocks(PYTHON, blocks_of(PYTHON))
    assert set(names["lists"]["user"]) <= {"c17", "c3"}  # type: ignore[index]


def test_the_examples_of_new_data_run(sales: Path) -> None:
    november = shop_log(num_customers=24, num_items=14)
    november["event_time"] = november["event_time"].str.replace("2026-03", "2026-11")
    november.to_csv(sales / "november.csv", index=False)
    page = DOCS / "new_data.md"
    names = run_blocks(page, blocks_of(page))
    (sales / "data/shop_november").rename(sales / "data/in_python")
    (sales / "runs/shop_november").rename(sales / "runs/in_python")
    command = next(line for line in blocks_of(page, "sh")[0].splitlines() if "--append" in line)
    assert main(command.split()[1:]) == 0
    (sales / "shop_november.yaml").write_text(blocks_of(page, "yaml")[0])
    assert main(["run", "--config", "shop_november.yaml"]) == 0
    assert read_json("runs/shop_november/metrics.json") == read_json("runs/in_python/metrics.json")
    assert names["more"].num_items > names["data"].num_items  # type: ignore[attr-defined]


def test_the_examples_of_serving_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All formats give one list for one history, which the page reads in four ways."""
    _, run = fit_shop(tmp_path)
    monkeypatch.chdir(tmp_path)
    page = DOCS / "serving.md"
    names: dict[str, Any] = run_blocks(page, blocks_of(page))
    numbers = {raw: number for number, raw in names["raw"].items()}
    history = ["sku2", "sku0", "sku3"]
    wanted = [numbers[raw] for raw in run.recommender.recommend(histories=[history], top_n=5)["item"]]
    of_torch, of_numpy = names["of_torch"][1].tolist(), names["of_numpy"][1].tolist()
    assert names["of_onnx"][1].tolist() == of_torch == of_numpy == wanted
    unseen = run.recommender.recommend(histories=[history], top_n=5, exclude_seen=True)["item"].tolist()
    assert names["unseen"] == unseen


def test_the_run_of_the_readme_is_that_of_the_config_of_python(sales: Path) -> None:
    readme = ROOT / "README.md"
    names = run_blocks(readme, blocks_of(readme))
    in_python = names["run"].metrics  # type: ignore[attr-defined]
    (sales / "shop.yaml").write_text(blocks_of(PYTHON, "yaml")[0])
    (sales / "runs").rename(sales / "runs_in_python")
    assert main(["run", "--config", "shop.yaml"]) == 0
    assert read_json("runs/shop/metrics.json") == in_python
    assert main(["recommend", "runs/shop", "-n", "5", "--exclude-seen"]) == 0


def lines_of_readme(section: str) -> list[list[str]]:
    """The commands of a section, without comments."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("    ")]


def test_the_three_commands_of_the_readme_go_from_a_csv_to_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = {"customer": "user", "sku": "item", "event_time": "timestamp"}
    shop_log(num_items=12).rename(columns=usual).to_csv(tmp_path / "clicks.csv", index=False)
    monkeypatch.chdir(tmp_path)
    commands = lines_of_readme("Your own log")
    assert [command[:2] for command in commands] == [["csrec-dist", name] for name in ("init", "run", "recommend")]
    for _, name, *arguments in commands:
        short = ["--set", "training.max_epochs=1"] if name == "run" else []
        assert main([name, *arguments, *short]) == 0, name
    assert (tmp_path / "runs/clicks/report/report.html").exists()
    assert (tmp_path / "runs/clicks/recommendations.parquet").exists()


def test_the_commands_of_the_readmes_cluster_are_commands() -> None:
    commands = lines_of_readme("A cluster")
    assert len(commands) == 5
    names = {"run", "bench"}
    for command in commands:
        assert (ROOT / command[0]).exists() or command[0] in {"accelerate", "sbatch"}
        place = next(
            number for number, word in enumerate(command) if word in names and command[number - 1] != "--config"
        )
        assert callable(build_parser().parse_args(command[place:]).command)


def test_own_data_goes_from_a_csv_to_lists_and_init_says_what_the_page_shows(
    sales: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = DOCS / "own_data.md"
    commands = [shlex.split(line) for block in blocks_of(page, "bash") for line in block.splitlines()]
    assert {command[0] for command in commands} == {"csrec-dist"}
    for name, *arguments in (command[1:] for command in commands):
        short = ["--set", "training.max_epochs=1"] if name == "run" else []
        assert main([name, *arguments, *short]) == 0, name
        said = capsys.readouterr().out
        if name == "init":
            assert "".join(f"    {line}\n" for line in said.splitlines()) in page.read_text(encoding="utf-8")
    run_blocks(page, blocks_of(page))
    assert (sales / "lists.parquet").exists()
    assert (sales / "runs/shop/report/report.html").exists()


def test_the_examples_of_tuning_run(sales: Path) -> None:
    page = DOCS / "tuning.md"
    names = run_blocks(page, blocks_of(page))
    assert len(names["tuning"].trials) == 4  # type: ignore[attr-defined]
    read_space(yaml.safe_load(blocks_of(page, "yaml")[0]), names["config"])  # type: ignore[arg-type]


@pytest.mark.launch
def test_the_script_of_python_runs_under_a_launcher(sales: Path) -> None:
    """On two ranks that nobody has joined before: all of them see the same figure, and end well."""
    script = next(block for block in blocks_of(PYTHON) if block.startswith("# train.py"))
    noted = 'import os; open("figure-" + os.environ["RANK"], "w").write(str(run.metrics["test"]["ndcg@10"]))\n'
    (sales / "train.py").write_text(script + noted)
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
        [*command, "train.py"], cwd=sales, env=environ, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = [(sales / f"figure-{rank}").read_text() for rank in range(2)]
    assert figures[0] == figures[1] != ""
    assert done.stdout.count("epoch 1/1") == 2  # the first rank alone speaks, of a teacher and the student
