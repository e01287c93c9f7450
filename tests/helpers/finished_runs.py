"""A small finished run to start again, and what its folder holds."""

import hashlib
from pathlib import Path

import pytest

from csrec_dist.cli import main

CONFIG = """
name: r
output: {folder}/runs
dataset: {{source: {log}, window: 8, min_interactions: 3, num_shards: 4}}
model: {{name: gru4rec, width: 8, hidden: 8, dropout: 0}}
training: {{batch_size: 256, max_epochs: 1, learning_rate: 0.01, warmup_steps: 0}}
"""


def finish_run(folder: Path, log: Path) -> tuple[Path, Path]:
    """The config and the folder of a finished run."""
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder, log=log))
    assert main(["run", "--config", str(folder / "config.yaml")]) == 0
    return folder / "config.yaml", folder / "runs/r"


def content(folder: Path) -> dict[str, str]:
    """Every file, link and folder below a folder, with a digest of its bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        is_whole = path.is_file() and not path.is_symlink()
        name = f"{path.relative_to(folder)}{'' if is_whole else '/'}"
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if is_whole else str(path.is_symlink())
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command says that ends with status 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    return capsys.readouterr().err
