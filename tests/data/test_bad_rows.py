"""`dataset.on_bad_rows: skip`: a log with rows that cannot be read is the log without them, and names ten of them."""

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrec_dist.cli import main
from csrec_dist.data.append import read_log as stored_log
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import append, prepare
from csrec_dist.data.sources import source_of
from csrec_dist.errors import UserError
from csrec_dist.files import read_json
from tests.helpers.bad_input import write_config

USERS, ITEMS, FIRST_TIME = 6, 5, 1_500_000_000


class Form(NamedTuple):
    """A reader's file: its header, a line for (user, item, time), and bad lines by what is wrong with them."""

    name: str
    header: str
    line: Callable[[int, int, int], str]
    bad: dict[str, str]
    keys: dict[str, Any] = {}  # noqa: RUF012 (never changed)


def as_json(**fields: Any) -> Callable[[int, int, int], str]:
    return lambda user, item, time: json.dumps(
        {name: {"U": f"u{user}", "I": f"i{item}", "T": time}.get(value, value) for name, value in fields.items()}
    )


POSITIONS = {"header": False, "columns": {"user": 1, "item": 2, "timestamp": 3}}
FORMS = [
    Form("log.csv", "user,item,time", lambda u, i, t: f'"u{u}","i\n{i}",{t}',
         {"line": "u1,i1,5,6", "timestamp": "u1,i1,soon"}),
    Form("open.csv", "user,item,time", lambda u, i, t: f"u{u},i{i},{t}", {"line": 'u1,"i1,5'}),
    Form("rated.csv", "user,item,rating,time", lambda u, i, t: f"u{u},i{i},{i},{t}",
         {"rating": f"u1,i1,good,{FIRST_TIME}", "timestamp": "u1,i1,3,1500000000000"}),
    Form("log.tsv", "user\titem\ttime", lambda u, i, t: f"u{u}\ti{i}\t{t}",
         {"line": "a\tb\tc\td", "timestamp": "a\tb\t1500000000000"}),
    Form("dated.csv", "user,item,date", lambda u, i, t: f"u{u},i{i},2020-01-01 10:{t % 60:02}:{i:02}",
         {"timestamp": "u1,i1,2020-13-01 10:00:00"}),
    Form("log.dat", "", lambda u, i, t: f"u{u}::i{i}::{t}", {"line": "u1::i1::5::6", "timestamp": "u1::i1::x"},
         POSITIONS),
    Form("log.inter", "user_id:token\titem_id:token\ttimestamp:float", lambda u, i, t: f"{u}\t{i}\t{t}",
         {"line": "1\t2\t3\t4", "timestamp": "1\t2\tsoon"}),
    Form("u.data", "", lambda u, i, t: f"{u}\t{i}\t3\t{t}",
         {"line": "1\t2\t3\t4\t5", "rating": f"1\t2\tx\t{FIRST_TIME}"},
         {"format": "movielens"}),
    Form("ratings.dat", "", lambda u, i, t: f"{u}::{i}::3::{t}", {"line": "1::2::3::4::5", "timestamp": "1::2::3::x"},
         {"format": "movielens"}),
    Form("ratings.csv", "", lambda u, i, t: f"A{u},B{i:09},3.0,{t}", {"line": "A1,B000000001,3.0,5,6",
         "rating": f"A1,B000000001,good,{FIRST_TIME}"}, {"format": "amazon_ratings"}),
    Form("video.txt", "", lambda u, i, t: f"{u} {i + 1}", {"line": "1 2 3"}, {"format": "sasrec"}),
    Form("log.jsonl", "", as_json(user="U", item="I", time="T"),
         {"line": '{"user": "u1", ', "timestamp": '{"user": "u1", "item": "i1", "time": "soon"}'}),
    Form("nested.jsonl", "", as_json(user="U", item="I", time="T"),
         {"line": '{"user": "u1", "item": ["i1"], "time": 1}'}),
    Form("yelp.json", "", as_json(user_id="U", business_id="I", stars=3, date="T"),
         {"line": "[]", "timestamp": '{"user_id": "u", "business_id": "b", "stars": 3, "date": "x"}'}),
    Form("reviews.jsonl", "", as_json(user_id="U", parent_asin="I", rating=3.0, timestamp="T"),
         {"line": "17", "rating": '{"user_id": "u", "parent_asin": "b", "rating": "x", "timestamp": 1500000000}'}),
    Form("user_taggedartists-timestamps.dat", "userID\tartistID\ttagID\ttimestamp",
         lambda u, i, t: f"{u}\t{i}\t1\t{t}000", {"line": "1\t2\t3\t4\t5"}),
    Form("behaviors.tsv", "", lambda u, i, t: f"{t}\tU{u}\t11/11/2019 {1 + t % 9}:0{i}:58 AM\tN{i}\tN9{i}-1 N2-0",
         {"line": "1\tU1\t11/11/2019 9:05:58 AM\tN1\tN2-1\tN3"}),
]  # fmt: skip


