"""What a user may give that is no config, no log or no model: one sentence, exit status 2, and nothing is changed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from csrec_dist.cli import main
from csrec_dist.config import Config, parse_config
from csrec_dist.errors import UserError
from csrec_dist.models import load
from csrec_dist.models.options import CONFIGS

GOOD: dict[str, Any] = {"name": "x", "model": {"name": "gru4rec"}, "dataset": {"source": "log.csv"}}
LONG = "a" * 5000
DEEP = 100_000


def written(folder: Path, **changes: Any) -> Path:
    """A config file with these keys."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(GOOD | {"output": str(folder / "runs")} | changes))
    return path


def looped(folder: Path) -> Path:
    path = folder / "loop.yaml"
    path.symlink_to(path)
    return path


def raw(text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "config.yaml"
        path.write_text(text)
        return path

    return write


def bomb() -> str:
    """Nine levels of nine references to the level before."""
    levels = [f"{letter}: &{letter} [{','.join(['*' + before] * 9)}]" for before, letter in pairwise("abcdefghi")]
    return "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]", *levels])


def source(make: Callable[[Path], Path | str]) -> Callable[[Path], Path]:
    return lambda folder: written(folder, dataset={"source": str(make(folder))})


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.csv")
    return folder / "pipe.csv"


def file(name: str, text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return write


BAD: dict[str, tuple[Callable[[Path], Path | str], str]] = {
    "config: missing": (lambda folder: folder / "none.yaml", "does not exist"),
    "config: a folder": (lambda folder: folder, "Is a directory"),
    "config: a loop of links": (looped, "Too many levels of symbolic links"),
    "config: a path too long": (lambda folder: LONG, "File name too long"),
    "config: a null byte": (lambda folder: "a\0b", "null byte"),
    "config: nested deeply": (raw("a: " + "[" * 5000 + "]" * 5000), "nested too deeply"),
    "config: references to references": (raw(bomb()), "unknown key"),
    "config: a long name": (lambda folder: written(folder, name="n" * 300), "at most 100 characters"),
    "config: a null byte in the name": (lambda folder: written(folder, name="a\0b"), "name: "),
    "config: a huge window": (
        lambda folder: written(folder, dataset={"source": "x", "window": 10**30}),
        "dataset.window",
    ),
    "config: a large window": (
        lambda folder: written(folder, dataset={"source": "x", "window": 10**9}),
        "dataset.window",
    ),
    "config: many layers": (
        lambda folder: written(folder, model={"name": "sasrec", "num_layers": 10**9}),
        "num_layers",
    ),
    "log: missing": (source(lambda folder: folder / "none.csv"), "does not exist"),
    "log: a device": (source(lambda folder: "/dev/zero"), "special file"),
    "log: a pipe": (source(pipe), "special file"),
    "log: a path too long": (source(lambda folder: LONG), "File name too long"),
    "log: a null byte": (source(lambda folder: "a\0b"), "null byte"),
    "log: JSON nested deeply": (source(file("a.json", '{"a":' * DEEP + "1" + "}" * DEEP)), "a.json"),
    "log: lists nested deeply": (source(file("a.jsonl", "[" * DEEP + "]" * DEEP)), "a.jsonl"),
    "log: short JSON nested deeply": (source(file("a.jsonl", '{"a":' * 9000 + "1" + "}" * 9000)), "a.jsonl"),
}


@pytest.mark.parametrize(("make", "part"), BAD.values(), ids=list(BAD))
def test_prepare_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Path | str], part: str
) -> None:
    config = make(tmp_path)
    assert main(["prepare", "--config", str(config)]) == 2
    message = capsys.readouterr().err
    assert part in message
    assert "Traceback" not in message
    assert len(message) < 2000
    assert not list(tmp_path.rglob("dataset.json"))


@pytest.mark.parametrize("command", ["labels info", "labels verify", "report", "recommend", "compare"])
def test_a_path_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    others = ["--output", str(tmp_path / "lists.parquet")] if command == "recommend" else []
    assert main([*command.split(), *[LONG] * (1 + (command == "compare")), *others]) == 2
    assert "Traceback" not in capsys.readouterr().err


def whole_numbers(schema: type[Any], place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The places of all keys of the schema that take a whole number."""
    found = []
    for name, key in schema.model_fields.items():
        if isinstance(key.annotation, type) and hasattr(key.annotation, "model_fields"):
            found += whole_numbers(key.annotation, (*place, name))
        elif "int" in str(key.annotation):
            found.append((*place, name))
    return found


@pytest.mark.parametrize("place", whole_numbers(Config), ids=".".join)
def test_no_key_takes_a_number_of_thirty_digits(place: tuple[str, ...]) -> None:
    values: dict[str, Any] = json.loads(json.dumps(GOOD))
    section = values
    for name in place[:-1]:
        section = section.setdefault(name, {})
    section[place[-1]] = 10**30
    with pytest.raises(UserError, match=r"\.".join(place)):
        parse_config(values)


@pytest.mark.parametrize("key", ["width", "num_layers", "num_items", "max_length", "hidden"])
@pytest.mark.parametrize("value", [10**9, 10**18, 10**30])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_model_folder_that_asks_for_too_much(
    finished_model: Callable[[str], Path], name: str, key: str, value: int
) -> None:
    """Refused before anything of that size is made."""
    folder = finished_model(name)
    saved = json.loads((folder / "config.json").read_text())
    place = saved if key in saved else saved["config"]
    if key not in place:
        pytest.skip(f"{name} has no {key}")
    place[key] = value
    (folder / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError):
        load(folder)


@pytest.fixture
def finished_model(tmp_path: Path) -> Callable[[str], Path]:
    from csrec_dist import models

    def make(name: str) -> Path:
        config = models.config_class(name).model_validate({"width": 4})
        models.build(config, 5, 4, 0).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def test_our_own_fault_keeps_its_traceback(tmp_path: Path) -> None:
    """What no user can mend is not dressed as their mistake."""
    planted = (
        "import csrec_dist.data.prepare as p\n"
        "def prepare(*a, **k): return 1 / 0\n"
        "p.prepare = p.identify = prepare\n"
        "from csrec_dist.cli import main\n"
        f"main(['prepare', '--config', {str(written(tmp_path))!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", planted], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
