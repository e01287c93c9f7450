"""Conditions on the rows of a log: `dataset.keep`."""

import gzip
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from csrec_dist.data.columns import Columns, Layout
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.log import Log
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare
from csrec_dist.data.readers import detect
from csrec_dist.data.reading import read_log
from csrec_dist.data.tables import read_table
from csrec_dist.errors import UserError

ROWS = [
    {"user": "a", "item": "i0", "timestamp": 0, "event": "view", "score": 1.5, "bought": False, "day": "2019-10-01"},
    {"user": "a", "item": "i1", "timestamp": 1, "event": "buy", "score": 4.0, "bought": True, "day": "2019-10-02"},
    {"user": "a", "item": "i2", "timestamp": 2, "event": "cart", "score": 10.0, "bought": False, "day": "2019-10-10"},
    {"user": "a", "item": "i3", "timestamp": 3, "event": None, "score": None, "bought": None, "day": None},
]
CASES: list[tuple[dict[str, Any], list[int]]] = [
    ({"event": "view"}, [0]),
    ({"event": ["view", "cart"]}, [0, 2]),
    ({"event": "!= view"}, [1, 2, 3]),
    ({"event": "= buy"}, [1]),
    ({"score": ">= 4"}, [1, 2]),
    ({"score": "> 4"}, [2]),
    ({"score": "< 4"}, [0]),
    ({"score": "<= 4"}, [0, 1]),
    ({"score": 4}, [1]),
    ({"score": [10, 1.5]}, [0, 2]),
    ({"score": "!= 4"}, [0, 2, 3]),
    ({"bought": True}, [1]),
    ({"bought": False}, [0, 2]),
    ({"day": ">= 2019-10-02"}, [1, 2]),
    ({"event": ["buy", "cart"], "score": "< 5"}, [1]),
    ({"timestamp": "> 1"}, [2, 3]),
]


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """The rows in the form that the file's name ends in."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pl.DataFrame(rows).with_columns(pl.col("day").str.to_datetime()).write_parquet(path)
    else:
        pl.DataFrame(rows).write_csv(path, include_header=path.suffix == ".csv", separator="\t")
    return path


def read(path: Path, keep: dict[str, Any], **options: Any) -> Log:
    layout = Layout(keep=keep, **options)
    return read_log([path], detect(path, layout), layout)


def kept(log: Log) -> list[int]:
    return [int(item[1:]) for item in log.items[log.frame["item"]]]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(("keep", "rows"), CASES, ids=[str(keep) for keep, _ in CASES])
def test_rows_that_meet_all_conditions_are_read_in_every_form(tmp_path: Path, form: str, keep: Any, rows: Any) -> None:
    log = read(write(tmp_path / f"log.{form}"), keep)
    assert kept(log) == rows
    assert log.num_not_kept == 4 - len(rows)


@pytest.mark.parametrize(("keep", "rows"), [(">= 4", [1]), ("> 4", [1]), ("< 4", [0]), ("!= 5", [0, 2, 3])])
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_no_number_meets_no_comparison(tmp_path: Path, form: str, keep: str, rows: list[int]) -> None:
    """NaN is the largest number to Polars."""
    scores = [1.0, 5.0, float("nan"), None]
    frame = pl.DataFrame({"user": "a", "item": [f"i{k}" for k in range(4)], "timestamp": range(4), "rating": scores})
    path = tmp_path / f"log.{form}"
    frame.write_csv(path) if form == "csv" else frame.write_parquet(path)
    log = read(path, {"rating": keep})
    assert kept(log) == rows
    assert log.frame["rating"].to_list() == [scores[row] if row < 2 else None for row in rows]


@pytest.mark.parametrize("keep", [{"event": "view"}, {"score": ">= 4"}, {"bought": True}])
def test_a_table_keeps_the_rows_of_its_file(tmp_path: Path, keep: Any) -> None:
    path = write(tmp_path / "log.parquet")
    log = read_table(pl.read_parquet(path), Layout(keep=keep), Path("the table"))
    assert (kept(log), log.num_not_kept) == (kept(read(path, keep)), 4 - len(log.frame))


def test_columns_are_named_by_role_or_by_position(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", [{**row, "stars": row["score"]} for row in ROWS])
    assert kept(read(path, {"rating": ">= 4"})) == [1, 2]
    columns = Columns(user=1, item=2, timestamp=3)
    bare = write(tmp_path / "log.tsv")
    assert kept(read(bare, {"4": "buy"}, header=False, columns=columns)) == [1]
    assert DatasetOptions(source="x", header=False, columns=columns, keep={4: "buy"}).layout.keep == {"4": "buy"}


def test_what_is_left_out_is_counted_and_said(tmp_path: Path) -> None:
    rows = [{**row, "user": f"u{k % 3}", "timestamp": k} for k in range(6) for row in ROWS[:2]]
    said: list[str] = []
    path = write(tmp_path / "log.csv", rows)
    options = DatasetOptions(source=str(path), min_interactions=1, keep={"event": "view"}, columns={"item": "day"})
    with pytest.raises(UserError, match="no row"):  # windows of two, and three are needed
        prepare(options, tmp_path / "dataset", said.append)
    assert "left out 6 rows by dataset.keep" in said


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv")
    with pytest.raises(UserError, match=r"log\.csv has no column 'evnt' \(dataset\.keep\) \(did you mean 'event'\?\)"):
        read(path, {"evnt": "view"})


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_value_that_cannot_be_compared_is_named_with_its_line(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / f"log.{form}", [*ROWS, {**ROWS[0], "score": "good"}] if form == "jsonl" else ROWS)
    line = 5
    if form == "csv":
        path.write_text(path.read_text().replace("4.0", "good"))
        line = 3
    with pytest.raises(UserError, match=rf"log\.{form}, line {line}: 'good' in the column score is not a number"):
        read(path, {"score": ">= 4"})


def test_a_damaged_file_is_named_in_spite_of_a_condition(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.gz"
    text = "user,item,timestamp,score\n" + "".join(f"a,{row * row % 9973},{row},{row}\n" for row in range(50_000))
    path.write_bytes(gzip.compress(text.encode())[:-1000])
    with pytest.raises(UserError, match=r"log\.csv\.gz is a damaged gzip file"):
        read(path, {"score": ">= 4"})


def test_a_condition_that_keeps_nothing_shows_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"keeps none of its 4 rows .*event has 'view', 'buy', 'cart', None"):
        read(write(tmp_path / "log.csv"), {"event": "purchase"})


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"event": []}, "keeps nothing"),
        ({"x": ">="}, "compares with nothing"),
        ({"x": [">= 4", 5]}, "stands in a list"),
    ],
)
def test_a_condition_that_cannot_be_meant_is_refused(keep: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DatasetOptions(source="x", keep=keep)


def test_the_condition_decides_what_a_dataset_is() -> None:
    plain, kept_one = DatasetOptions(source="x"), DatasetOptions(source="x", keep={"event": "view"})
    assert "keep" not in plain.model_dump()
    assert DatasetOptions(**kept_one.model_dump(mode="json")) == kept_one


def test_moments_of_parquet_are_compared_as_iso_dates(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    times = [datetime(2019, 10, 1, hour) for hour in (1, 12, 23)]
    pl.DataFrame({"user": ["a"] * 3, "item": ["i0", "i1", "i2"], "time": times}).write_parquet(path)
    assert kept(read(path, {"time": ">= 2019-10-01 12:00:00"})) == [1, 2]


def test_what_a_reader_merges_is_not_left_out_by_a_condition(tmp_path: Path) -> None:
    """A tag that is kept and an earlier one for the same artist are one interaction."""
    lines = ["userID\tartistID\ttagID\ttimestamp", "1\t2\t7\t1500000000000", "1\t2\t8\t1500000001000"]
    path = tmp_path / "user_taggedartists-timestamps.dat"
    path.write_text("\n".join([*lines, "1\t3\t9\t1500000002000"]) + "\n")
    log = read(path, {"tagID": [7, 8]})
    assert (len(log.frame), log.num_not_kept) == (1, 1)


@pytest.fixture
def sequences(tmp_path: Path) -> Path:
    """30 users with 20 items each, each interaction at a time of its own."""
    rows = [{"user": u, "item": (u + 3 * k) % 40, "timestamp": 100 * u + k} for u in range(30) for k in range(20)]
    pl.DataFrame(rows).sample(fraction=1, shuffle=True, seed=1).write_csv(tmp_path / "sequences.csv")
    return tmp_path / "sequences.csv"


def sequences_of(log: Path, folder: Path, **options: Any) -> dict[int, list[int]]:
    """The items of each user that `prepare` keeps, in order, by raw ids."""
    prepare(DatasetOptions(source=str(log), **{"min_interactions": 1, **options}), folder)
    raw = {name: pl.read_parquet(folder / f"{name}s.parquet")["raw"].to_list() for name in ("user", "item")}
    sequences = Dataset(folder).sequences()
    return {raw["user"][user - 1]: [raw["item"][item - 1] for item in items] for user, items in sequences}


def test_a_share_is_drawn_at_random_and_keeps_the_order(tmp_path: Path, sequences: Path) -> None:
    whole = sequences_of(sequences, tmp_path / "whole")
    half = sequences_of(sequences, tmp_path / "half", keep_share=0.5)
    assert sum(map(len, half.values())) == 300
    for user, items in half.items():
        assert items == [item for item in whole[user] if item in items]
    lengths = [len(half.get(user, [])) for user in whole]
    assert 1.3 < np.std(lengths) < 3.3, "whole users were kept, or as many of each; binomial is 2.2"
    places = [whole[user].index(item) for user, items in half.items() for item in items]
    assert abs(np.mean(places) - 9.5) < 4 * 5.8 / 300**0.5, "the share prefers early or late interactions"


def test_shares_of_one_seed_are_nested_and_seeds_differ(tmp_path: Path, sequences: Path) -> None:
    fifth, half = (
        {(u, i) for u, items in sequences_of(sequences, tmp_path / str(share), keep_share=share).items() for i in items}
        for share in (0.2, 0.5)
    )
    assert len(fifth) == 120
    assert fifth < half
    other = sequences_of(sequences, tmp_path / "other", keep_share=0.2, seed=1)
    assert fifth != {(user, item) for user, items in other.items() for item in items}


def test_min_interactions_counts_what_the_share_left(tmp_path: Path, sequences: Path) -> None:
    left = sequences_of(sequences, tmp_path / "left", keep_share=0.4, min_interactions=5)
    assert 0 < len(left) < 30
    assert min(map(len, left.values())) >= 5
    with pytest.raises(UserError, match=r"none of the 6 interactions of dataset\.keep_share is left.*or raise dataset"):
        sequences_of(sequences, tmp_path / "none", keep_share=0.01, min_interactions=5)


def test_a_whole_share_is_no_option() -> None:
    """A dataset without it keeps its fingerprint."""
    plain, whole = DatasetOptions(source="log.csv"), DatasetOptions(source="log.csv", keep_share=1)
    assert plain.model_dump() == whole.model_dump()
    for share in (0, -0.1, 1.1):
        with pytest.raises(ValidationError, match="keep_share"):
            DatasetOptions(source="log.csv", keep_share=share)