def lines_of(form: Form) -> list[str]:
    return [form.line(user, item, FIRST_TIME + 10 * user + item) for user in range(USERS) for item in range(ITEMS)]


def write(folder: Path, form: Form, lines: list[str]) -> DatasetOptions:
    header = [form.header] if form.header else []
    (folder / form.name).write_text("\n".join([*header, *lines]) + "\n")
    return DatasetOptions(source=str(folder / form.name), min_interactions=1, **form.keys)


def skipping(options: DatasetOptions) -> DatasetOptions:
    return options.model_copy(update={"on_bad_rows": "skip"})


@pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
def test_a_log_with_bad_rows_is_the_log_without_them(form: Form, tmp_path_factory: pytest.TempPathFactory) -> None:
    good = lines_of(form)

    @settings(max_examples=6, deadline=None, derandomize=True)
    @given(st.lists(st.tuples(st.integers(1, len(good)), st.sampled_from(sorted(form.bad))), min_size=1, max_size=14))
    def check(planted: list[tuple[int, str]]) -> None:
        folder, lines = tmp_path_factory.mktemp("bad"), list(good)
        for place, kind in sorted(planted, reverse=True):
            lines.insert(place, form.bad[kind])
        log = source_of(skipping(write(folder, form, lines))).log
        expected = source_of(write(folder, form, good)).log
        assert log.frame.equals(expected.frame)
        assert log.users.equals(expected.users)
        assert log.items.equals(expected.items)
        assert log.num_without_id == log.num_without_time == log.num_not_kept == 0
        kinds = [kind for _, kind in planted]
        assert dict(log.bad_rows.counts) == {kind: kinds.count(kind) for kind in set(kinds)}
        written = "\n".join([*([form.header] if form.header else []), *lines]).splitlines()
        assert len(log.bad_rows.first) == min(len(planted), 10)
        for row in log.bad_rows.first:
            assert row.file == form.name
            assert row.line is not None
            assert written[row.line - 1] in form.bad.values()
            assert row.value in written[row.line - 1]

    check()


BAD_LOG = "user,item,rating,time\n" + "".join(
    f"u{user},i{item},{item},{FIRST_TIME + item}\n" for user in range(USERS) for item in range(ITEMS)
)
BAD_LINES = ["u1,i1,5,6,7", f"u1,i1,good,{FIRST_TIME}", "u1,i1,3,soon"]


def bad_log(folder: Path, lines: list[str]) -> Path:
    path = folder / "log.csv"
    path.write_text(BAD_LOG + "".join(f"{line}\n" for line in lines))
    return path


def prepared(folder: Path, source: Path, **keys: Any) -> Dataset:
    prepare(DatasetOptions(source=str(source), min_interactions=1, num_shards=2, **keys), folder)
    return Dataset(folder)


def rows(dataset: Dataset) -> dict[str, Any]:
    return {name: pl.read_parquet(dataset.file(name)).to_dicts() for name in dataset.file_names if "bad" not in name}


def test_a_dataset_says_how_many_rows_were_left_out_and_has_the_first_ten(tmp_path: Path) -> None:
    dataset = prepared(tmp_path / "a", bad_log(tmp_path, BAD_LINES * 5), on_bad_rows="skip")
    assert dataset.statistics["rows_unreadable"] == 15
    assert dataset.info["reading"]["bad_rows"] == {"line": 5, "rating": 5, "timestamp": 5}
    shown = [json.loads(line) for line in (dataset.folder / "bad_rows.jsonl").read_text().splitlines()]
    assert [row["line"] for row in shown] == [32 + 3 * k for k in range(5)] + [34 + 3 * k for k in range(5)]
    assert shown[0] == {
        "file": "log.csv",
        "line": 32,
        "problem": "it has 5 fields ('u1', 'i1', '5', '6', '7'), where the first row has 4",
        "value": "u1,i1,5,6,7",
    }
    assert dataset.file("bad_rows.jsonl").exists(), "it has its checksum"
    without = prepared(tmp_path / "b", bad_log(tmp_path, []), on_bad_rows="skip")
    assert rows(dataset) == rows(without)
    assert not (without.folder / "bad_rows.jsonl").exists()
    assert "bad_rows" not in without.info["reading"]


