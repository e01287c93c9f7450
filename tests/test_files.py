"""Files that are written in blocks are those that are written at once; what was changed since is said."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from csrec_dist.errors import UserError
from csrec_dist.evaluation.per_row import RANKS_SCHEMA, write_part
from csrec_dist.files import (
    atomic_path,
    has_checksum,
    read_json,
    sha256_file,
    write_json,
    write_record,
    write_text,
)
from csrec_dist.tensor_files import (
    StreamedTensor,
    TensorSpec,
    checksum_problem,
    open_tensors,
    save_tensors,
    stream_tensors,
    write_rows,
)
from tests.helpers.permissions import as_a_colleague


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "b": torch.randn(7, 3, generator=generator),
        "a": torch.randn(5, generator=generator).bfloat16(),
        "places": torch.arange(6),
        "none": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5),
        "half": torch.randn(2, 2, generator=generator).half(),
        "wide": torch.randn(3, generator=generator).double(),
    }


@pytest.mark.parametrize("num_rows", [1, 2, 100])
def test_streamed_tensors_have_the_bytes_of_saved_ones(tmp_path: Path, num_rows: int) -> None:
    whole = tensors()
    save_file(dict(sorted(whole.items())), tmp_path / "saved", {"format": "pt"})
    streamed = {
        name: StreamedTensor(tensor.dtype, tuple(tensor.shape), tensor.split(num_rows) if tensor.ndim else [tensor])
        for name, tensor in whole.items()
    }
    stream_tensors(tmp_path / "streamed", streamed, {"format": "pt"})
    header, numbers = parts(tmp_path / "streamed")
    digest = header["__metadata__"].pop("sha256")
    assert (header, numbers) == parts(tmp_path / "saved")
    zeroed = (tmp_path / "streamed").read_bytes().replace(digest.encode(), b"0" * 64)
    assert digest == hashlib.sha256(zeroed).hexdigest()


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file and the bytes of its tensors."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), content[start:]


@pytest.mark.parametrize("place", [0.1, 0.5, 0.7, 0.999])
def test_a_flipped_bit_of_a_safetensors_file_is_said(tmp_path: Path, place: float) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, tensors(), {"format": "pt"})
    assert checksum_problem(path) is None
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)
    assert "a.safetensors" in (checksum_problem(path) or "")


def test_another_tools_safetensors_file_has_no_checksum(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a.safetensors")
    assert checksum_problem(tmp_path / "a.safetensors") is None


def test_a_record_is_read_as_it_was_written_and_refused_when_it_was_changed(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": {"é": 1e-9, "2": True}, "10": "x", "9": "y"}
    write_record(tmp_path / "r.json", value)
    assert read_json(tmp_path / "r.json") == value
    text = (tmp_path / "r.json").read_text()
    (tmp_path / "r.json").write_text(text.replace("    ", " "))
    assert read_json(tmp_path / "r.json") == value, "how it is set out does not count"
    for damaged in (text.replace("2.5", "2.4"), text.replace('"b"', '"c"'), text.replace('"checksum"', '"checksul"')):
        (tmp_path / "r.json").write_text(damaged)
        with pytest.raises(UserError, match=r"r\.json is damaged: its content does not have the checksum"):
            read_json(tmp_path / "r.json")


def test_a_record_with_numbers_as_keys(tmp_path: Path) -> None:
    write_record(tmp_path / "r.json", {"epochs": {9: 1, 10: 2}})
    assert read_json(tmp_path / "r.json") == {"epochs": {"9": 1, "10": 2}}


def test_a_checksum_is_compared_again_only_when_the_file_was_changed(tmp_path: Path) -> None:
    path, asked = tmp_path / "a", []
    path.write_text("a")

    def compute(path: Path | str) -> str:
        asked.append(path)
        return sha256_file(path)

    sound = sha256_file(path)
    assert all(has_checksum(path, sound, compute) for _ in range(3))
    assert len(asked) == 1
    path.write_text("another")
    assert not has_checksum(path, sound, compute)
    assert len(asked) == 2


def test_saved_tensors_are_those_of_the_library(tmp_path: Path) -> None:
    save_tensors(tmp_path / "found", {**tensors(), "turned": torch.arange(6).view(2, 3).T})
    found = load_file(tmp_path / "found")
    assert found.keys() == {*tensors(), "turned"}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors().items())
    assert found["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]


def write_some_rows(path: Path) -> None:
    with write_rows(path, {"a": TensorSpec("float32", (3,))}, {}) as append:
        append({"a": torch.ones(3)})


WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: write_text(path, "text"),
    "json": lambda path: write_json(path, {}),
    "tensors": lambda path: save_tensors(path, tensors()),
    "streamed": lambda path: stream_tensors(path, {"a": StreamedTensor.of(torch.ones(3))}, {}),
    "rows of labels": write_some_rows,
    "parquet": lambda path: write_part(path.parent / "x.parquet", 0, RANKS_SCHEMA, []),
}
every_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0)
    yield os.umask
    os.umask(before)


@every_writer
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_files_have_the_mode_that_the_umask_leaves(
    tmp_path: Path, umask: Callable[[int], int], write: Callable[[Path], Any], mask: int
) -> None:
    umask(mask)
    write(tmp_path / "file")
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_planted_link_under_a_guessed_name_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (".file.tmp", f".file.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to(victim)
    write_text(tmp_path / "file", "new")
    assert (victim.read_text(), (tmp_path / "file").read_text()) == ("precious", "new")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")

    def fail() -> None:
        with atomic_path(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


@every_writer
def test_what_is_no_file_is_not_replaced(tmp_path: Path, write: Callable[[Path], Any]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    before = sorted(path.lstat().st_ino for path in tmp_path.iterdir())
    for name, message in (("pipe", "special file"), ("link", "special file"), ("folder", "is a folder")):
        with pytest.raises(UserError, match=message):
            write(tmp_path / name) if write is not WRITERS["parquet"] else write_text(tmp_path / name, "")
    assert sorted(path.lstat().st_ino for path in tmp_path.iterdir()) == before


def test_a_link_to_a_file_is_replaced_itself(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text(tmp_path / "link", "new")
    assert not (tmp_path / "link").is_symlink()
    assert ((tmp_path / "link").read_text(), (tmp_path / "target").read_text()) == ("new", "old")


def test_an_unreadable_file_is_not_said_to_be_absent(tmp_path: Path) -> None:
    save_tensors(tmp_path / "tensors", tensors())
    with as_a_colleague(tmp_path / "tensors"), pytest.raises(UserError, match="cannot be read: Permission denied"):
        open_tensors(tmp_path / "tensors")
    with pytest.raises(FileNotFoundError):
        open_tensors(tmp_path / "absent")


def test_who_does_not_write_goes_through_the_blocks_in_the_same_order() -> None:
    seen: list[str] = []

    def blocks(name: str, tensor: torch.Tensor) -> StreamedTensor:
        return StreamedTensor(tensor.dtype, tuple(tensor.shape), (seen.append(name) or tensor for _ in range(1)))

    stream_tensors(None, {name: blocks(name, tensor) for name, tensor in tensors().items()}, {})
    assert seen == ["places", "wide", "b", "none", "scalar", "a", "half"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux has such a folder")
def test_a_folder_that_takes_no_files_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/proc/x.yaml cannot be written: No such file or directory. Name another"):
        write_text("/proc/x.yaml", "")
    with pytest.raises(UserError, match=r"cannot be written: File name too long"):
        write_text(tmp_path / ("x" * 250), "")
    assert not list(tmp_path.iterdir())
