"""The run that the tests of clusters start, and what has to come out of it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from csrec_dist.files import read_json
from tests.helpers.machines import environment

EPOCHS = 12


def write_config(folder: Path, log: Path) -> Path:
    """The config of a CSRec-M run that ends after EPOCHS epochs of the student, without randomness of dropout."""
    path = folder / "config.yaml"
    path.write_text(
        f"name: r\ndataset: {{source: {log}, window: 8, min_interactions: 3, num_shards: 5}}\n"
        "model: {name: sasrec, width: 16, dropout: 0}\nmethod: model_level\n"
        f"training: {{batch_size: 16, max_epochs: {EPOCHS}, patience: {EPOCHS}, learning_rate: 0.003, log_steps: 5}}\n"
    )
    return path


def arguments(config: Path, output: Path) -> list[str]:
    """Arguments of csrec-dist for the run; it leaves its folder `r` in `output`."""
    return ["run", "--config", str(config), "--set", f"output={output}"]


def run_alone(config: Path, output: Path) -> Path:
    """The run on one process; its folder."""
    command = [sys.executable, "-m", "csrec_dist", *arguments(config, output)]
    done = subprocess.run(command, env=environment({}), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return output / "r"


def student(run: Path) -> dict[str, Any]:
    """What the student's training left."""
    return read_json(run / "student" / "metrics.json")


def curve(run: Path) -> torch.Tensor:
    """Loss, cross-entropy and divergence of the student's epochs, [epochs, 3]."""
    names = ("loss", "cross_entropy", "divergence")
    return torch.tensor([[epoch[name] for name in names] for epoch in student(run)["epochs"]])


def check_equal(run: Path, reference: Path) -> None:
    """The run's curve and test metrics are the reference's to 1e-4."""
    torch.testing.assert_close(curve(run), curve(reference), rtol=0, atol=1e-4)
    found, expected = (read_json(folder / "metrics.json")["test"] for folder in (run, reference))
    assert found == pytest.approx(expected, abs=1e-4)


def said_epochs(output: str) -> list[int]:
    """The numbers of the epochs of the student that an output tells of."""
    return [int(number) for number in re.findall(rf"^distill epoch (\d+)/{EPOCHS} ", output, re.MULTILINE)]
