"""Files of a finished run that are missing, cut off or something else: the command that reads one says which it is."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from csrec_dist.files import write_record
from tests.helpers.bad_input import Case, assert_refused


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def longer(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(bytes(100))


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def another_file(path: Path) -> None:
    path.write_text("years of work\n")


def deep_json(path: Path) -> None:
    path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def a_list(path: Path) -> None:
    path.write_text("[1, 2]")


def nothing_in_it(path: Path) -> None:
    write_record(path, {})


BYTES = (missing, empty, half, longer, zeros, a_folder, a_link_to_itself, another_file)
JSON = (missing, empty, half, zeros, a_folder, a_link_to_itself, another_file, deep_json, a_list, nothing_in_it)

READ_BY: dict[str, tuple[str, tuple[Callable[[Path], None], ...]]] = {
    "config.yaml": ("report {run}", (missing, empty, half, a_folder, a_link_to_itself, another_file)),
    "dataset/dataset.json": ("recommend {run}", JSON),
    "dataset/items.parquet": ("recommend {run}", BYTES),
    "dataset/users.parquet": ("recommend {run}", BYTES),
    "dataset/sequences.parquet": ("recommend {run}", BYTES),
    "dataset/train-00000-of-00004.parquet": ("reshard {run}/dataset {run}/new --num-shards 2", BYTES),
    "dataset/log.parquet": ("prepare --append {log} --dataset {run}/dataset --to {run}/new", BYTES),
    "student/config.json": ("recommend {run}", JSON),
    "student/model.safetensors": ("recommend {run}", BYTES),
    "labels/label_cache.index.json": ("labels info {run}", JSON),
    "labels/labels-00001-of-00004.safetensors": ("labels verify {run}", BYTES),
    "labels/items-00000-of-00001.safetensors": ("labels verify {run}", BYTES),
    "teachers/teacher-0/model.safetensors": ("labels verify {run} --recompute 1", BYTES),
    "teachers/teacher-0/config.json": ("labels verify {run} --recompute 1", JSON),
    "ranks/student-test.parquet": ("compare {run} {run}:teacher-0", BYTES),
    "distill.done.json": ("recommend {run}", JSON),
    "metrics.json": ("report {run}", JSON),
}
CASES = [(file, damage) for file, (_, damages) in READ_BY.items() for damage in damages]


@pytest.mark.parametrize(("file", "damage"), CASES, ids=[f"{file} {damage.__name__}" for file, damage in CASES])
def test_a_damaged_file_is_named(
    file: str,
    damage: Callable[[Path], None],
    run_copy: tuple[list[str], Path],
    small_log: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, run = run_copy

    def command(folder: Path) -> list[str]:
        damage(run / file)
        return READ_BY[file][0].format(run=run, log=small_log).split()

    # The caches of the labels print what is wrong with each file, and the last sentence counts them.
    parts = () if "verify" in READ_BY[file][0] else (f"{file}|{Path(file).parent} |{run} ",)
    assert_refused(run, capsys, Case(file, command, parts))
