"""Datasets made of an old one and a new log, against preparing the whole log at once."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from csrec_dist.cli import main
from csrec_dist.data.append import LOG, appended_options, read_log
from csrec_dist.data.dataset import Dataset
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import append, prepare
from csrec_dist.data.reshard import reshard
from csrec_dist.errors import UserError
from csrec_dist.files import read_json
from tests.helpers.finished_runs import content

OPTIONS: dict[str, Any] = {"window": 5, "min_interactions": 3, "num_shards": 3}
RULES: list[dict[str, Any]] = [
    {},
    {"k_core": "once", "duplicates": "exact"},
    {"duplicates": "first", "windows": "paper"},
    {"duplicates": "last", "windows": "last"},
    {"split": "temporal", "temporal_shares": [0.5, 0.25, 0.25]},
    {"keep": {"user": "!= u1"}, "weights": {"rating": {"1": 0.25}}},
]
BY_APPENDING = {"valid_targets_trained_before", "test_targets_trained_before"}


def random_log(seed: int, num_rows: int, first_time: int, num_users: int = 14, num_items: int = 16) -> pl.DataFrame:
    """Interactions at times of which many are equal; users and items of low numbers are the most frequent."""
    random = np.random.default_rng(seed)
    users, items = (np.minimum(random.geometric(0.15, num_rows), most) for most in (num_users, num_items))
    return pl.DataFrame(
        {
            "user": [f"u{user}" for user in users],
            "item": [f"i{item}" for item in items],
            "rating": random.integers(1, 3, num_rows),
            "timestamp": 1_700_000_000 + first_time + random.integers(0, 40, num_rows),
        }
    )


def write(frame: pl.DataFrame, path: Path) -> Path:
    frame.write_csv(path)
    return path


def options(source: Path, **changes: Any) -> DatasetOptions:
    return DatasetOptions(source=str(source), **OPTIONS | changes)


def options_to_append(dataset: Dataset, source: Path, **changes: Any) -> DatasetOptions:
    return DatasetOptions(**appended_options(dataset, changes, is_table=False), source=str(source))


def appended(folder: Path, new: pl.DataFrame, dataset: Dataset, **changes: Any) -> Dataset:
    path = write(new, folder.with_suffix(".csv"))
    append(dataset, options_to_append(dataset, path, **changes), folder)
    return Dataset(folder)


def prepared(folder: Path, log: pl.DataFrame, **changes: Any) -> Dataset:
    prepare(options(write(log, folder.with_suffix(".csv")), **changes), folder)
    return Dataset(folder)


def raw(dataset: Dataset, kind: str) -> list[Any]:
    return pl.read_parquet(dataset.folder / f"{kind}s.parquet")["raw"].to_list()


def rows(dataset: Dataset, split: str) -> list[tuple[Any, ...]]:
    """The rows of a split with raw ids, in an order that numbers do not decide."""
    users, items = raw(dataset, "user"), raw(dataset, "item")
    shards = [pq.read_table(dataset.shard_file(split, shard)).to_pylist() for shard in range(dataset.num_shards)]
    return sorted(
        (
            users[row["user"] - 1],
            [items[item - 1] for item in row["items"]],
            str([row["rating"], row["leaked"], row.get("weights")]),
        )
        for row in itertools.chain(*shards)
    )


def counts(dataset: Dataset, kind: str) -> dict[Any, int]:
    table = pl.read_parquet(dataset.folder / f"{kind}s.parquet")
    return dict(zip(table["raw"], table["count"], strict=True))


def sequences(dataset: Dataset) -> dict[Any, list[Any]]:
    users, items = raw(dataset, "user"), raw(dataset, "item")
    return {users[user - 1]: [items[item - 1] for item in sequence] for user, sequence in dataset.sequences()}


def assert_equal_but_for_numbers(one: Dataset, other: Dataset) -> None:
    for split in ("train", "valid", "test"):
        assert rows(one, split) == rows(other, split)
    assert sequences(one) == sequences(other)
    assert counts(one, "item") == counts(other, "item")
    assert counts(one, "user") == counts(other, "user")
    first, second = (dict(dataset.statistics) for dataset in (one, other))
    shared = first.keys() & second.keys()
    assert {key: first[key] for key in shared} == pytest.approx({key: second[key] for key in shared})
    assert first.keys() ^ second.keys() <= BY_APPENDING
    names = ("first_time", "last_time", "columns", "times_per_second")
    assert [one.info["reading"][name] for name in names] == [other.info["reading"][name] for name in names]


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: "-".join(map(str, rules.values())) or "default")
@pytest.mark.parametrize("seed", range(4))
def test_appending_twice_is_preparing_the_whole_log_but_for_the_numbers(
    rules: dict[str, Any], seed: int, tmp_path: Path
) -> None:
    parts = [random_log(3 * seed + part, size, 20 * part) for part, size in enumerate((80, 50, 40))]
    first = prepared(tmp_path / "first", parts[0], **rules)
    before = content(first.folder)
    second = appended(tmp_path / "second", parts[1], first)
    third = appended(tmp_path / "third", parts[2], second)
    assert content(first.folder) == before
    assert_equal_but_for_numbers(third, prepared(tmp_path / "whole", pl.concat(parts), **rules))
    for old, new in ((first, second), (second, third)):
        assert raw(new, "item")[: old.num_items] == raw(old, "item")
        assert raw(new, "user")[: old.num_users] == raw(old, "user")
    assert first.num_items < third.num_items  # so that something new was numbered
    assert first.num_users < third.num_users


def test_the_new_options_say_whether_examples_have_weights(tmp_path: Path) -> None:
    log, new, weights = random_log(0, 80, 0), random_log(1, 60, 50), {"rating": {"1": 0.25}}
    weighted, alike = (
        prepared(tmp_path / name, log, **keys) for name, keys in (("w", {"weights": weights}), ("a", {}))
    )
    without = appended(tmp_path / "without", new, weighted, weights={})
    assert without.example_weights is None
    assert rows(without, "train") == rows(appended(tmp_path / "alike", new, alike), "train")
    late = appended(tmp_path / "late", new, alike, weights=weights)
    of_log = pl.read_parquet(late.folder / LOG)["weight"]
    assert late.example_weights is not None
    assert (of_log == 0.25).sum() == (new["rating"] == 1).sum()
    assert (of_log == 1).sum() == len(log) + (new["rating"] != 1).sum()


def test_a_given_split_is_not_appended(tmp_path: Path) -> None:
    first = prepared(tmp_path / "first", random_log(0, 60, 0))
    with pytest.raises(UserError, match=r"split: given cannot be appended to .*first"):
        appended(tmp_path / "second", random_log(1, 40, 50), first, split="given")


def test_a_share_is_not_appended(tmp_path: Path) -> None:
    whole, share = (prepared(tmp_path / str(s), random_log(0, 60, 0), keep_share=s) for s in (1, 0.9))
    for first, options in ((share, {}), (whole, {"keep_share": 0.9})):
        with pytest.raises(UserError, match="keep_share cannot be appended to"):
            appended(tmp_path / "second", random_log(1, 40, 50), first, **options)


def test_names_of_folders_are_no_patterns(tmp_path: Path) -> None:
    first = prepared(tmp_path / "first[1]", random_log(0, 60, 0))
    second = appended(tmp_path / "second[2]", random_log(1, 40, 50), first)
    assert second.statistics["raw_interactions"] == 100


def test_what_a_dataset_extends_is_written_down(tmp_path: Path) -> None:
    first = prepared(tmp_path / "first", random_log(0, 60, 0))
    second = appended(tmp_path / "second", random_log(1, 40, 50), first)
    third = appended(tmp_path / "third", random_log(2, 40, 90), second)
    assert first.extends == ()
    assert [each.fingerprint for each in third.extends] == [second.fingerprint, first.fingerprint]
    assert [each.num_items for each in third.extends] == [second.num_items, first.num_items]
    assert [each.num_users for each in third.extends] == [second.num_users, first.num_users]
    assert len({each.fingerprint for each in (first, second, third)}) == 3
    for known in (first, second, third):
        assert third.num_known(known.id_map_fingerprint) == known.num_items
    assert first.num_known(third.id_map_fingerprint) is None
    assert third.num_known(None) is None


def test_the_fingerprint_names_the_old_dataset_and_the_new_log(tmp_path: Path) -> None:
    news = [random_log(seed, 40, 50) for seed in (1, 2)]
    olds = [prepared(tmp_path / f"old{seed}", random_log(seed, 60, 0)) for seed in (0, 7)]
    of_each = [
        appended(tmp_path / f"{new}_{old}", news[new], olds[old]).fingerprint for new in (0, 1) for old in (0, 1)
    ]
    assert len(set(of_each)) == 4
    assert appended(tmp_path / "again", news[0], olds[0]).fingerprint == of_each[0]
    alone = prepared(tmp_path / "alone", news[0])
    assert alone.fingerprint not in of_each


def test_resharding_and_appending_may_be_swapped(tmp_path: Path) -> None:
    first, new = prepared(tmp_path / "first", random_log(0, 90, 0)), random_log(1, 60, 50)
    at_once = appended(tmp_path / "at_once", new, first, num_shards=2)
    reshard(appended(tmp_path / "second", new, first), tmp_path / "resharded", 2)
    resharded = Dataset(tmp_path / "resharded")
    assert (resharded.fingerprint, resharded.extends) == (at_once.fingerprint, at_once.extends)
    files = [{path.name: path.read_bytes() for path in each.folder.glob("*.parquet")} for each in (resharded, at_once)]
    assert files[0] == files[1]


def test_an_item_that_the_k_core_had_dropped_comes_back(tmp_path: Path) -> None:
    log = [(user, item, time) for user in range(4) for time, item in enumerate("abcd")] + [(0, "rare", 9)]
    frame = pl.DataFrame(log, schema=["user", "item", "timestamp"], orient="row")
    first = prepared(tmp_path / "first", frame)
    new = pl.DataFrame({"user": [1, 2], "item": ["rare", "rare"], "timestamp": [20, 21]})
    second = appended(tmp_path / "second", new, first)
    assert raw(first, "item") == ["a", "b", "c", "d"]
    assert raw(second, "item") == ["a", "b", "c", "d", "rare"]
    assert sequences(second)[0] == ["a", "b", "c", "d", "rare"]  # with the interaction that was left out before


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([7, 8], [8, 9], [7, 8, 9]),
        ([7, 8], ["8", "x"], ["7", "8", "x"]),
        (["7", "x"], [7, 9], ["7", "x", "9"]),
        ([1, 2**64 - 1], [2, 3], [1, 2**64 - 1, 2, 3]),
        ([-1, 2], [2**64 - 1, 3], ["-1", "2", str(2**64 - 1), "3"]),
    ],
)
def test_ids_of_several_types(old: list[Any], new: list[Any], expected: list[Any], tmp_path: Path) -> None:
    def log(items: list[Any], first_time: int) -> pl.DataFrame:
        pairs = [(user, item, first_time + time) for user in range(3) for time, item in enumerate([*items, *items])]
        return pl.DataFrame([(u, str(i), t) for u, i, t in pairs], schema=["user", "item", "timestamp"], orient="row")

    first = prepared(tmp_path / "first", log(old, 0))
    second = appended(tmp_path / "second", log(new, 10), first)
    assert raw(second, "item") == expected
    whole = prepared(tmp_path / "whole", pl.concat([log(old, 0), log(new, 10)]))
    assert_equal_but_for_numbers(second, whole)


def test_rows_that_lack_something_are_counted_in_both_logs(tmp_path: Path) -> None:
    lacking = [
        random_log(seed, 80, 30 * seed).with_columns(
            user=pl.when(pl.int_range(80) < 2 + seed).then(None).otherwise("user"),
            timestamp=pl.when(pl.int_range(80) > 70 + seed).then(None).otherwise("timestamp"),
        )
        for seed in range(2)
    ]
    second = appended(tmp_path / "second", lacking[1], prepared(tmp_path / "first", lacking[0]))
    assert (second.statistics["rows_without_id"], second.statistics["rows_without_time"]) == (2 + 3, 9 + 8)
    assert_equal_but_for_numbers(second, prepared(tmp_path / "whole", pl.concat(lacking)))


def test_text_ids_of_tables_stay_text(tmp_path: Path) -> None:
    def log(first_time: int) -> pl.DataFrame:
        rows = [(str(user), str(item), first_time + item) for user in range(4) for item in range(4)]
        return pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")

    prepare(DatasetOptions(source="polars.DataFrame", **OPTIONS), tmp_path / "first", table=log(0))
    first = Dataset(tmp_path / "first")
    keys = appended_options(first, {}, is_table=True) | {"source": "polars.DataFrame"}
    append(first, DatasetOptions(**keys), tmp_path / "second", table=log(10))
    assert raw(Dataset(tmp_path / "second"), "item") == ["0", "1", "2", "3"]


@pytest.mark.parametrize(("old_unit", "new_unit"), [("s", "ms"), ("us", "s"), ("ns", "us"), ("date", "s")])
def test_times_in_several_units_are_compared(old_unit: str, new_unit: str, tmp_path: Path) -> None:
    day = 86_400
    written = {
        "s": lambda time: time,
        "ms": lambda time: time * 10**3,
        "us": lambda time: time * 10**6,
        "ns": lambda time: time * 10**9,
    }
    seconds = [day * (20_000 + k) for k in range(12)]

    def log(times: list[int], unit: str) -> pl.DataFrame:
        rows = [(user, f"i{time // day % 4}", time) for user in range(3) for time in times]
        frame = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
        if unit == "date":
            return frame.with_columns(pl.from_epoch("timestamp").cast(pl.Date))
        return frame.with_columns(timestamp=pl.Series(map(written[unit], frame["timestamp"])))

    # The new log has the times between the old ones: only times that are compared rightly sort them.
    source = tmp_path / "first.parquet"
    log(seconds[::2], old_unit).write_parquet(source)
    prepare(options(source), tmp_path / "first")
    first = Dataset(tmp_path / "first")
    new = tmp_path / "new.parquet"
    log(seconds[1::2], new_unit).write_parquet(new)
    append(first, options_to_append(first, new), tmp_path / "second")
    assert sequences(Dataset(tmp_path / "second"))[0] == [f"i{time // day % 4}" for time in seconds]
    assert Dataset(tmp_path / "second").info["reading"]["last_time"] == "2024-10-15 00:00:00 UTC"


def test_the_order_of_rows_goes_on(tmp_path: Path) -> None:
    rows_of = [[(user, item) for user in range(3) for item in part] for part in ("abcd", "bcde")]
    frames = [pl.DataFrame(part, schema=["user", "item"], orient="row") for part in rows_of]
    first = prepared(tmp_path / "first", frames[0], columns={"timestamp": "none"})
    second = appended(tmp_path / "second", frames[1], first)
    assert sequences(second)[0] == list("abcdbcde")


def test_columns_are_those_of_the_old_log_unless_they_are_given(tmp_path: Path) -> None:
    named = {"user": "customer", "item": "sku", "timestamp": "event_time"}
    first = prepared(
        tmp_path / "first", random_log(0, 60, 0).rename(named), columns={"user": "customer", "item": "sku"}
    )
    same = random_log(1, 40, 50).rename(named | {"timestamp": "ts"})  # guessed, as it was in the old log
    other = random_log(1, 40, 50).rename({"user": "client", "item": "sku", "timestamp": "ts"})
    one = appended(tmp_path / "one", same, first)
    with pytest.raises(UserError, match="no column 'customer'"):
        appended(tmp_path / "two", other, first)
    two = appended(tmp_path / "two", other, first, columns={"user": "client"})
    assert_equal_but_for_numbers_and_columns(one, two)


def assert_equal_but_for_numbers_and_columns(one: Dataset, other: Dataset) -> None:
    assert [rows(one, split) for split in one.splits] == [rows(other, split) for split in other.splits]


def test_true_items_go_on(tmp_path: Path) -> None:
    parts = [random_log(seed, 60, 40 * seed) for seed in range(2)]
    parts = [part.with_columns(true_item=pl.col("item").reverse()) for part in parts]
    second = appended(tmp_path / "second", parts[1], prepared(tmp_path / "first", parts[0]))
    whole = prepared(tmp_path / "whole", pl.concat(parts))
    for dataset in (second, whole):
        assert dataset.has_true_targets
    named = [[([None, *raw(data, "item")])[true] for true in data.true_targets("test")] for data in (second, whole)]
    assert sorted(map(str, named[0])) == sorted(map(str, named[1]))


@pytest.mark.parametrize("late", ["old", "new"])
def test_a_true_item_that_only_the_other_log_has_is_known(tmp_path: Path, late: str) -> None:
    """Preferred by somebody of one log, and first (or only) taken by somebody of the other."""
    parts = [random_log(seed, 60, 40 * seed).with_columns(true_item=pl.lit("?")) for seed in range(2)]
    holder, namer = (0, 1) if late == "old" else (1, 0)
    here = [set(part["item"].to_list()) for part in parts]
    renamed = sorted(here[holder])[0]
    parts[holder] = parts[holder].with_columns(item=pl.col("item").cast(pl.String).replace(str(renamed), "rare"))
    parts[namer] = parts[namer].with_columns(item=pl.col("item").cast(pl.String), true_item=pl.lit("rare"))
    second = appended(tmp_path / "second", parts[1], prepared(tmp_path / "first", parts[0]))
    whole = prepared(tmp_path / "whole", pl.concat(parts))
    named = [[([None, *raw(data, "item")])[true] for true in data.true_targets("test")] for data in (second, whole)]
    assert sorted(map(str, named[0])) == sorted(map(str, named[1]))
    assert "rare" in named[0]


def test_targets_that_the_old_dataset_trained_on_are_counted(tmp_path: Path) -> None:
    first = prepared(tmp_path / "first", random_log(0, 90, 0))
    second = appended(tmp_path / "second", random_log(1, 60, 20), first)
    trained = {(user, item) for user, items, _ in rows(first, "train") for item in items[1:]}
    for split in ("valid", "test"):
        expected = sum((user, items[-1]) in trained for user, items, _ in rows(second, split))
        assert second.statistics[f"{split}_targets_trained_before"] == expected > 0


def test_the_log_is_kept_as_it_was_read(tmp_path: Path) -> None:
    frame = random_log(0, 60, 0)
    dataset = prepared(tmp_path / "first", frame)
    kept = pl.read_parquet(dataset.folder / LOG)
    assert sorted(kept.select("user", "item", "rating", "timestamp").rows()) == sorted(frame.rows())
    log = read_log(dataset)
    assert log.frame.height == 60
    assert log.times.unit == 1


@pytest.mark.parametrize(
    ("new", "changes", "message"),
    [
        (lambda log: log.drop("timestamp"), {"columns": {"timestamp": "none"}}, "cannot be compared with those of"),
        (lambda log: log.with_columns(timestamp=pl.col("timestamp") - 1_700_000_000), {}, "cannot be compared"),
        (lambda log: log, {"min_interactions": 5}, r"(users|items) of .*first would be left out, such as '[iu]\d+'"),
        (lambda log: log.clear(), {}, "no interactions"),
    ],
    ids=["no_times", "other_times", "options", "empty"],
)
def test_what_cannot_be_appended_is_refused_and_leaves_nothing(
    new: Any, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    first = prepared(tmp_path / "first", random_log(0, 60, 0))
    with pytest.raises(UserError, match=message):
        appended(tmp_path / "second", new(random_log(1, 40, 50)), first, **changes)
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_times_with_a_zone_are_not_joined_with_times_without(form: str, tmp_path: Path) -> None:
    log = random_log(0, 60, 0).with_columns(pl.from_epoch("timestamp"))
    zoned = log.with_columns(pl.col("timestamp").dt.replace_time_zone("Europe/Berlin"))
    if form == "csv":  # with the shortest of offsets
        log = log.with_columns(pl.col("timestamp").dt.to_string("%F %T"))
        zoned = log.with_columns(pl.col("timestamp") + "+02")
    for name, frame in (("plain", log), ("zoned", zoned)):
        path = tmp_path / f"{name}.{form}"
        frame.write_csv(path) if form == "csv" else frame.write_parquet(path)
        prepare(options(path), tmp_path / name)
    for old, new in (("plain", "zoned"), ("zoned", "plain")):
        dataset = Dataset(tmp_path / old)
        with pytest.raises(UserError, match=r"zone.* cannot be compared with those of .*zone"):
            append(dataset, options_to_append(dataset, tmp_path / f"{new}.{form}"), tmp_path / "both")
        append(dataset, options_to_append(dataset, tmp_path / f"{old}.{form}"), tmp_path / f"{old}-twice")


def test_what_was_expected_of_the_old_log_is_not_expected_of_both(tmp_path: Path) -> None:
    first = prepared(tmp_path / "first", random_log(0, 60, 0), expected={"raw_interactions": 60})
    assert appended(tmp_path / "second", random_log(1, 40, 50), first).statistics["raw_interactions"] == 100
    with pytest.raises(UserError, match="raw_interactions"):
        appended(tmp_path / "third", random_log(1, 40, 50), first, expected={"raw_interactions": 60})


@pytest.mark.parametrize("damage", ["missing", "foreign", "cut"])
def test_a_log_that_is_missing_or_damaged_is_named(damage: str, tmp_path: Path) -> None:
    first = prepared(tmp_path / "first", random_log(0, 60, 0))
    path = first.folder / LOG
    if damage == "missing":
        path.unlink()
    elif damage == "foreign":
        pl.read_parquet(path).head(10).write_parquet(path)
    else:
        path.write_bytes(path.read_bytes()[:100])
    message = "log.parquet is missing" if damage == "missing" else "log.parquet is damaged: it has another checksum"
    with pytest.raises(UserError, match=message):
        appended(tmp_path / "second", random_log(1, 40, 50), first)


def test_the_command_line_appends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = prepared(tmp_path / "first", random_log(0, 60, 0))
    new = write(random_log(1, 40, 50).rename({"user": "client"}), tmp_path / "new.csv")
    command = ["prepare", "--append", str(new), "--dataset", str(first.folder), "--to", str(tmp_path / "second")]
    assert main([*command, "--set", "dataset.columns.user=client"]) == 0
    expected = appended(tmp_path / "third", random_log(1, 40, 50), first)
    assert rows(Dataset(tmp_path / "second"), "test") == rows(expected, "test")
    said = capsys.readouterr().out
    assert f"appended to the log of {first.folder}" in said
    assert "new users: " in said
    assert main([*command, "--set", "dataset.columns.user=client"]) == 0
    assert "is prepared already" in capsys.readouterr().out
    write(random_log(2, 40, 50).rename({"user": "client"}), tmp_path / "new.csv")
    assert main([*command, "--set", "dataset.columns.user=client"]) == 2
    assert "was prepared from another log, or with other options: the log has other rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "given were none"),
        (["--append", "x.csv"], "given were --append"),
        (["--config", "a.yaml", "--append", "x.csv"], "given were --append, --config"),
        (["--append", "x", "--dataset", "d", "--to", "t", "--set", "seed=1"], "--set seed: .*only keys of dataset"),
        (["--append", "x", "--dataset", "nowhere", "--to", "t"], "nowhere is not a prepared dataset"),
    ],
)
def test_the_command_line_says_what_is_missing(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_dataset_is_not_appended_to_itself(tmp_path: Path) -> None:
    first = prepared(tmp_path / "first", random_log(0, 60, 0))
    before = content(first.folder)
    new = write(random_log(1, 40, 50), tmp_path / "new.csv")
    with pytest.raises(UserError, match="already contains a prepared dataset"):
        append(first, options_to_append(first, new), first.folder)
    assert content(first.folder) == before
    assert "extends" not in read_json(first.folder / "dataset.json")