def test_what_is_not_asked_for_is_an_error_and_changes_no_fingerprint(tmp_path: Path) -> None:
    source = bad_log(tmp_path, BAD_LINES)
    with pytest.raises(UserError, match=r"log\.csv, line 32: it has 5 fields .*on_bad_rows: skip"):
        prepared(tmp_path / "a", source)
    bad_log(tmp_path, BAD_LINES[1:])
    with pytest.raises(UserError, match=r"log\.csv, line 33: the timestamp 'soon' .*on_bad_rows: skip"):
        prepared(tmp_path / "a", source)
    bad_log(tmp_path, [])
    assert "on_bad_rows" not in prepared(tmp_path / "a", source).info["options"]


def test_values_of_a_column_that_is_compared_with_a_number(tmp_path: Path) -> None:
    source = bad_log(tmp_path, BAD_LINES[1:2])
    keep = {"rating": ">= 1"}
    with pytest.raises(UserError, match=r"log\.csv, line 32: 'good' in the column rating is not a number"):
        prepared(tmp_path / "a", source, keep=keep)
    dataset = prepared(tmp_path / "b", source, keep=keep, on_bad_rows="skip")
    assert dataset.info["reading"]["bad_rows"] == {"rating": 1}
    assert dataset.statistics["rows_not_kept"] == USERS


def test_a_row_with_several_values_that_are_no_numbers_counts_once(tmp_path: Path) -> None:
    source = bad_log(tmp_path, ["u1,i1,good,soon", f"u1,i1,bad,{FIRST_TIME}", "u1,i1,,later"])
    dataset = prepared(tmp_path / "a", source, keep={"rating": ">= 1", "time": "> 1"}, on_bad_rows="skip")
    assert dataset.info["reading"]["bad_rows"] == {"rating": 2, "time": 1}
    assert dataset.statistics["rows_unreadable"] == 3
    assert dataset.statistics["rows_not_kept"] == USERS
    options = DatasetOptions(source="table", keep={"rating": ">= 1", "time": "> 1"}, on_bad_rows="skip")
    log = source_of(options, pl.read_csv(source, infer_schema=False)).log
    assert (log.bad_rows.counts, log.num_not_kept) == ({"rating": 2, "time": 1}, USERS)


@pytest.mark.parametrize("kind", ["parquet", "pandas"])
def test_typed_logs(tmp_path: Path, kind: str) -> None:
    times = [str(FIRST_TIME + k) for k in range(30)]
    frame = pl.DataFrame({"user": [k % 3 for k in range(30)], "item": [k % 7 for k in range(30)], "time": times})
    bad = pl.concat([frame[:4], frame[4:5].with_columns(time=pl.lit("soon")), frame[4:]])
    options = DatasetOptions(source=str(tmp_path / "log.parquet"), min_interactions=1, on_bad_rows="skip")
    logs = []
    for each in (bad, frame):
        each.write_parquet(tmp_path / "log.parquet")
        table = pd.DataFrame(each.to_dict(as_series=False)) if kind == "pandas" else None
        logs.append(source_of(options, table).log)
    assert logs[0].frame.equals(logs[1].frame)
    [row] = logs[0].bad_rows.first
    expected = ("log.parquet", 5) if kind == "parquet" else ("the pandas DataFrame", None)
    assert (row.file, row.line, row.value) == (*expected, "soon")


@pytest.mark.parametrize(
    ("times", "bad"),
    [
        (["2020-01-01", *["2020-01-01 10:00:00"] * 4], []),
        (["2020-01-01 10:00:00", *["2020-01-01T10:00:00Z"] * 4], ["2020-01-01 10:00:00"]),  # the first does not decide
        (["5", "6", "7", "2020-01-01"], ["2020-01-01"]),
        (["1500000000"] * 3 + ["1500000000000"] * 4, ["1500000000"] * 3),
        (["1500000000"] * 3 + ["0", ""], ["0"][:0]),  # 1970 is a time, and an empty text is none
        (["1500000000", "nan", "inf"], ["nan", "inf"]),
        ([1.5e9, float("nan"), float("inf"), 1e300], [float("inf"), 1e300]),
        ([1500000000, 1500000000000, 2**63], [1500000000000, 2**63]),
    ],
)
def test_what_most_times_are_decides(tmp_path: Path, times: list[Any], bad: list[Any]) -> None:
    frame = pl.DataFrame(
        {"user": ["u"] * len(times), "item": ["i"] * len(times), "time": pl.Series(times, strict=False)}
    )
    log = source_of(DatasetOptions(source="x", on_bad_rows="skip"), frame).log
    assert [row.value for row in log.bad_rows.first] == [str(value) for value in bad]


