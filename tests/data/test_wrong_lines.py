"""Messages of readers name the file, the line and what was expected."""

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from csrec_dist.data.columns import Columns, Layout
from csrec_dist.data.log import Log
from csrec_dist.data.readers import detect
from csrec_dist.data.reading import read_log
from csrec_dist.errors import UserError


def read(*paths: Path, format: str | None = None, **said: Any) -> Log:
    layout = Layout(**said)
    return read_log(paths, format or detect(paths[0], layout), layout)


def write(path: Path, text: str) -> Path:
    data = text.encode()
    path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(data))
    return path


RATED = 'user,item,rating,time\n1,"a\nb",5,1\n1,good,4,2\n1,c,good,3\n'
FORMS = {
    "log.csv": (RATED, {}, 5),  # a quoted field has a line feed, and "good" is an item before it is a rating
    "log.csv.gz": (RATED, {}, 5),
    "log.csv.xz": (RATED, {}, 5),
    "log.tsv": ("user\titem\trating\ttime\n\n1\tgood\t4\t2\n1\tc\tgood\t3\n", {}, 4),
    "log.dat": ("1::good::4::2\n1::c::good::3\n",
                {"header": False, "columns": Columns(user=1, item=2, rating=3, timestamp=4)}, 2),
    "log.inter": ("user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\tgood\t4\t2\n1\tc\tgood\t3\n", {}, 3),
    "log.jsonl": ("".join(json.dumps(dict(zip(("user", "item", "rating", "time"), row, strict=True))) + "\n"
                          for row in ((1, "good", 4, 2), (1, "c", "good", 3))), {}, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_rating_that_is_no_number_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    text, said, line = FORMS[name]
    with pytest.raises(UserError, match=rf"{name}, line {line}: the rating 'good' is not a number; set"):
        read(write(tmp_path / name, text), **said)


@pytest.mark.parametrize(
    ("times", "line", "message"),
    [
        (("1", "2", "soon"), 4, "the timestamp 'soon' is neither a number nor a date of a known form"),
        (("2019-10-01", "1500000000", "2019-10-02"), 3, "the timestamps mix forms, such as '2019-10-01' and '15000"),
        (("1500000000", "1500000000000", "1500000001"), 3, "the timestamps mix seconds and milliseconds"),
        (("2019-10-01", "2019-10-01", "0001-01-01"), 4, "the timestamp '0001-01-01' is no time between 1897 and 5138"),
    ],
)
def test_a_time_that_cannot_be_read_is_named_with_its_line(
    tmp_path: Path, times: tuple[str, ...], line: int, message: str
) -> None:
    rows = [f"{time},1,{number}" for number, time in enumerate(times)]  # the items are numbers, too
    path = write(tmp_path / "log.csv", "\n".join(["time,user,item", *rows]) + "\n")
    with pytest.raises(UserError, match=rf"log\.csv, line {line}: {message}"):
        read(path)


def test_the_part_with_the_value_is_named(tmp_path: Path) -> None:
    first = write(tmp_path / "part-1.csv", "user,item,time\n1,2,3\n")
    second = write(tmp_path / "part-2.csv", "user,item,time\n1,2,3\n1,2,soon\n")
    with pytest.raises(UserError, match=r"part-2\.csv, line 3: the timestamp 'soon'"):
        read(first, second)


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.csv.xz"])
def test_a_line_with_too_many_fields_is_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, 'user,item,time\n1,"a,b",3\n1,2,3,4\n')
    message = rf"{name}, line 3: it has 4 fields \('1', '2', '3', '4'\), where the first row has 3: '1,2,3,4'; mend or"
    with pytest.raises(UserError, match=message):
        read(path)


@pytest.mark.parametrize("separator", [",", "\t", ";", "|", "::"])
def test_a_separator_within_a_field_that_is_not_used_moves_no_other_field(tmp_path: Path, separator: str) -> None:
    """Without a look at all fields the item would be silently another one."""
    rows = [("user", "title", "item", "time"), ("1", "Hello", "2", "3"), ("1", f"Good{separator}bye", "4", "5")]
    path = write(tmp_path / "log.txt", "".join(separator.join(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"log\.txt, line 3: it has 5 fields"):
        read(path)


def test_a_separator_that_is_said_cuts_the_fields_of_messages_too(tmp_path: Path) -> None:
    path = write(tmp_path / "log.txt", "user#item#time\n1#2#3\n1#2#3#4\n")
    with pytest.raises(UserError, match=r"log\.txt, line 3: it has 4 fields"):
        read(path, separator="#")


@pytest.mark.parametrize("reader", ["json_lines", "yelp", "amazon_reviews"])
def test_a_broken_object_is_named_with_its_line(tmp_path: Path, reader: str) -> None:
    names = {"user_id": 1, "parent_asin": 2, "business_id": 3, "stars": 4, "date": "2019-10-01", "timestamp": 5}
    path = write(tmp_path / "log.jsonl", json.dumps(names) + "\n\n" + '{"user_id": 1, "it\n')
    message = r"log\.jsonl, line 3: it is no JSON object: '\{\"user_id\": 1, \"it'; mend or remove the line"
    with pytest.raises(UserError, match=message):
        read(path, format=reader, columns=Columns(user="user_id", item="business_id", timestamp="timestamp"))


def test_a_row_of_parquet_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user": [1, 1], "item": ["soon", "b"], "time": ["1", "soon"]}).write_parquet(path)
    with pytest.raises(UserError, match=r"log\.parquet, row 2: the timestamp 'soon'"):
        read(path)
