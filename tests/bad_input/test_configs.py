"""Configs, paths of logs and model folders that cannot be meant: one sentence, exit status 2, nothing is changed."""

import json
import os
import re
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


def latin(folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_bytes("name: é\n".encode("latin-1"))
    return path


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
    "config: empty": (raw(""), "not a mapping of sections"),
    "config: a list": (raw("- a\n- b\n"), "not a mapping of sections"),
    "config: a word": (raw("hello"), "not a mapping of sections"),
    "config: a day that is none": (raw("name: 2024-02-30\n"), "that YAML cannot read .*between quotes"),
    "config: a number that is none": (raw("seed: !!int x\n"), "that YAML cannot read"),
    "config: a truth that is none": (raw("baseline: !!bool maybe\n"), "that YAML cannot read"),
    "config: a time that is none": (raw("name: !!timestamp soon\n"), "that YAML cannot read"),
    "config: a tab": (raw("name: x\n\tseed: 1\n"), "not valid YAML: .*line 2"),
    "config: a bracket that is open": (raw("name: [x\n"), "not valid YAML: .*line"),
    "config: two documents": (raw("name: x\n---\nname: y\n"), "not valid YAML"),
    "config: a key twice": (raw("name: x\nseed: 1\nseed: 2\n"), "seed occurs twice in lines 2 and 3"),
    "config: an object of Python": (
        raw("name: !!python/object/apply:os.getcwd []\n"),
        "not valid YAML: .*python/object",
    ),
    "config: an alias of nothing": (raw("name: *none\n"), "not valid YAML: .*none"),
    "config: a list in itself": (raw("name: &a [*a]\n"), "name: "),
    "config: a mapping in itself": (raw("name: x\ndataset: &a {source: *a}\n"), "dataset.source"),
    "config: bytes": (raw("name: !!binary AAAA\n"), "name: "),
    "config: a name that is a date": (raw("name: 2020-01-01\ndataset: {source: x}\n"), "name: "),
    "config: a name that is a path": (lambda folder: written(folder, name="../x"), r"name: .*'\.\./x'"),
    "config: a name that is empty": (lambda folder: written(folder, name=""), "name: "),
    "config: no dataset": (raw("name: x\n"), "dataset: missing, but required"),
    "config: a section that is a list": (raw("name: x\ndataset: [1]\n"), r"dataset: .*\[1\]"),
    "config: an unknown section": (
        lambda folder: written(folder, trainig={}),
        "trainig: unknown key; did you mean training",
    ),
    "config: an unknown key": (
        lambda folder: written(folder, training={"lerning_rate": 1}),
        r"training\.lerning_rate: unknown key; did you mean learning_rate",
    ),
    "config: a key that is a number": (raw("name: x\n1: 2\ndataset: {source: x}\n"), "1: Keys should be strings"),
    "config: an unknown method": (lambda folder: written(folder, method="modle_level"), "method: .*model_level"),
    "config: an unknown model": (
        lambda folder: written(folder, model="sasrek"),
        "'sasrek' is not a model; did you mean sasrec",
    ),
    "config: a model without a name": (lambda folder: written(folder, model={"width": 4}), "model: needs a name"),
    "config: a model that is a number": (lambda folder: written(folder, model=3), "model"),
    "config: a rate that is NaN": (
        lambda folder: written(folder, training={"learning_rate": float("nan")}),
        "learning_rate: .*nan",
    ),
    "config: a rate that is infinite": (
        lambda folder: written(folder, training={"learning_rate": float("inf")}),
        "learning_rate: .*inf",
    ),
    "config: a rate below 0": (lambda folder: written(folder, training={"learning_rate": -1}), "learning_rate: .*-1"),
    "config: teachers of method base": (
        lambda folder: written(folder, method="base", baseline=True),
        "baseline: method base",
    ),
    "config: reverse KL on top-k": (
        lambda folder: written(folder, labels={"form": "topk"}),
        "labels.form: topk .*set training.kl",
    ),
    "config: three models for two": (
        lambda folder: written(folder, teachers={"model": ["gru4rec"] * 3}),
        "lists 3 models for 2",
    ),
    "config: an engine without its file": (
        lambda folder: written(folder, distributed={"engine": "deepspeed"}),
        "distributed.deepspeed",
    ),
    "config: not UTF-8": (lambda folder: latin(folder), "it is not UTF-8 text"),
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
    assert re.search(part, " ".join(message.split()))
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


def leaves(schema: type[Any], place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The places of all keys of the schema that are no sections."""
    found = []
    for name, key in schema.model_fields.items():
        if isinstance(key.annotation, type) and hasattr(key.annotation, "model_fields") and name != "model":
            found += leaves(key.annotation, (*place, name))
        else:
            found.append((*place, name))
    return found


FREE = {("dataset", "keep"), ("dataset", "weights")}
"""Keys that take mappings with any key."""


@pytest.mark.parametrize("place", leaves(Config), ids=".".join)
def test_every_key_names_itself_and_what_it_received(place: tuple[str, ...]) -> None:
    for wrong in ({"?": "?"}, [["?"]]):
        if place in FREE and isinstance(wrong, dict):
            continue
        values: dict[str, Any] = json.loads(json.dumps(GOOD))
        section = values
        for name in place[:-1]:
            section = section.setdefault(name, {})
        section[place[-1]] = wrong
        with pytest.raises(UserError, match=rf"(?s){'.'.join(place)}.*([?]|needs a name)") as caught:
            parse_config(values)
        assert len(str(caught.value)) < 2000