def test_a_gzip_file_and_several_parts(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for number in (1, 2):
        with gzip.open(tmp_path / f"logs/part-{number}.csv.gz", "wt") as file:
            file.write(BAD_LOG + "\n".join(BAD_LINES[:1] * number) + "\n")
    log = source_of(DatasetOptions(source=str(tmp_path / "logs"), on_bad_rows="skip")).log
    assert [(row.file, row.line) for row in log.bad_rows.first] == [
        ("part-1.csv.gz", 32), ("part-2.csv.gz", 32), ("part-2.csv.gz", 33)
    ]  # fmt: skip


def test_a_line_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(BAD_LOG.encode() + "é,i1,1,1500000000\n".encode("latin-1"))
    log = source_of(DatasetOptions(source=str(tmp_path / "log.csv"), on_bad_rows="skip")).log
    assert [(row.line, row.problem) for row in log.bad_rows.first] == [(32, "it is not UTF-8")]


def test_lines_of_any_length_stay_beside_one_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "Beauty.txt").write_bytes(b"1 5 6\n2 \xe9\n3 7 5 6 8\n")
    options = DatasetOptions(source=str(tmp_path / "Beauty.txt"), format="s3rec", on_bad_rows="skip")
    log = source_of(options).log
    assert [(row.line, row.problem) for row in log.bad_rows.first] == [(2, "it is not UTF-8")]
    assert log.items.gather(log.frame["item"]).to_list() == [5, 6, 7, 5, 6, 8]


def test_a_row_of_several_lines_that_is_not_utf8_is_one(tmp_path: Path) -> None:
    bad = 'u1,"é\ni1",1,1500000000\nu1,i1,1,soon\n'.encode("latin-1")
    (tmp_path / "log.csv").write_bytes(BAD_LOG.encode() + bad)
    log = source_of(DatasetOptions(source=str(tmp_path / "log.csv"), on_bad_rows="skip")).log
    assert [(row.line, row.value) for row in log.bad_rows.first] == [(32, 'u1,"\ufffd\ni1",1,1500000000'), (34, "soon")]
    assert len(log.bad_rows) == 2


def test_lines_after_quotes_that_are_never_closed_are_read_again(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(BAD_LOG + 'u1,"i1,1,5\n' * 3 + f"u1,i1,1,{FIRST_TIME}\n" + 'u1,"i1,1,5')
    log = source_of(DatasetOptions(source=str(tmp_path / "log.csv"), on_bad_rows="skip")).log
    assert [row.line for row in log.bad_rows.first] == [32, 33, 34, 36]
    assert len(log.frame) == USERS * ITEMS + 1


def test_days_that_do_not_exist_are_missing_times_among_the_tags_of_one_interaction(tmp_path: Path) -> None:
    lines = ["userID\tartistID\ttagID\tday\tmonth\tyear", "1\t2\t7\t1\t13\t2009", "1\t2\t8\t2\t1\t2009"]
    path = tmp_path / "user_taggedartists.dat"
    path.write_text("\n".join([*lines, "1\t3\t9\t30\t2\t2009", "1\t4\t9\tx\t2\t2009"]) + "\n")
    with pytest.raises(UserError, match="2009-13-1"):
        assert source_of(DatasetOptions(source=str(path))).log
    log = source_of(DatasetOptions(source=str(path), on_bad_rows="skip")).log
    assert log.frame["timestamp"].to_list() == [int(datetime(2009, 1, 2, tzinfo=UTC).timestamp())]
    assert (log.items.to_list(), log.num_without_time) == ([2], 2)


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,time\na,b,soon\nc,d,later\n")
    with pytest.raises(UserError, match=r"leaves nothing: no row can be read \(2 by their timestamp\)"):
        prepared(tmp_path / "a", tmp_path / "log.csv", on_bad_rows="skip")


def test_an_appended_dataset_counts_those_of_both_logs(tmp_path: Path) -> None:
    source = bad_log(tmp_path, BAD_LINES)
    old = prepared(tmp_path / "a", source, on_bad_rows="skip")
    assert stored_log(old).bad_rows.counts == {"line": 1, "rating": 1, "timestamp": 1}
    append(old, DatasetOptions(source=str(source), min_interactions=1, on_bad_rows="skip"), tmp_path / "b")
    assert read_json(tmp_path / "b/dataset.json")["statistics"]["rows_unreadable"] == 6


def test_the_command_line_takes_the_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad_log(tmp_path, BAD_LINES)
    command = ["prepare", "--config", str(write_config(tmp_path))]
    assert main([*command, "--on-bad-rows", "drop"]) == 2
    assert "dataset.on_bad_rows: Input should be 'error' or 'skip' (received 'drop')" in capsys.readouterr().err
    assert main([*command, "--on-bad-rows", "error"]) == 2
    assert main([*command, "--on-bad-rows", "skip"]) == 0
    assert "skipped 3 rows that cannot be read" in capsys.readouterr().out
    init = ["init", str(tmp_path / "log.csv"), "-o", str(tmp_path / "made.yaml"), "--yes", "--on-bad-rows", "skip"]
    assert main(init) == 0
    assert "on_bad_rows: skip" in (tmp_path / "made.yaml").read_text()
