"""Each raw-log format, plain and gzipped, read into the same interactions."""

import datetime
import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from csrec_dist import Dataset
from csrec_dist.data.columns import Columns, Layout
from csrec_dist.data.log import Log
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.parts import log_files
from csrec_dist.data.prepare import prepare
from csrec_dist.data.readers import READERS, detect
from csrec_dist.data.reading import read_log
from csrec_dist.errors import UserError

AMAZON_2014 = "A2SUAM1J3GNN3B,0000013714,5.0,1400457600\nAH2L9G3DQHHAJ,B000000000,4.0,1353369600\n"
AMAZON_2018 = "0000013714,A2SUAM1J3GNN3B,5.0,1400457600\nB000000000,AH2L9G3DQHHAJ,4.0,1353369600\n"
TAGS = (
    "userID\tartistID\ttagID\tday\tmonth\tyear\n2\t52\t13\t2\t4\t2009\n2\t52\t15\t1\t4\t2009\n2\t63\t13\t1\t4\t2009\n"
)
TAG_TIMES = (
    "userID\tartistID\ttagID\ttimestamp\n2\t52\t13\t1238623200000\n2\t52\t15\t1238536800000\n2\t63\t1\t1238536800001\n"
)

MIND = (
    "1\tU1\t11/11/2019 9:05:58 AM\tN7 N8\tN2-0 N4-1 N1-1\n2\tU2\t11/11/2019 9:05:58 AM\t\tN9-1\n"
    "3\tU1\t11/11/2019 8:13:20 AM\tN7 N8\tN3-1 N5-1\n4\tU3\t11/11/2019 9:05:58 AM\t\tN2-0\n"
)


