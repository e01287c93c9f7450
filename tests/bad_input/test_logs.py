"""Logs that cannot be what was meant: `prepare` says which file, where in it, what it met and what to do."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from tests.helpers.bad_input import LOG, Case, assert_refused, prepare

HEAD = "user,item,time\n"
ROW = "a,b,1\n"


def text(content: str | bytes, *parts: str, name: str = "log.csv", **dataset: object) -> tuple:
    """A log with this content, prepared with these keys."""

    def command(folder: Path) -> list[str]:
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)
        return prepare(folder, **{"source": str(folder / name)} | dataset)

    return command, parts


def table(columns: dict[str, object], *parts: str, **dataset: object) -> tuple:
    """A Parquet file with these columns."""

    def command(folder: Path) -> list[str]:
        pl.DataFrame(columns, strict=False).write_parquet(folder / "log.parquet")
        return prepare(folder, source=str(folder / "log.parquet"), **dataset)

    return command, parts


def made(make: Callable[[Path], Path], *parts: str, **dataset: object) -> tuple:
    """What `make` puts into the folder."""

    def command(folder: Path) -> list[str]:
        return prepare(folder, **{"source": str(make(folder))} | dataset)

    return command, parts


def files(names: dict[str, str], source: str = "logs") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for name, content in names.items():
            path = folder / "logs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        (folder / "logs").mkdir(exist_ok=True)
        return folder / source

    return make


def zipped(members: dict[str, str | bytes], password: bool = False, deflated: bool = False) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    flagged = bytearray(data.getvalue())
    if password:  # the bit of encryption in the local and the central header
        for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            flagged[flagged.index(magic) + place] |= 1
    return bytes(flagged)


def tarred(content: str = LOG) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        member = tarfile.TarInfo("log.csv")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content.encode()))
    return data.getvalue()


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def link(target: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "link.csv").symlink_to(target)
        return folder / "link.csv"

    return make


JSON_LINE = '{"user": "a", "item": "b", "time": 1}\n'
GZ, XZ, BZ2 = gzip.compress(LOG.encode() * 50), lzma.compress(LOG.encode() * 50), bz2.compress(LOG.encode() * 50)
ZST = pa.compress(LOG.encode() * 50, "zstd", asbytes=True)
SPLIT = {"split": "given", "min_interactions": 1}
BOMB = HEAD.encode() + ROW.encode() * 700_000  # 4 MiB of rows, some KiB when they are compressed
EXPANDS = (r"expands to .* lines, if not more: dataset\.max_unpacked_gib allows 2\.0 MiB", "Give a part of it")

CASES: dict[str, tuple] = {
    # What a file holds at all
    "empty": text("", r"log\.csv is empty", "at least one interaction"),
    "only a header": text(HEAD, r"log\.csv", "no interactions"),
    "only blank lines": text("\n\n\n", r"log\.csv"),
    "only spaces": text("   ", r"log\.csv"),
    "zeros": text(bytes(1000), r"log\.csv"),
    "random bytes": text(bytes(range(256)) * 8, r"log\.csv"),
    "an image": text(b"\x89PNG\r\n\x1a\n" + bytes(50), r"log\.csv", "dataset.format"),
    "a web page": text("<html><body>404</body></html>\n", r"log\.csv"),
    "one word": text("hello\n", r"log\.csv", "hello"),
    "UTF-16": text(LOG.encode("utf-16"), r"log\.csv"),
    "UTF-16 without a mark": text(LOG.encode("utf-16-le"), r"log\.csv"),
    "a zero byte in a field": text(HEAD + "a\0b,c,soon\n", "line 2", "soon"),
    "latin-1": text((HEAD + "é,b,1\n").encode("latin-1"), r"line 2 of log\.csv is not UTF-8", "dataset.encoding"),
    "an encoding that it does not have": text(HEAD + "\x81,b,1\n", "log.csv", "ascii", "another", encoding="ascii"),
    "an encoding of two bytes": text(HEAD + ROW + "x", r"log\.csv", "utf-16", encoding="utf-16"),
    "no line feed but carriage returns": text(LOG.replace("\n", "\r"), r"log\.csv", "line feed"),
    # Columns
    "one column": text("user\na\nb\n", r"log\.csv"),
    "no user": text("a,item,time\n1,2,3\n", r"log\.csv", "user", "a, item, time", r"dataset\.columns\.user"),
    "no item": text("user,b,time\n1,2,3\n", r"log\.csv", "item", r"dataset\.columns\.item"),
    "no time": text("user,item\n1,2\n", r"log\.csv", "time", r"dataset\.columns\.timestamp"),
    "users and sessions": text("user,session,item,time\n1,2,3,4\n", "'user'", "'session'", "dataset.columns.user"),
    "no header": text("1,2,3\n4,5,6\n", r"log\.csv", "1: '1'", r"dataset\.header"),
    "a header that is a row of names": text("anna,book,2020-01-01\n", r"log\.csv", "dataset.header"),
    "two columns of one name": text("user,user,item,time\na,b,c,1\n", r"log\.csv", "user"),
    "an empty name of a column": text(",item,time\na,b,1\n", r"log\.csv", r"dataset\.columns\.user"),
    "a column that is not there": text(LOG, r"log\.csv", "'usr'", "did you mean 'user'", columns={"user": "usr"}),
    "one column for two roles": text(LOG, "user and item are both 'user'", columns={"user": "user", "item": "user"}),
    "a position beyond the last": text(
        "1,2,3\n", r"log\.csv has 3 columns", "9", header=False, columns={"user": 1, "item": 9, "timestamp": 3}
    ),
    "positions with a header": text(LOG, "set header: false", columns={"user": 1, "item": 2}),
    "names without a header": text(LOG, "give positions instead", header=False, columns={"user": "user"}),
    "no positions without a header": text(LOG, "needs columns by position", header=False),
    "a position of 0": text(LOG, "position from 1", header=False, columns={"user": 0, "item": 2, "timestamp": 3}),
    "no users": text(LOG, "user cannot be none", columns={"user": "none"}),
    # Rows and values
    "a row too long": text(
        HEAD + ROW + "a,b,1,2\n",
        r"log\.csv, line 3",
        "4 fields",
        "first row has 3",
        "mend or remove",
        "on_bad_rows: skip",
    ),
    "a quote without an end": text(HEAD + 'a,"b,1\n' + ROW * 5, r"log\.csv"),
    "a quote amid a field": text(HEAD + ROW + 'a,b"c"d,soon\n', "line 3", "soon"),
    "a field of 200,000 characters": text(
        HEAD + "a," + "b" * 200_000 + ",soon\n", r"log\.csv", "'soon'", r"columns\.timestamp"
    ),
    "a header of 200,000 characters": text("user," + "b" * 200_000 + ",time\n1,2,3\n", r"log\.csv", "characters"),
    "a line of 3 MB": text("a" * 3_000_000, r"log\.csv"),
    "a rating that is a word": text("user,item,rating,time\na,b,good,1\n", "line 2", "'good'", "columns.rating"),
    "a time that is a word": text(HEAD + ROW + "a,b,soon\n", "line 3", "'soon'", r"columns\.timestamp"),
    "times of two units": text(HEAD + "a,b,1500000000\na,b,1500000000000\n", "line 3", "seconds and milliseconds"),
    "times of two forms": text(HEAD + "a,b,2020-01-01\na,b,15\n", "line 3", "mix forms", "'15'"),
    "a time before 1897": text(HEAD + "a,b,0001-01-01\n", "line 2", "'0001-01-01'", "1897"),
    "a time after 5138": text(HEAD + "a,b,1e30\n", "line 2", r"1e\+?30"),
    "a time that is not finite": text(HEAD + "a,b,inf\n", "line 2", "'inf'"),
    "a date that does not exist": text(HEAD + "a,b,2021-02-30\n", "line 2", "'2021-02-30'"),
    "days before months": text(HEAD + "a,b,31/12/2020\n", "line 2", "'31/12/2020'"),
    "no time at all": text(HEAD + "a,b,\n", r"log\.csv", "column time has no timestamps"),
    "no user at all": text(HEAD + ",b,1\n,c,2\n", r"log\.csv", "none of its 2 rows"),
    "no item at all": text(HEAD + "a,,1\n", r"log\.csv", "none of its 1 rows"),
    "too few interactions": text(LOG, r"log\.csv", "36 interactions", "min_interactions", min_interactions=50),
    "one interaction": text(HEAD + ROW, r"log\.csv", "'train' has no row", "dataset.split"),
    "one interaction of each user": text(
        HEAD + "".join(f"u{n},i,{n}\n" for n in range(9)), r"log\.csv", "longest of 9 windows has 1 items"
    ),
    "one user for all": text(HEAD + "a,b,1\na,c,2\n", r"log\.csv", "'valid' has no row"),
    # Keys that do not fit the log
    "another reader": text(LOG, r"log\.csv", "1 fields", "needs 4", "name another reader", format="movielens"),
    "a reader of JSON": text(LOG, r"log\.csv, line 1: it is no JSON object: 'user,item,time'", format="json_lines"),
    "a reader of Parquet": text(LOG, r"parquet.* could not read .*log\.csv", format="parquet"),
    "a reader of RecBole": text(LOG, r"log\.csv", format="inter"),
    "a reader of MIND": text(LOG, r"log\.csv", format="mind"),
    "a reader of HetRec": text(LOG, r"log\.csv", format="hetrec"),
    "a reader of S3-Rec": text(LOG, r"log\.csv", format="s3rec"),
    "a reader of SASRec": text(LOG, r"log\.csv", format="sasrec"),
    "a reader of Yelp": text(LOG, r"log\.csv", format="yelp"),
    "a reader of reviews": text(LOG, r"log\.csv", format="amazon_reviews"),
    "a reader of Amazon's ratings": text(LOG, r"log\.csv", format="amazon_ratings"),
    "no such reader": text(LOG, "no reader 'csv'", "delimited", format="csv"),
    "no such encoding": text(LOG, "unknown text encoding 'utf-9'", encoding="utf-9"),
    "an encoding of bytes": text(LOG, "base64|encoding", encoding="base64"),
    "a separator that is empty": text(LOG, "'' is no separator", separator=""),
    "a separator that is a quote": text(LOG, "is no separator", separator='"'),
    "a separator beyond ASCII": text(LOG, "is no separator", separator="→"),
    "a separator that is not there": text(LOG, r"log\.csv", separator=";"),
    "a header where there are names": text(LOG, "separator apply to delimited text", format="json_lines", header=True),
    "keep: no such column": text(LOG, r"log\.csv has no column 'evnt'", "dataset.keep", keep={"evnt": "buy"}),
    "keep: nothing": text(LOG, "keeps none of its 36 rows", "'u0'", keep={"user": "nobody"}),
    "keep: an empty list": text(LOG, "an empty list keeps nothing", keep={"user": []}),
    "keep: a comparison with nothing": text(LOG, "compares with nothing", keep={"time": ">="}),
    "keep: a comparison in a list": text(LOG, "stands in a list", keep={"time": [">= 4", 3]}),
    "keep: a comparison of words": text(LOG, r"log\.csv, line 2", "'u0'", "not a number", keep={"user": "> 3"}),
    "keep: a mapping": text(LOG, r"1 mistake.*\s.*dataset\.keep: user: needs a value.*'a': 1", keep={"user": {"a": 1}}),
    "weights: no such column": text(LOG, r"no column 'evnt'", "dataset.weights", weights={"evnt": {"buy": 2}}),
    "weights: all 0": text(
        LOG, "every training example has weight 0", weights={"user": {f"u{user}": 0 for user in range(6)}}
    ),
    "weights: below 0": text(LOG, r"dataset\.weights", "-1", weights={"user": {"u0": -1}}),
    "weights: a word": text(LOG, r"dataset\.weights", "'much'", weights={"user": {"u0": "much"}}),
    "weights: not finite": text(LOG, r"dataset\.weights", "inf", weights={"user": {"u0": float("inf")}}),
    "temporal without times": text(
        "user,item\n" + "a,b\n" * 9, "temporal", split="temporal", columns={"timestamp": "none"}
    ),
    "temporal with one time": text(
        HEAD + "".join(f"u{n % 3},i{n},5\n" for n in range(30)), r"log\.csv", split="temporal"
    ),
    "shares that are no shares": text(LOG, "add up to 1", split="temporal", temporal_shares=[0.5, 0.5, 0.5]),
    "two shares": text(LOG, r"dataset\.temporal_shares", temporal_shares=[0.5, 0.5]),
    "duplicates of no time": text(
        "user,item\na,b\n", "cannot be distinguished", columns={"timestamp": "none"}, duplicates="exact"
    ),
    "noise over one item": text(
        HEAD + "".join(f"u{n % 3},i,{n}\n" for n in range(30)),
        "all training interactions are with one item",
        noise={"rate": 0.5},
    ),
    "noise above 1": text(LOG, r"dataset\.noise\.rate", "1.5", noise={"rate": 1.5}),
    # JSON and Parquet
    "JSON: an array": text("[" + JSON_LINE + "]", r"log\.jsonl is one JSON array", "jq", name="log.jsonl"),
    "JSON: over several lines": text('{\n"user": 1\n}\n', r"log\.jsonl begins like JSON", "jq", name="log.jsonl"),
    "JSON: Python's": text("{'user': 1, 'item': 2}\n", "Python literals", "convert it first", name="log.jsonl"),
    "JSON: a broken line": text(
        JSON_LINE + '{"user": "a", \n', "line 2: it is no JSON object", "mend or remove", name="log.jsonl"
    ),
    "JSON: a number for a line": text(JSON_LINE + "17\n", r"log\.jsonl", "line 2", "17", name="log.jsonl"),
    "JSON: a list for a line": text(JSON_LINE + "[1]\n", r"log\.jsonl", "line 2", name="log.jsonl"),
    "JSON: an id that is a list": text(
        JSON_LINE + '{"user": ["a"], "item": 1, "time": 2}\n', "'user' of line 2", name="log.jsonl"
    ),
    "JSON: an id that is an object": text(
        JSON_LINE + '{"user": {"a": 1}, "item": 1, "time": 2}\n', "'user' of line 2", name="log.jsonl"
    ),
    "JSON: a time that is a word": text(
        JSON_LINE + '{"user": "a", "item": 1, "time": "soon"}\n', "line 2", "'soon'", name="log.jsonl"
    ),
    "JSON: a lone surrogate": text('{"user": "\\ud800", "item": 1, "time": "soon"}\n', r"log\.jsonl", name="log.jsonl"),
    "JSON: not UTF-8": text(
        JSON_LINE.encode() + b'{"user": "\xe9", "item": 1, "time": 2}\n', r"log\.jsonl", "UTF-8", name="log.jsonl"
    ),
    "JSON: no fields": text("{}\n{}\n", r"log\.jsonl", name="log.jsonl"),
    "JSON: text after the object": text(
        JSON_LINE.strip() + " x\n" + JSON_LINE, r"log\.jsonl", "line 1|no whole object", name="log.jsonl"
    ),
    "Parquet: cut off": text(b"PAR1" + bytes(20), r"log\.parquet", name="log.parquet"),
    "Parquet: its first bytes alone": text(b"PAR1", r"log\.parquet", name="log.parquet"),
    "Parquet: no rows": table({"user": [], "item": [], "time": []}, r"log\.parquet", "no interactions"),
    "Parquet: no columns": table({}, r"log\.parquet"),
    "Parquet: lists as ids": table({"user": [[1]], "item": [2], "time": [3]}, r"log\.parquet", "user", "List"),
    "Parquet: records as ids": table({"user": [{"a": 1}], "item": [2], "time": [3]}, r"log\.parquet", "user", "Struct"),
    "Parquet: lists as times": table({"user": [1], "item": [2], "time": [[3]]}, r"log\.parquet", "time"),
    "Parquet: truth as times": table({"user": [1], "item": [2], "time": [True]}, r"log\.parquet", "timestamp|time"),
    "Parquet: bytes that are no text": table({"user": [b"\xff"], "item": [2], "time": [3]}, r"log\.parquet", "user"),
    "Parquet: NaN as ids": table(
        {"user": [float("nan")], "item": [2.0], "time": [3]}, r"log\.parquet", "none of its 1 rows"
    ),
    "Parquet: lists as ratings": table(
        {"user": [1], "item": [2], "time": [3], "rating": [[1]]}, r"log\.parquet", "rating"
    ),
    # Compressed files and archives
    "gzip: cut off": text(GZ[:-30], r"log\.csv\.gz", "gzip|gz", name="log.csv.gz"),
    "gzip: its first bytes alone": text(GZ[:8], r"log\.csv\.gz", name="log.csv.gz"),
    "gzip: another checksum": text(flipped(GZ, len(GZ) - 6), r"log\.csv\.gz", name="log.csv.gz"),
    "gzip: a flipped byte": text(flipped(GZ, len(GZ) // 2), r"log\.csv\.gz", name="log.csv.gz"),
    "gzip: of nothing": text(gzip.compress(b""), r"log\.csv\.gz", name="log.csv.gz"),
    "gzip: of a tar": text(gzip.compress(tarred()), r"log\.csv\.gz is a tar archive", "unpack", name="log.csv.gz"),
    "xz: cut off": text(XZ[:-20], r"log\.csv\.xz is a damaged xz file", "get it again", name="log.csv.xz"),
    "xz: a flipped byte": text(flipped(XZ, len(XZ) // 2), r"log\.csv\.xz is a damaged xz", name="log.csv.xz"),
    "bz2: cut off": text(BZ2[:-20], r"log\.csv\.bz2 is a damaged bzip2", name="log.csv.bz2"),
    "bz2: a flipped byte": text(flipped(BZ2, len(BZ2) // 2), r"log\.csv\.bz2", name="log.csv.bz2"),
    "zst: cut off": text(ZST[: len(ZST) // 2], r"log\.csv\.zst", name="log.csv.zst"),
    "zst: a flipped byte": text(flipped(ZST, 5), r"log\.csv\.zst", name="log.csv.zst"),
    "zip: cut off": text(zipped({"log.csv": LOG})[:-30], r"log\.zip", "damaged zip", name="log.zip"),
    "zip: another checksum": text(flipped(zipped({"log.csv": LOG}), 60), r"log\.zip", name="log.zip"),
    "zip: empty": text(zipped({}), r"log\.zip", name="log.zip"),
    "zip: no log": text(zipped({"read.me": "x"}), r"log\.zip contains no log", r"\.csv", name="log.zip"),
    "zip: several logs": text(
        zipped({"a.csv": LOG, "b.csv": LOG}), r"log\.zip", "a.csv, b.csv", "name one", name="log.zip"
    ),
    "zip: a password": text(zipped({"log.csv": LOG}, password=True), r"log\.zip", "password|encrypted", name="log.zip"),
    "zip: a zip": text(zipped({"a.zip": zipped({"log.csv": LOG})}), r"a\.zip", name="log.zip"),
    **{
        f"{kind}: a bomb": text(bomb, rf"{name} {EXPANDS[0]}", EXPANDS[1], name=name, max_unpacked_gib=2 / 1024)
        for kind, name, bomb in (
            ("gzip", "log.csv.gz", gzip.compress(BOMB)),
            ("zst", "log.csv.zst", pa.compress(BOMB, "zstd", asbytes=True)),
            ("xz", "log.csv.xz", lzma.compress(BOMB)),
            ("bz2", "log.csv.bz2", bz2.compress(BOMB)),
        )
    },
    "zip: a bomb": text(
        zipped({"log.csv": BOMB}, deflated=True), rf"log\.csv {EXPANDS[0]}", name="log.zip", max_unpacked_gib=2 / 1024
    ),
    "zip: two parts that are a bomb": text(
        zipped({"log-1.csv": BOMB[: len(BOMB) // 3], "log-2.csv": BOMB}, deflated=True),
        rf"log-2\.csv {EXPANDS[0]}",
        name="log.zip",
        max_unpacked_gib=2 / 1024,
    ),
    "gzip: a bomb of four million blank lines": text(
        gzip.compress(b"\n" * (1 << 22)), "only blank lines", name="log.csv.gz"
    ),
    "tar": text(tarred(), r"log\.tar is a tar archive", "unpack it", name="log.tar"),
    "a member that is not there": made(
        lambda f: _written(f / "log.zip", zipped({"a.csv": LOG})) / "b.csv", r"log\.zip has no file b\.csv", "a.csv"
    ),
    "a member of no archive": made(
        lambda f: _written(f / "log.csv", LOG.encode()) / "b.csv", "b.csv", "does not exist|no "
    ),
    # Places
    "a folder without files": made(files({}), "logs contains no log", r"\.csv"),
    "a folder of other files": made(files({"a.py": "x"}), "logs contains no log"),
    "a folder of empty files": made(files({"a.csv": ""}), r"a\.csv is empty"),
    "a folder of several logs": made(files({"a.csv": LOG, "b.csv": LOG}), "several files, a.csv, b.csv", "pattern"),
    "a folder of splits": made(files({"train.csv": LOG, "test.csv": LOG}), "several files", "split: given"),
    "parts that are not alike": made(
        files({"p-1.csv": LOG, "p-2.csv": "user,item,date\n1,2,2020-01-01\n"}),
        r"p-2\.csv",
        r"p-1\.csv",
        "columns.timestamp",
    ),
    "parts of two forms": made(files({"p-1.csv": LOG, "p-2.csv": JSON_LINE}), r"p-2\.csv"),
    "a part without its header": made(files({"p-1.csv": LOG, "p-2.csv": "1,2,3\n"}), r"p-2\.csv", "dataset.header"),
    "a pattern without a match": made(files({}, "logs/*.csv"), "No file matches", r"logs/\*\.csv"),
    "a pattern that is none": made(files({}, "logs/[.csv"), r"logs/\[\.csv"),
    "a link to nothing": made(link("none.csv"), r"link\.csv"),
    "a link to itself": made(link("link.csv"), r"link\.csv", "symbolic links"),
    "a name of a data set that was not fetched": made(lambda f: Path("ml-100k"), "ml-100k", "csrec-dist fetch ml-100k"),
    "an address": made(lambda f: Path("https://example.org/log.csv"), "example.org/log.csv"),
    "an empty name": text(LOG, r"dataset\.?\w*: .*is empty|source", source=""),
    "a given split without its files": text(LOG, "valid_source and test_source", split="given"),
    "a given split whose file is missing": text(
        LOG, r"none\.csv", **SPLIT, valid_source="none.csv", test_source="none.csv"
    ),
    "files of a split that is not given": text(LOG, "split: given", valid_source="log.csv", test_source="log.csv"),
    "no source": text(LOG, "either source .* or path", source=None),
    "a source and a path": text(LOG, "and not both", path="x"),
    "a path that is no dataset": text(LOG, "is not a prepared dataset", "Run `prepare` first", source=None, path="."),
}


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", CASES)
def test_prepare_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSREC_DATA", raising=False)
    assert_refused(tmp_path, capsys, Case(name, *CASES[name]))
