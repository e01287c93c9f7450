"""The files of a log: folders of parts, patterns, partitions, archives and compressed files."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from csrec_dist.data.columns import Columns, Layout
from csrec_dist.data.compressed import BYTES_OF_ROW, opened
from csrec_dist.data.log import Log
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.parts import log_files, partition_of, parts_of
from csrec_dist.data.prepare import identify
from csrec_dist.data.readers import detect
from csrec_dist.data.reading import read_log
from csrec_dist.data.sources import FileSource
from csrec_dist.errors import UserError

CSV = "user,item,time\n1,2,3\n"
COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}


def write(path: Path, data: str | bytes = CSV) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def archive(path: Path, **members: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, text in members.items():
            file.writestr(name.replace("__", "/").replace("_dot_", "."), text)
    return path


def read(source: Path, layout: Layout | None = None) -> Log:
    layout = layout or Layout()
    files = log_files(source)
    return read_log(files, detect(files[0], layout), layout)


def names(source: Path) -> list[str]:
    return [file.name for file in log_files(source)]


def test_parts_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 100):
        write(tmp_path / f"part-{number}.csv")
    for other in ("_SUCCESS", ".part-1.csv.crc", "README.md", "_part-1.csv"):
        write(tmp_path / other)
    write(tmp_path / "part-3.csv", "")  # Spark writes empty parts too
    assert names(tmp_path) == ["part-9.csv", "part-10.csv", "part-100.csv"]


def test_sparks_ids_are_numbers(tmp_path: Path) -> None:
    for number, job in ((0, "1c8fa9f0-aaaa-4bbb-8ccc-0123456789ab"), (1, "ffffa9f0-aaaa-4bbb-8ccc-0123456789ab")):
        write(tmp_path / f"part-{number:05d}-{job}-c000.csv")
    assert len(names(tmp_path)) == 2


def test_files_of_other_names_are_a_question(tmp_path: Path) -> None:
    for name in ("ratings.csv", "users.csv"):
        write(tmp_path / name)
    with pytest.raises(UserError, match=r"ratings\.csv, users\.csv; name one of them, or .* by a pattern, such as "):
        log_files(tmp_path)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_training_and_test_files_are_no_parts(tmp_path: Path, ending: str) -> None:
    for name in ("train-0", "test-0"):
        write(tmp_path / f"{name}.{ending}")
    with pytest.raises(UserError, match=r"are given by dataset\.split: given"):
        log_files(tmp_path)


def test_an_empty_file_is_no_log(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"log\.csv is empty"):
        log_files(write(tmp_path / "log.csv", ""))


def test_a_pattern_names_the_parts(tmp_path: Path) -> None:
    for name in ("2019-Oct.csv", "2019-Nov.csv", "2020-Jan.csv", "a/b/2019-Dec.csv"):
        write(tmp_path / name)
    assert names(tmp_path / "2019-*.csv") == ["2019-Nov.csv", "2019-Oct.csv"]
    assert names(tmp_path / "**" / "*-Dec.csv") == ["2019-Dec.csv"]
    assert names(tmp_path / "20[12]0-*") == ["2020-Jan.csv"]
    with pytest.raises(UserError, match=r"No file matches the pattern .*2018"):
        log_files(tmp_path / "2018-*.csv")


@pytest.mark.parametrize("pattern", ["**/*", "**/*.csv", "**", "*", "*/**/*"])
def test_a_pattern_takes_each_file_of_a_partition_once(tmp_path: Path, pattern: str) -> None:
    files = [tmp_path / f"date=2020-01-0{day}" / f"country={day}" / "part-0.csv" for day in (1, 2)]
    for file in files:
        write(file)
    assert log_files(tmp_path / pattern) == files


def test_a_pattern_takes_no_hidden_file_unless_it_begins_so(tmp_path: Path) -> None:
    for name in ("part-1.csv", ".part-2.csv", "_part-3.csv", ".git/part-4.csv", "_temporary/part-5.csv"):
        write(tmp_path / name)
    assert names(tmp_path / "*.csv") == names(tmp_path / "**" / "*.csv") == ["part-1.csv"]
    assert names(tmp_path / "_part-*.csv") == ["_part-3.csv"]
    assert names(tmp_path / "_temporary" / "*.csv") == ["part-5.csv"]


@pytest.mark.parametrize("name", ["log[1].csv", "log*.csv", "log?.jsonl"])
def test_a_name_that_looks_like_a_pattern_is_one_file(tmp_path: Path, name: str) -> None:
    write(tmp_path / "log1.csv", "user,item,time\n8,8,8\n")
    text = CSV if name.endswith("csv") else '{"user": 1, "item": 2, "time": 3}\n'
    assert read(write(tmp_path / name, text)).items.to_list() == [2]


def test_partitions_are_columns(tmp_path: Path) -> None:
    for day, country, item in (("2019-10-02", "de", 1), ("2019-10-01", "a%2Fb", 2)):
        write(tmp_path / f"date={day}" / f"country={country}" / "part-0.csv", f"user,item\n7,{item}\n")
    log = read(tmp_path)
    assert (log.items[log.frame["item"]].to_list(), log.taken["timestamp"]) == ([2, 1], "date")
    assert [partition_of(file)["country"] for file in log_files(tmp_path)] == ["a/b", "de"]
    kept = read(tmp_path, Layout(keep={"country": "de"}))
    assert (kept.items.to_list(), kept.num_not_kept) == ([1], 1)
    by_country = read(tmp_path / "date=*" / "*", Layout(Columns(user="country")))
    assert sorted(by_country.users) == ["a/b", "de"]


def test_a_column_of_the_file_comes_before_that_of_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "time=9" / "part.csv")
    assert read(tmp_path).frame["timestamp"].to_list() == [3]


def test_a_partition_without_a_value_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "date=__HIVE_DEFAULT_PARTITION__" / "a-1.csv", "user,item\n1,1\n")
    write(tmp_path / "date=2019-10-01" / "a-1.csv", "user,item\n1,2\n")
    log = read(tmp_path)
    assert (log.items.to_list(), log.num_without_time) == ([2], 1)


def test_the_folders_names_decide_what_a_log_is(tmp_path: Path) -> None:
    shas = set()
    for day in ("2019-10-01", "2019-10-02"):
        write(tmp_path / day / f"date={day}" / "part-0.csv", "user,item\n1,2\n")
        shas.add(FileSource(DatasetOptions(source=str(tmp_path / day))).identity["sha256"])
    assert len(shas) == 2


def test_an_archive_has_a_log_or_its_parts(tmp_path: Path) -> None:
    single = archive(tmp_path / "one.zip", README_dot_md="x", data__log_dot_csv=CSV)
    assert read(single).items.to_list() == [2]
    several = archive(tmp_path / "parts.zip", part10_dot_csv=CSV.replace("2", "10"), part9_dot_csv=CSV)
    assert [file.name for file in log_files(several)] == ["part9.csv", "part10.csv"]
    assert read(several).items.to_list() == [2, 10]
    other = archive(tmp_path / "ml.zip", ml__users_dot_csv="a", ml__ratings_dot_csv=CSV)
    with pytest.raises(UserError, match=r"several files, ml/ratings\.csv, ml/users\.csv; name one of them"):
        log_files(other)
    assert read(other / "ml" / "ratings.csv").items.to_list() == [2]
    with pytest.raises(UserError, match=r"ml\.zip has no file ml/rating\.csv; it has ml/users\.csv, ml/ratings\.csv"):
        log_files(other / "ml" / "rating.csv")


def test_only_an_archive_has_files_below_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        FileSource(DatasetOptions(source=str(write(tmp_path / "log.csv") / "log.csv")))


def test_members_of_an_archive_are_different_logs(tmp_path: Path) -> None:
    path = archive(tmp_path / "two.zip", a_dot_csv=CSV, b_dot_txt=CSV)
    a, b = (FileSource(DatasetOptions(source=str(path / name))).identity for name in ("a.csv", "b.txt"))
    assert a["sha256"] != b["sha256"]
    assert a["bytes"] == path.stat().st_size


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("where", ["alone", "in an archive"])
def test_compressed_files_are_read_whatever_their_names(tmp_path: Path, ending: str, where: str) -> None:
    data = COMPRESS[ending](CSV.encode())
    if where == "alone":
        assert read(write(tmp_path / "log", data)).items.to_list() == [2]
        return
    with zipfile.ZipFile(tmp_path / "log.zip", "w") as file:
        file.writestr(f"log.csv.{ending}", data)
    assert read(tmp_path / "log.zip").items.to_list() == [2]


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_file_is_named(tmp_path: Path, ending: str, damage: str) -> None:
    rows = "".join(f"{number * number % 9973},{number},{number}\n" for number in range(50_000))
    data = COMPRESS[ending](("user,item,time\n" + rows).encode())
    middle = len(data) // 2
    data = data[:middle] if damage == "cut" else data[:middle] + bytes(64) + data[middle + 64 :]
    path = write(tmp_path / f"log.csv.{ending}", data)
    with pytest.raises(UserError, match=rf"log\.csv\.{ending}( is a damaged|, line|:)"):
        read(path)


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    path = archive(tmp_path / "log.zip", log_dot_csv=CSV)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"log\.zip is a damaged zip file"):
        log_files(path)


def test_a_tar_archive_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "log.tar.gz", "w:gz") as file:
        info = tarfile.TarInfo("log.csv")
        info.size = len(CSV)
        file.addfile(info, io.BytesIO(CSV.encode()))
    with pytest.raises(UserError, match=r"log\.tar\.gz is a tar archive: unpack it"):
        read(tmp_path / "log.tar.gz")


def test_only_what_cannot_be_parsed_is_unpacked(tmp_path: Path) -> None:
    plain, packed = write(tmp_path / "a1.csv"), write(tmp_path / "a2.csv", bz2.compress(CSV.encode()))
    with parts_of([plain, packed], None) as parts:
        assert parts[0].text == plain
        assert parts[1].text.read_text() == CSV
    assert not parts[1].text.exists()


def test_a_text_that_begins_like_bzip2_is_text(tmp_path: Path) -> None:
    with opened(write(tmp_path / "log.csv", "BZh,item,user,time\nx,1,2,3\n")) as file:
        assert file.read(3) == b"BZh"


ROWS = 100_000
MANY = CSV.encode() + b"1,2,3\n" * ROWS
LONG = b"user,item,time\n1,2," + b" " * (8 << 20)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Have this machine so much memory and room on its disk."""

    def have(memory: int, room: int) -> None:
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=memory))
        monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=room))

    return have