def json_text(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


SEQUENCES = ("sasrec", "s3rec")  # forms in which the order of the file is the order in time
# name of the file, its text, reader, and rows (user, item, rating, timestamp) by user in time order
CASES = {
    "csv": ("x.csv", 'userId,movieId,rating,timestamp\n1,"a, b",3.5,20\n1,c,,10\n', "delimited",
            [(1, "c", None, 10), (1, "a, b", 3.5, 20)]),
    "semicolon": ("x.csv", "user;item\nx;y\nx;z\n", "delimited", [("x", "y", None, None), ("x", "z", None, None)]),
    "tsv": ("x.tsv", 'session_id\titem\ttime\n7\t6" nails\t1.5\n', "delimited", [(7, '6" nails', None, 1.5)]),
    "bar": ("x.txt", "uid|item_id|score\n7|8|1\n", "delimited", [(7, 8, 1.0, None)]),
    "movielens 100k": ("u.data", "196\t242\t3\t881250949\n", "movielens", [(196, 242, 3.0, 881250949)]),
    "movielens 1m": ("ratings.dat", "1::1193::5::978300760\r\n1::66::3::978302109\r\n", "movielens",
                     [(1, 1193, 5.0, 978300760), (1, 66, 3.0, 978302109)]),
    "long separator, header": ("x.dat", "user::item\n1::a:b\n", "delimited", [(1, "a:b", None, None)]),
    "bom": ("x.csv", "\ufeffuser,item\n1,2\n", "delimited", [(1, 2, None, None)]),
    "bom, movielens": ("ratings.dat", "\ufeff1::1193::5::978300760\n1::66::3::978302109\n", "movielens",
                       [(1, 1193, 5.0, 978300760), (1, 66, 3.0, 978302109)]),
    "bom, s3rec": ("Beauty.txt", "\ufeff1 19 12 \n2 7\n", "s3rec",
                   [(1, 19, None, None), (1, 12, None, None), (2, 7, None, None)]),
    "whole numbers with a point": ("x.csv", "user,item\n1.0,7\n1,7.0\n2.0,8\n", "delimited",
                                   [(1, 7, None, None), (1, 7, None, None), (2, 8, None, None)]),
    "text with a point": ("x.csv", "user,item\n1,7\n1,7.0\n1,v\n", "delimited",
                          [(1, "7", None, None), (1, "7.0", None, None), (1, "v", None, None)]),
    "numbers and nan": ("x.csv", "user,item\n1,nan\n1,7\nNaN,7\n2,8.5\n", "delimited",
                        [(1, "7", None, None), (2, "8.5", None, None)]),
    "text and nan": ("x.csv", "user,item\n1,nan\n1,v\n", "delimited", [(1, "nan", None, None), (1, "v", None, None)]),
    "json lines": ("x.jsonl", json_text({"user": 2**64 - 1, "item": "i", "time": "2020-01-01T00:00:01Z", "o": [1]}),
                   "json_lines", [(2**64 - 1, "i", None, 1577836801000000)]),
    "inter": ("x.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1m_1\tBug's \"Life\"\t5\t97.5\n",
              "inter", [("1m_1", 'Bug\'s "Life"', 5.0, 97.5)]),
    "hetrec days": ("user_taggedartists.dat", TAGS, "hetrec", [(2, 52, None, 1238544000), (2, 63, None, 1238544000)]),
    "hetrec times": ("user_taggedartists-timestamps.dat", TAG_TIMES, "hetrec",
                     [(2, 52, None, 1238536800000), (2, 63, None, 1238536800001)]),
    "amazon reviews": ("Electronics_5.json", json_text(
        {"overall": 5.0, "reviewerID": "A1", "asin": "0001", "unixReviewTime": 1400457600, "reviewText": "x"}),
        "amazon_reviews", [("A1", "0001", 5.0, 1400457600)]),
    "amazon reviews 2023": ("Books.jsonl", json_text(
        {"rating": 4.0, "asin": "B1", "parent_asin": "B0", "user_id": "AE", "timestamp": 1588687728923}),
        "amazon_reviews", [("AE", "B0", 4.0, 1588687728923)]),
    "amazon ratings 2014": ("ratings_Electronics.csv", AMAZON_2014, "amazon_ratings",
                            [("A2SUAM1J3GNN3B", "0000013714", 5.0, 1400457600),
                             ("AH2L9G3DQHHAJ", "B000000000", 4.0, 1353369600)]),
    "amazon ratings 2018": ("Electronics.csv", AMAZON_2018, "amazon_ratings",
                            [("A2SUAM1J3GNN3B", "0000013714", 5.0, 1400457600),
                             ("AH2L9G3DQHHAJ", "B000000000", 4.0, 1353369600)]),
    "sasrec": ("Video.txt", "1 19\n1 12\n1 19\n2 7\n", "sasrec",
               [(1, 19, None, None), (1, 12, None, None), (1, 19, None, None), (2, 7, None, None)]),
    "s3rec": ("Beauty.txt", "1 19 12 19 \n2 7\n", "s3rec",
              [(1, 19, None, None), (1, 12, None, None), (1, 19, None, None), (2, 7, None, None)]),
    "mind": ("behaviors.tsv", MIND, "mind",
             [("U1", item, None, 1573460000000000) for item in ("N7", "N8", "N3", "N5")]
             + [(user, item, None, 1573463158000000) for user, item in (("U1", "N4"), ("U1", "N1"), ("U2", "N9"))]),
    "yelp": ("yelp_academic_dataset_review.json", json_text(
        {"user_id": "u", "business_id": "b", "stars": 3.0, "text": "t", "date": "2018-07-07 22:09:11"}),
        "yelp", [("u", "b", 3.0, 1531001351000000)]),
}  # fmt: skip


def rows(log: Log) -> list[tuple]:
    return [(log.users[u], log.items[i], rating, time) for u, i, rating, time in log.frame.rows()]


def read(path: Path, header: bool | None = None, encoding: str | None = None, **columns: str | int) -> Log:
    layout = Layout(Columns(**columns), header, encoding)
    return read_log([path], detect(path, layout), layout)


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("case", CASES)
def test_format(tmp_path, case, zipped):
    name, text, reader, expected = CASES[case]
    data = text.encode()
    path = tmp_path / (name + ".gz" * zipped)
    path.write_bytes(gzip.compress(data) if zipped else data)
    assert detect(path, Layout()) == reader
    in_order = {} if expected[0][3] is not None or reader in SEQUENCES else {"timestamp": "none"}
    assert rows(read(path, **in_order)) == expected


def test_true_items_are_found_where_pandas_wrote_them_with_a_point(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("user,item,true_item\n1,7,8.0\n1,8,\n2,9,7.0\n")
    log = read(path, timestamp="none")
    assert [None if each is None else log.items[each] for each in log.frame["true_item"]] == [8, None, 7]


def test_parts_with_other_types_of_ids_are_one_log(tmp_path):
    """pandas has floats where a value is missing; those of 2**53 and more stand for several integers: left out."""
    large = 2**53
    pl.DataFrame({"user": [1, large + 1, large], "item": [7, 8, 9], "time": [1, 2, 3]}).write_parquet(
        tmp_path / "1.parquet"
    )
    floats = {"user": [1.0, float(large), None, 2.5], "item": [9.0, 7.0, 7.0, 7.0], "time": [4, 5, 6, 7]}
    pl.DataFrame(floats).write_parquet(tmp_path / "2.parquet")
    log = read_log([tmp_path / "1.parquet", tmp_path / "2.parquet"], "parquet", Layout())
    assert sorted((user, item) for user, item, *_ in rows(log)) == [(1, 7), (1, 9), (large, 9), (large + 1, 8)]
    assert log.num_without_id == 3


def test_parts_with_times_in_several_units_are_in_the_order_of_the_finest(tmp_path):
    """Also where the zones of the columns differ."""
    milliseconds = [1_600_000_000_000, 1_600_000_000_001]
    microseconds = [1_600_000_000_000_900, 1_600_000_000_000_500, 1_600_000_000_000_100]
    parts = [
        (["a", "z"], milliseconds, pl.Datetime("ms", "UTC")),
        (["d", "c", "b"], microseconds, pl.Datetime("us", "Europe/Berlin")),
    ]
    for number, (items, times, dtype) in enumerate(parts):
        frame = {"user": ["u"] * len(items), "item": items, "time": pl.Series(times, dtype=dtype)}
        pl.DataFrame(frame).write_parquet(tmp_path / f"{number}.parquet")
    log = read_log([tmp_path / "0.parquet", tmp_path / "1.parquet"], "parquet", Layout())
    assert [item for _, item, *_ in rows(log)] == ["a", "b", "c", "d", "z"]


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([datetime.date(2020, 1, 1)], "numbers and times without a zone"),
        ([datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)], "numbers and times with a zone"),
    ],
)
def test_parts_whose_times_cannot_be_compared_are_refused(tmp_path, times, words):
    pl.DataFrame({"user": [1], "item": [7], "time": [1_500_000_000]}).write_parquet(tmp_path / "1.parquet")
    pl.DataFrame({"user": [1], "item": [8], "time": times}).write_parquet(tmp_path / "2.parquet")
    with pytest.raises(UserError, match=words):
        read_log([tmp_path / "1.parquet", tmp_path / "2.parquet"], "parquet", Layout())


