"""Commands that are given something wrong: what they must say, and that they leave every file as it was."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from csrec_dist.cli import main
from tests.helpers.finished_runs import content

LONGEST_MESSAGE = 2000
LOG = "user,item,time\n" + "".join(f"u{user},i{item},{item}\n" for user in range(6) for item in range(6))


class Case(NamedTuple):
    """A name for the test's id; what makes the wrong thing in a folder and gives the command; parts of the message.

    The parts are what a user needs: the file and the place in it, the value that was received, and the remedy.
    """

    name: str
    command: Callable[[Path], list[str]]
    parts: tuple[str, ...]


def assert_refused(folder: Path, capsys: pytest.CaptureFixture[str], case: Case, status: int = 2) -> None:
    """The command ends with this status and one message that has the parts; nothing in the folder has changed."""
    command = case.command(folder)
    before = content(folder)
    capsys.readouterr()
    assert main(command) == status
    message = capsys.readouterr().err
    for part in case.parts:
        assert re.search(part, message), f"{part!r} is not in {message!r}"
    assert message.count("csrec-dist: ") == 1, message
    assert "Traceback" not in message
    assert len(message) < LONGEST_MESSAGE
    assert content(folder) == before


def write_config(folder: Path, **sections: object) -> Path:
    """A config of a small model in a folder, whose runs go there too; `dataset` is the log.csv there unless given."""
    path = folder / "config.yaml"
    values = {"name": "x", "output": str(folder / "runs"), "model": {"name": "gru4rec", "width": 4}}
    values |= {"dataset": {"source": str(folder / "log.csv"), "min_interactions": 1}}
    path.write_text(yaml.safe_dump(values | sections, allow_unicode=True))
    return path


def prepare(folder: Path, **dataset: object) -> list[str]:
    """The command that prepares log.csv with these keys of `dataset`."""
    keys = {"source": str(folder / "log.csv"), "min_interactions": 1} | dataset
    return ["prepare", "--config", str(write_config(folder, dataset=keys))]