@pytest.mark.parametrize("data", [MANY, LONG], ids=["many rows", "a long row"])
@pytest.mark.parametrize("ending", COMPRESS)
def test_what_expands_beyond_this_machine_is_refused_unless_the_config_allows_it(
    tmp_path: Path, machine: Callable[[int, int], None], ending: str, data: bytes
) -> None:
    """A plain file is not: it has no more rows than its size tells."""
    packed, plain = write(tmp_path / f"log.csv.{ending}", COMPRESS[ending](data)), write(tmp_path / "log.csv", data)
    needed = max(BYTES_OF_ROW * data.count(b"\n"), len(data) - data.rfind(b"\n") - 1)
    machine(needed // 2, 1 << 40)
    with parts_of([plain], None) as parts:
        assert parts[0].text == plain
    with (
        pytest.raises(UserError, match=rf"{packed.name} expands to .*memory.*max_unpacked_gib"),
        parts_of([packed], None),
    ):
        pass
    with parts_of([packed], None, 1.0) as parts:
        assert parts[0].path == packed
    machine(2 * needed, 1 << 40)
    with parts_of([packed], None) as parts:
        assert parts[0].path == packed


def test_what_is_unpacked_leaves_room_on_the_disk(tmp_path: Path, machine: Callable[[int, int], None]) -> None:
    machine(1 << 40, len(MANY))
    with parts_of([write(tmp_path / "log.csv.gz", COMPRESS["gz"](MANY))], None) as parts:
        assert parts[0].text.name == "log.csv.gz", "Polars reads it as it is"
    for packed in ("xz", "bz2"):
        path = write(tmp_path / f"log.csv.{packed}", COMPRESS[packed](MANY))
        with pytest.raises(UserError, match="temporary folder has room for"), parts_of([path], None):
            pass


def test_a_bomb_is_left_as_soon_as_it_is_too_large(tmp_path: Path, machine: Callable[[int, int], None]) -> None:
    """What follows is not decompressed: here it is damaged."""
    data = bytearray(gzip.compress(b"1,2,3\n" * (4 << 20)))
    data[-100:] = bytes(100)
    machine(1 << 20, 1 << 40)
    with (
        pytest.raises(UserError, match=r"expands to 1\.0 MiB"),
        parts_of([write(tmp_path / "log.csv.gz", bytes(data))], None),
    ):
        pass


def test_the_size_that_is_allowed_decides_no_result(tmp_path: Path) -> None:
    source = str(write(tmp_path / "log.csv.gz", COMPRESS["gz"](MANY)))
    plain, allowed = (identify(DatasetOptions(source=source, max_unpacked_gib=gib)) for gib in (None, 1.0))
    assert plain == allowed
