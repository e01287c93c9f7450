"""Logs in memory: any table gives the dataset that a file of the same interactions gives."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare, require_same
from csrec_dist.errors import UserError

OPTIONS: dict[str, Any] = {"window": 8, "min_interactions": 3, "num_shards": 3}
TABLES: dict[str, Callable[[pd.DataFrame], Any]] = {
    "pandas": lambda frame: frame,
    "pandas, other index": lambda frame: frame.set_index(np.arange(len(frame))[::-1]),
    "polars": pl.from_pandas,
    "polars, lazy": lambda frame: pl.from_pandas(frame).lazy(),
    "pyarrow": lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
    "Hugging Face": lambda frame: datasets.Dataset.from_pandas(frame),
    "Hugging Face, selected": lambda frame: datasets.Dataset.from_pandas(
        pd.concat([frame.iloc[:5], frame], ignore_index=True)
    ).select(range(5, len(frame) + 5)),
}


@pytest.fixture(scope="module")
def frame(small_log: Path) -> pd.DataFrame:
    """The small log, as pandas reads it."""
    return pd.read_csv(small_log)


def prepared(folder: Path, table: Any, **changes: Any) -> dict[str, Any]:
    return prepare(DatasetOptions(source="a table", **(OPTIONS | changes)), folder, table=table)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "dataset.json"}


def raw_items(folder: Path) -> pl.Series:
    return pl.read_parquet(folder / "items.parquet")["raw"]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_gives_the_dataset_of_its_file(name: str, frame: pd.DataFrame, small_log: Path, tmp_path: Path) -> None:
    table = TABLES[name](frame)
    info = prepared(tmp_path / "table", table)
    of_file = prepare(DatasetOptions(source=str(small_log), **OPTIONS), tmp_path / "file")
    assert files_of(tmp_path / "table") == files_of(tmp_path / "file")
    assert info["fingerprint"] == prepared(tmp_path / "pandas", frame)["fingerprint"]
    assert info["statistics"] == of_file["statistics"]


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("text of digits", lambda number: f"{number}"),
        ("leading zeros", lambda number: f"{number:04d}"),
        ("text", lambda number: f"sku «{number}», red"),
        ("integers", lambda number: number),
        ("large integers", lambda number: 2**63 + number),
        ("negative integers", lambda number: -number),
    ],
)
@pytest.mark.parametrize("form", ["pandas", "polars", "parquet"])
def test_ids_keep_their_type(kind: str, make: Callable, form: str, frame: pd.DataFrame, tmp_path: Path) -> None:
    """In a CSV file text of digits cannot be told from integers; where the log has types it stays text."""
    ids = [make(int(item[1:])) for item in frame["item"]]
    table: Any = frame.assign(item=pd.array(ids, dtype="uint64") if kind == "large integers" else ids)
    options: dict[str, Any] = {"source": "a table"}
    if form == "parquet":
        table.to_parquet(tmp_path / "log.parquet")
        table, options = None, {"source": str(tmp_path / "log.parquet")}
    elif form == "polars":
        table = pl.from_pandas(table)
    prepare(DatasetOptions(**options, **OPTIONS), tmp_path / "data", table=table)
    found = raw_items(tmp_path / "data").to_list()
    assert set(found) <= set(ids)
    assert {type(value) for value in found} == {type(ids[0])}


def test_ids_of_other_types_become_text_or_integers(frame: pd.DataFrame, tmp_path: Path) -> None:
    numbers = frame["item"].str[1:].astype(int)
    uuids = {number: uuid.UUID(int=number) for number in range(30)}
    kinds = {
        "uuid": (numbers.map(uuids), {str(value) for value in uuids.values()}),
        "category": (frame["item"].astype("category"), set(frame["item"])),
        "category of integers": (numbers.astype("category"), set(numbers)),
        "float": (numbers.astype(float), set(numbers)),
        "nullable": (numbers.astype("Int64"), set(numbers)),
        "decimal": (numbers / 2, {f"{number / 2}" for number in numbers}),
        "bytes": (frame["item"].map(str.encode), set(frame["item"])),
    }
    for kind, (ids, expected) in kinds.items():
        prepared(tmp_path / kind, frame.assign(item=ids))
        assert set(raw_items(tmp_path / kind).to_list()) <= expected, kind


def test_rows_without_an_id_are_dropped_and_counted(frame: pd.DataFrame, tmp_path: Path) -> None:
    holed = frame.assign(item=frame["item"].where(frame.index % 50 != 0))
    assert prepared(tmp_path / "data", holed)["statistics"]["rows_without_id"] == -(-len(frame) // 50)


def test_columns_that_are_not_taken_may_be_anything(frame: pd.DataFrame, tmp_path: Path) -> None:
    prepared(tmp_path / "data", frame.assign(note=[object() for _ in range(len(frame))]))


def test_columns_of_pandas_may_be_numbers(frame: pd.DataFrame, tmp_path: Path) -> None:
    numbered = frame.set_axis([10, 1, 2, 3], axis="columns")
    columns = {"user": "10", "item": "1", "rating": "2", "timestamp": "3"}
    prepared(tmp_path / "numbered", numbered, columns=columns)
    prepared(tmp_path / "named", frame)
    assert files_of(tmp_path / "numbered") == files_of(tmp_path / "named")


@pytest.mark.parametrize(
    "names",
    [
        ("user_id", "item_id", "weight", "datetime"),  # RecTools
        ("query_id", "item_id", "rating", "timestamp"),  # RePlay
        ("user_idx", "item_idx", "relevance", "timestamp"),  # RePlay before 0.16
    ],
)
def test_columns_of_other_libraries_are_known(names: tuple[str, ...], frame: pd.DataFrame, tmp_path: Path) -> None:
    info = prepared(tmp_path / "data", frame.set_axis(names, axis="columns"))
    roles = ("user", "item", "rating", "timestamp")
    assert {role: info["reading"]["columns"][role] for role in roles} == dict(zip(roles, names, strict=True))


def test_times_of_pandas_are_read(frame: pd.DataFrame, tmp_path: Path) -> None:
    dated = frame.assign(timestamp=pd.Timestamp("2026-01-01") + pd.to_timedelta(frame["timestamp"], unit="D"))
    assert prepared(tmp_path / "dated", dated)["reading"]["first_time"] == "2026-01-01 00:00:00 UTC"
    prepared(tmp_path / "numbers", frame)
    dated_files, files = (files_of(tmp_path / name) for name in ("dated", "numbers"))
    assert dated_files.pop("log.parquet") != files.pop("log.parquet")  # it has the times themselves
    assert dated_files == files


def test_a_dataset_is_recognised_as_that_of_the_table(frame: pd.DataFrame, tmp_path: Path) -> None:
    prepared(tmp_path / "data", frame)
    require_same(tmp_path / "data", DatasetOptions(source="another name", **OPTIONS), pl.from_pandas(frame))
    with pytest.raises(UserError, match=r"other options: window was 8, is 9\. Prepare into another folder"):
        require_same(tmp_path / "data", DatasetOptions(source="a table", **OPTIONS | {"window": 9}), frame)
    with pytest.raises(UserError, match="the log has other rows than that of"):
        require_same(tmp_path / "data", DatasetOptions(source="a table", **OPTIONS), frame.iloc[1:])


@pytest.mark.parametrize("column", ["user", "item", "rating", "timestamp"])
def test_every_column_that_is_read_decides_what_a_table_is(column: str, frame: pd.DataFrame, tmp_path: Path) -> None:
    changed = frame.copy()
    changed.loc[7, column] = "another" if column in ("user", "item") else 99
    prints = [prepared(tmp_path / f"{n}", table)["fingerprint"] for n, table in enumerate([frame, changed])]
    assert prints[0] != prints[1]


def test_what_cannot_be_a_log_is_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    from_pandas = datasets.Dataset.from_pandas(frame)
    mixed = frame.assign(user=[1, *frame["user"][1:]])
    for table, message in (
        ([("u", "i", 1)], r"path of a file or folder, or a table of pandas, .*not a list; pandas\.DataFrame"),
        (datasets.DatasetDict({"train": from_pandas}), r'give one of its splits, such as log\["train"\]'),
        (from_pandas.to_iterable_dataset(), "write it to Parquet and give the path"),
        (
            pd.DataFrame({"user": [2**70], "item": [1], "timestamp": [1]}),
            r"too large to convert.*ids with astype\(str\)",
        ),
        (mixed, r"the pandas DataFrame: a column has values of several types.*convert it first"),
        (frame.drop(columns="item"), r"the pandas DataFrame has no column that looks like the item"),
        (frame.iloc[:0], "the pandas DataFrame has no interactions"),
        (frame.assign(item=[[1]] * len(frame)), r"the item ids are List"),
    ):
        with pytest.raises(UserError, match=message):
            prepared(tmp_path / "data", table)
    assert not list(tmp_path.iterdir())