def test_files_of_mind_repeat_their_histories_and_are_read_as_one(tmp_path):
    """In parts, as splits, or appended, what users had clicked before would count again."""
    text = "{n}\tU1\t11/{n}/2019 9:05:58 AM\tN6 N7 N8\tN4-1\n"
    paths = [tmp_path / f"part-{n}.tsv" for n in (1, 2, 3)]
    for n, path in enumerate(paths, 1):
        path.write_text(text.format(n=n))
    with pytest.raises(UserError, match=r"part-1\.tsv and 1 more are not one log: each of MIND's files repeats"):
        read_log(paths[:2], "mind", Layout())
    given = {"split": "given", "valid_source": str(paths[1]), "test_source": str(paths[2]), "min_interactions": 1}
    with pytest.raises(UserError, match="each of MIND's files repeats"):
        prepare(DatasetOptions(source=str(paths[0]), **given), tmp_path / "given")
    prepare(DatasetOptions(source=str(paths[0]), min_interactions=1), tmp_path / "old")
    with pytest.raises(UserError, match=r"part-2\.tsv cannot be appended: each of MIND's files repeats"):
        Dataset(tmp_path / "old").append(str(paths[1]), tmp_path / "new")


def test_files_of_hetrec_are_read_as_one(tmp_path):
    """The first tag of a user for an artist counts: another part may have an earlier one."""
    paths = [tmp_path / f"part-{n}.dat" for n in (1, 2)]
    for n, path in enumerate(paths):
        tags = "".join(f"1\t{artist}\t{n}\t1\t{artist}\t201{n}\n" for artist in range(1, 5))
        path.write_text(f"userID\tartistID\ttagID\tday\tmonth\tyear\n{tags}")
    with pytest.raises(UserError, match=r"part-1\.dat and 1 more are not one log: of a user's tags for an artist"):
        read_log(paths, "hetrec", Layout())
    prepare(DatasetOptions(source=str(paths[0]), min_interactions=1), tmp_path / "old")
    with pytest.raises(UserError, match=r"part-2\.dat cannot be appended: of a user's tags"):
        Dataset(tmp_path / "old").append(str(paths[1]), tmp_path / "new")


