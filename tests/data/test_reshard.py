"""A dataset in another number of shards is the one that `prepare` makes with that number, byte for byte."""

from pathlib import Path

import pytest

from csrec_dist import cli
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare
from csrec_dist.data.reshard import reshard
from csrec_dist.data.shards import automatic_shards
from csrec_dist.errors import UserError
from csrec_dist.files import read_json


def prepared(log: Path, folder: Path, **options: object) -> Dataset:
    options = {"source": str(log), "min_interactions": 3, "window": 5, "num_shards": 3} | options
    prepare(DatasetOptions.model_validate(options), folder)
    return Dataset(folder)


@pytest.mark.parametrize("options", [{}, {"windows": "paper", "noise": {"rate": 0.2}}, {"num_shards": "auto"}])
def test_it_is_what_prepare_makes(small_log: Path, tmp_path: Path, options: dict) -> None:
    dataset = prepared(small_log, tmp_path / "old", **options)
    before = (dataset.folder / "dataset.json").read_bytes()
    reshard(dataset, tmp_path / "new", 7)
    prepared(small_log, tmp_path / "expected", **options | {"num_shards": 7})
    names = {path.name for path in (tmp_path / "expected").iterdir()}
    assert {path.name for path in (tmp_path / "new").iterdir()} == names
    assert len(names) == 3 * 7 + 4
    for name in names - {"dataset.json"}:
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes(), name
    assert read_json(tmp_path / "new/dataset.json") == read_json(tmp_path / "expected/dataset.json")
    assert Dataset(tmp_path / "new").fingerprint != dataset.fingerprint
    assert (dataset.folder / "dataset.json").read_bytes() == before


def test_the_command_writes_it_once(
    small_log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(small_log, tmp_path / "old")
    command = ["reshard", str(tmp_path / "old"), str(tmp_path / "new"), "--num-shards"]
    assert cli.main([*command, "5"]) == 0
    assert "5 shards instead of 3" in capsys.readouterr().out
    assert cli.main([*command, "6"]) == 2
    assert "already contains a prepared dataset" in capsys.readouterr().err
    assert Dataset(tmp_path / "new").num_shards == 5


@pytest.mark.parametrize("num_shards", [0, 10**6])
def test_no_shard_is_empty(small_log: Path, tmp_path: Path, num_shards: int) -> None:
    with pytest.raises(UserError, match="training rows, which cannot be in"):
        reshard(prepared(small_log, tmp_path / "old"), tmp_path / "new", num_shards)
    assert not (tmp_path / "new").exists()


def test_the_number_follows_from_the_rows() -> None:
    rows = 64 * 2**14
    assert [automatic_shards(num) for num in (1, rows, rows + 1, 2 * rows, 2 * rows + 1)] == [64, 64, 128, 128, 256]
    assert 10**10 / automatic_shards(10**10) <= 2**14