def test_a_history_of_mind_is_that_of_the_first_impression_with_a_time(tmp_path):
    path = tmp_path / "behaviors.tsv"
    path.write_text("1\tU1\tsoon\t\tN5-1\n2\tU1\t11/2/2019 9:05:58 AM\tN1 N2\tN3-1 N4-0\n")
    log = read_log([path], "mind", Layout(skips_bad_rows=True))
    assert [item for _, item, *_ in rows(log)] == ["N1", "N2", "N3"]
    assert log.bad_rows.counts == {"timestamp": 1}


def test_every_text_reader_has_a_case():
    assert {reader for _, _, reader, _ in CASES.values()} | {"parquet"} == set(READERS)


@pytest.mark.parametrize(
    ("users", "items", "times", "expected"),
    [
        (pl.Series([1.0, float("nan")]), pl.Series(["a", "b"]), pl.Series([1, 2]), [(1, "a", None, 1)]),
        (
            pl.Series([2**63, 5], dtype=pl.UInt64),
            pl.Series(["b", "a"], dtype=pl.Categorical),
            pl.Series([datetime.datetime(1970, 1, 1, 0, 0, 2), datetime.datetime(1970, 1, 1)]),
            [(2**63, "b", None, 2_000_000), (5, "a", None, 0)],
        ),
        (pl.Series([1.5, 2.0]), pl.Series([True, False]), pl.Series([0.5, None]), [("1.5", "true", None, 0.5)]),
    ],
)
def test_parquet_of_any_types(tmp_path, users, items, times, expected):
    path = tmp_path / "log"
    pl.DataFrame({"user": users, "item": items, "timestamp": times}).write_parquet(path)
    assert detect(path, Layout()) == "parquet"
    assert rows(read(path)) == expected


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("rating", pl.Series([[1], [2]]), "column of the rating is List"),
        ("rating", pl.Series([b"\xff", b"1"]), "column of the rating is Binary"),
        ("rating", pl.Series(["5", "good"], dtype=pl.Categorical), "rating 'good' is not a number"),
        ("timestamp", pl.Series([[1], [2]]), "column of the timestamp is List"),
        ("timestamp", pl.Series([1, 2**63], dtype=pl.UInt64), "timestamp 9223372036854775808 is outside"),
        ("item", pl.Series([b"\xff", b"1"]), "column of the item is Binary"),
    ],
)
def test_parquet_types_that_do_not_fit_are_named(tmp_path, column, values, message):
    path = tmp_path / "log{}.parquet"
    log = pl.DataFrame({"user": [1, 2], "item": [3, 4], "timestamp": [0, 1]})
    log.with_columns(values.alias(column)).write_parquet(path)
    with pytest.raises(UserError, match=rf"log{{}}\.parquet(, row 2)?: the .*{message}"):
        read(path)


def test_categorical_ratings_and_unsigned_times_are_read(tmp_path):
    path = tmp_path / "log.parquet"
    ratings, times = pl.Series(["4.5", None], dtype=pl.Categorical), pl.Series([2**63 - 1, 0], dtype=pl.UInt64)
    pl.DataFrame({"user": [1, 2], "item": [3, 4], "rating": ratings, "timestamp": times}).write_parquet(path)
    assert rows(read(path)) == [(1, 3, 4.5, 2**63 - 1), (2, 4, None, 0)]


def test_lists_are_no_ids(tmp_path):
    path = tmp_path / "log.parquet"
    pl.DataFrame({"user": [1], "item": [[1, 2]]}).write_parquet(path)
    with pytest.raises(UserError, match="item ids are List"):
        read(path, timestamp="none")


def test_parquet_parts_are_read_in_the_order_of_their_names(tmp_path):
    for name in (10, 2, 1):
        pl.DataFrame({"user": [1], "item": [name]}).write_parquet(tmp_path / f"part-{name}.parquet")
    log = read_log(log_files(tmp_path), "parquet", Layout(Columns(timestamp="none")))
    assert log.items.to_list() == [1, 2, 10]


def test_a_folder_must_hold_one_log(tmp_path):
    with pytest.raises(UserError, match="contains no log"):
        log_files(tmp_path)
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("user,item\n1,2\n")
    with pytest.raises(UserError, match=r"several files, a\.csv, b\.csv"):
        log_files(tmp_path)
    (tmp_path / "a.csv").unlink()
    assert log_files(tmp_path) == [tmp_path / "b.csv"]


def test_named_columns_win_over_guesses(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,who,time\n1,2,me,3\n")
    assert rows(read(path, user="who")) == [("me", 2, None, 3)]
    assert rows(read(path, user="time", timestamp="user")) == [(3, 2, None, 1)]


def test_amazon_ids_that_tell_nothing_ask_for_names(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text("anna,bread,5.0,1400457600\n")
    with pytest.raises(UserError, match=r"dataset\.header: false and dataset\.columns: \{user: 1"):
        read(path)
    columns = {"user": 1, "item": 2, "rating": 3, "timestamp": 4}
    assert rows(read(path, header=False, **columns)) == [("anna", "bread", 5.0, 1400457600)]


@pytest.mark.parametrize(("user", "item"), [("1234567890", "SKU-0"), ("SKU-0", "1234567890")])
def test_a_number_of_ten_digits_is_no_product_unless_the_other_is_a_user_of_amazon(tmp_path, user, item):
    path = tmp_path / "ratings.csv"
    path.write_text(f"{user},{item},5.0,1400457600\n")
    with pytest.raises(UserError, match="cannot tell users from items"):
        read(path)


def test_only_canonical_integers_become_integers(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item\n7,1\n007,2\n+7,18446744073709551615\n")
    log = read(path, timestamp="none")
    assert log.users.to_list() == ["7", "007", "+7"]
    assert (log.items.dtype, log.items.to_list()) == (pl.UInt64, [1, 2, 18446744073709551615])


def test_an_inter_column_may_be_named_with_or_without_its_type(tmp_path):
    path = tmp_path / "x.inter"
    path.write_text("user_id:token\titem_id:token\tweek:float\n1\t2\t3\n")
    for name in ("week", "week:float"):
        assert rows(read(path, timestamp=name)) == [(1, 2, None, 3)]


def test_broken_json_is_the_users_error(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"user": 1, "item": 2}\n{"user": 1, "it\n')
    with pytest.raises(UserError, match="The reader 'json_lines' could not read"):
        read(path, timestamp="none")


def damaged(data: bytes, kind: str) -> bytes:
    """Gzipped bytes, cut or with a changed byte, early (where a peek meets it) or late."""
    zipped, place = gzip.compress(data), 15 if kind.endswith("early") else -9
    if kind.startswith("cut"):
        return zipped[:place]
    return zipped[:place] + bytes([zipped[place] ^ 255]) + zipped[place + 1 :]


@pytest.mark.parametrize("kind", ["cut early", "changed early", "cut late", "changed late"])
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.dat"])
def test_damaged_gzip_is_the_users_error(tmp_path, name, kind):
    lines = {
        "x.csv": ["user,item"] + [f"{k * k},{k * 7919 % 997}" for k in range(20_000)],
        "x.jsonl": [json.dumps({"user": k * k, "item": k}) for k in range(20_000)],
        "x.dat": ["user::item"] + [f"{k * k}::{k}" for k in range(20_000)],
    }[name]
    path = tmp_path / (name + ".gz")
    path.write_bytes(damaged("\n".join(lines).encode(), kind))
    with pytest.raises(UserError, match=rf"{name}\.gz( is a damaged gzip file|:)"):
        read(path, timestamp="none")


@pytest.mark.parametrize("text", ["user,item\r1,2\r3,4\r", "user,item\n".rjust(200_000, "x"), "a\tb\r1\t2\r"])
def test_lines_that_cannot_be_cut_into_fields_are_the_users_error(tmp_path, text):
    path = tmp_path / "log.csv"
    path.write_text(text, newline="")
    with pytest.raises(UserError, match=r"log\.csv: its line that begins with .* cannot be cut into fields"):
        read(path)


@pytest.mark.parametrize("line", ["A2SUAM1J3GNN3B", "A2SUAM1J3GNN3B,0000013714"])
def test_a_short_line_of_amazon_ratings_is_named(tmp_path, line):
    path = tmp_path / "ratings.csv"
    path.write_text(AMAZON_2014 + line + "\n")
    with pytest.raises(UserError, match=f"line 3, '{line}', has fewer than 4 fields"):
        read_log([path], "amazon_ratings", Layout())
