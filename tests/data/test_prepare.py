"""Whole datasets, prepared from small random logs, against a plain-Python way of doing the same."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import identify, prepare
from csrec_dist.errors import UserError
from csrec_dist.writers import writer_name

IN_ORDER = {"timestamp": "none"}
NAMES = {
    "strings": lambda n: f'name-{n:02d}, "the {n}" ü',
    "zeros": lambda n: f"{n:03d}",
    "int64": lambda n: -(2**62) + n,
    "uint64": lambda n: 2**64 - 1 - n,
    "beyond": lambda n: str(2**70 + n),
}
DTYPES = {"strings": pl.String, "zeros": pl.String, "int64": pl.Int64, "uint64": pl.UInt64, "beyond": pl.String}


def rows_of(folder: Path, info: dict, split: str) -> list[dict]:
    """All rows of a split, shard by shard."""
    num = info["num_shards"]
    files = [folder / f"{split}-{shard:05d}-of-{num:05d}.parquet" for shard in range(num)]
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def raw_ids(folder: Path, kind: str) -> dict:
    table = pl.read_parquet(folder / f"{kind}s.parquet")
    assert table[kind].to_list() == list(range(1, len(table) + 1))
    return dict(zip(table[kind], table["raw"], strict=True))


def oracle(log: list[tuple], options: DatasetOptions) -> dict[str, list]:
    """Rows (user, items, rating of the last) of each split, by first appearance of the user, then in time."""
    first_seen = list(dict.fromkeys(user for user, *_ in log))
    ordered = sorted(log, key=lambda row: (first_seen.index(row[0]), row[3] or 0))
    if options.duplicates == "exact":
        ordered = list(dict.fromkeys(ordered))
    elif options.duplicates != "keep":
        rows = ordered if options.duplicates == "first" else ordered[::-1]
        unique = list({(row[0], row[1]): row for row in rows[::-1]}.values())
        ordered = [row for row in ordered if any(row is one for one in unique)]
    while True:
        users, items = Counter(r[0] for r in ordered), Counter(r[1] for r in ordered)
        left = [r for r in ordered if min(users[r[0]], items[r[1]]) >= options.min_interactions]
        if len(left) == len(ordered) or options.k_core == "once":
            ordered = left
            break
        ordered = left
    splits = {"train": [], "valid": [], "test": []}
    for user in first_seen:
        own = [r for r in ordered if r[0] == user]
        size, start = options.window, len(own) % options.window
        windows = [own[i : i + size] for i in range(start, len(own), size)]
        head = own[:start]
        if options.windows == "last":
            windows = [own[-size:]] if own else []
        elif len(own) < size:
            windows = [own] if own else []
        elif options.windows == "paper" and head:
            windows.insert(0, own[:size])
        elif options.windows == "disjoint" and head and len(head) >= options.min_interactions:
            windows.insert(0, head)
        for window in windows:
            if len(window) >= 3:
                splits["valid"].append(window[:-1])
                splits["test"].append(window)
                window = window[:-2]
            if len(window) >= 2:
                splits["train"].append(window)
    return {name: [(r[0][0], [x[1] for x in r], r[-1][2]) for r in rows] for name, rows in splits.items()}


logs = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.one_of(st.none(), st.integers(1, 5)), st.integers(0, 6)),
    min_size=12,
    max_size=60,
)
choices = st.fixed_dictionaries(
    {
        "window": st.integers(3, 6),
        "windows": st.sampled_from(["disjoint", "paper", "last"]),
        "min_interactions": st.integers(1, 4),
        "k_core": st.sampled_from(["iterated", "once"]),
        "duplicates": st.sampled_from(["keep", "exact", "first", "last"]),
        "num_shards": st.integers(1, 4),
        "seed": st.integers(0, 3),
    }
)


def write_log(path: Path, log: list[tuple], users: str, items: str, timed: bool) -> list[tuple]:
    """Write the log with ids of these kinds; the same rows with their raw ids."""
    named = [(NAMES[users](u), NAMES[items](i), r, t if timed else None) for u, i, r, t in log]
    schema = {"user_id": DTYPES[users], "item_id": DTYPES[items], "rating": pl.Float32, "timestamp": pl.Int64}
    frame = pl.DataFrame(named, schema=schema, orient="row")
    frame = frame if timed else frame.drop("timestamp")
    frame.write_parquet(path) if path.suffix == ".parquet" else frame.write_csv(path)
    return named


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logs, choices, st.sampled_from(sorted(NAMES)), st.sampled_from(sorted(NAMES)), st.booleans(), st.booleans())
def test_prepare_does_what_plain_python_does(tmp_path_factory, log, choice, users, items, timed, as_text):
    folder = tmp_path_factory.mktemp("prepare")
    path = folder / ("log.csv" if as_text else "log.parquet")
    assume(timed or choice["duplicates"] != "exact")
    named = write_log(path, log, users, items, timed)
    options = DatasetOptions(source=str(path), columns={} if timed else IN_ORDER, **choice)
    expected = oracle(named, options)
    if not all(expected.values()):
        with pytest.raises(UserError):
            prepare(options, folder / "out")
        return
    assume(len({item for rows in expected.values() for _, items, _ in rows for item in items}) > 1)
    info = prepare(options, folder / "out")
    user_of, item_of = raw_ids(folder / "out", "user"), raw_ids(folder / "out", "item")
    for split, wanted in expected.items():
        rows = rows_of(folder / "out", info, split)
        by_number = sorted(rows, key=lambda row: row["row"])
        assert [row["row"] for row in by_number] == list(range(len(wanted)))
        found = [(user_of[r["user"]], [item_of[i] for i in r["items"]], r["rating"]) for r in by_number]
        assert found == wanted
        check_shards(info, split, rows)
    check_counts(folder / "out", info, expected, named)


def check_shards(info: dict, split: str, rows: list[dict]) -> None:
    part = info["splits"][split]
    sizes = [len(r["items"]) - 1 if split == "train" else 1 for r in rows]
    assert [r["example_offset"] for r in rows] == [sum(sizes[:k]) for k in range(len(rows))]
    assert (part["num_rows"], part["num_examples"]) == (len(rows), sum(sizes))
    assert max(part["shard_rows"]) - min(part["shard_rows"]) <= 1
    starts = [sum(part["shard_rows"][:k]) for k in range(info["num_shards"] + 1)]
    assert part["shard_examples"] == [sum(sizes[a:b]) for a, b in itertools.pairwise(starts)]


def check_counts(folder: Path, info: dict, expected: dict, log: list[tuple]) -> None:
    statistics = info["statistics"]
    assert statistics["raw_interactions"] == len(log)
    targets = {(user, item) for user, items, _ in expected["train"] for item in items[1:]}
    trained = {item for _, items, _ in expected["train"] for item in items}
    test = [(user, items[-1]) for user, items, _ in expected["test"]]
    assert statistics["leaked_test_targets"] == sum(pair in targets for pair in test)
    assert statistics["test_targets_never_in_training"] == sum(item not in trained for _, item in test)
    table = pl.read_parquet(folder / "items.parquet")
    assert set(table.filter(pl.col("count") > 0)["raw"]) == trained
    if info["options"]["windows"] != "paper":
        count = Counter(item for _, items, _ in expected["train"] for item in items)
        assert dict(zip(table["raw"], table["count"], strict=True)) == {raw: count[raw] for raw in table["raw"]}


def small_log(folder: Path, num_users: int = 6, length: int = 8, name: str = "log.csv") -> Path:
    lines = [f"{u},{(u + k) % 9},{1 + k % 5},{100 * k}" for u in range(num_users) for k in range(length)]
    path = folder / name
    path.write_text("\n".join(["user,item,rating,timestamp", *lines]) + "\n")
    return path


def test_overlapping_windows_count_an_interaction_once(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item\n" + "".join(f"u,{k}\n" for k in range(7)))
    options = DatasetOptions(source=str(path), columns=IN_ORDER, min_interactions=1, window=6, windows="paper")
    info = prepare(options, tmp_path / "out")
    assert info["statistics"]["interactions_in_windows"] == 12
    rows = rows_of(tmp_path / "out", info, "train")
    assert sorted(len(row["items"]) for row in rows) == [4, 4]
    assert pl.read_parquet(tmp_path / "out" / "items.parquet")["count"].to_list() == [1, 1, 1, 1, 1, 0, 0]


def test_ties_in_time_stay_in_file_order(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\nu,c,5\nu,a,5\nu,z,1\nu,b,5\n")
    info = prepare(DatasetOptions(source=str(path), min_interactions=1), tmp_path / "out")
    (row,) = rows_of(tmp_path / "out", info, "test")
    raw = raw_ids(tmp_path / "out", "item")
    assert [raw[item] for item in row["items"]] == ["z", "c", "a", "b"]
    assert list(raw.values()) == ["c", "a", "z", "b"]


def test_temporal_split_of_a_log(tmp_path):
    lines = ["user,item,time"]
    lines += [f"a,{k % 4},{k}" for k in range(10)] + [f"b,{k % 4},{k}" for k in range(5, 15)] + ["c,9,14"]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(lines))
    options = DatasetOptions(
        source=str(path), min_interactions=1, split="temporal", temporal_shares=(0.5, 0.25, 0.25), window=4
    )
    info = prepare(options, tmp_path / "out")
    raw = raw_ids(tmp_path / "out", "item")
    users = raw_ids(tmp_path / "out", "user")
    # The 21 times in order are 0 1 2 3 4 5 5 6 6 7 7 8 8 9 9 10 …: the cuts are at places 10 and 15, times 7 and 10.
    found = {
        split: sorted((users[r["user"]], [raw[i] for i in r["items"]]) for r in rows_of(tmp_path / "out", info, split))
        for split in ("train", "valid", "test")
    }
    assert found["train"] == [("a", [0, 1, 2]), ("a", [3, 0, 1, 2]), ("b", [1, 2])]
    assert found["valid"] == [("a", [0, 1, 2, 3]), ("b", [1, 2, 3])]
    assert found["test"] == [("b", [3, 0, 1, 2])]
    # a and b lie on from 9 and 10: five of b's last interactions follow its test target, and c has only one.
    statistics = info["statistics"]
    assert (statistics["valid_users_without_history"], statistics["test_users_without_history"]) == (0, 1)
    in_rows = {("a", k) for k in range(8)} | {("b", k) for k in range(5, 11)}
    assert statistics["interactions_in_no_row"] == 21 - len(in_rows)


def sessions_log(folder: Path, *more: str) -> Path:
    """Ten sessions of four items, one after the other, and further lines."""
    lines = [f"{session},{item},{100 * session + item}" for session in range(1, 11) for item in range(1, 5)]
    path = folder / "sessions.csv"
    path.write_text("\n".join(["session_id,item_id,timestamp", *lines, *more]) + "\n")
    return path


def temporal_rows(path: Path, folder: Path, said: list[str]) -> tuple[dict, dict]:
    """Each split's items by raw session, and dataset.json."""
    info = prepare(DatasetOptions(source=str(path), min_interactions=1, split="temporal"), folder, said.append)
    users, items = raw_ids(folder, "user"), raw_ids(folder, "item")
    rows = {
        split: {users[row["user"]]: [items[item] for item in row["items"]] for row in rows_of(folder, info, split)}
        for split in ("train", "valid", "test")
    }
    return rows, info


def test_sessions_that_begin_after_a_cut_are_evaluated_within_themselves(tmp_path):
    said: list[str] = []
    rows, info = temporal_rows(sessions_log(tmp_path), tmp_path / "out", said)
    assert rows["train"] == {session: [1, 2, 3, 4] for session in range(1, 9)}
    assert rows["valid"] == {9: [1, 2, 3, 4]}
    assert rows["test"] == {10: [1, 2, 3, 4]}
    assert info["statistics"]["interactions_in_no_row"] == 0
    assert not any("left out" in line for line in said)


def test_a_session_over_both_cuts_does_not_hide_the_others(tmp_path):
    said: list[str] = []
    path = sessions_log(tmp_path, "99,1,101", "99,2,850", "99,3,950", "99,4,2000", "50,1,1900")
    rows, info = temporal_rows(path, tmp_path / "out", said)
    # The 45 times are cut at places 36 and 40, which are 903 and 1002.
    assert rows["valid"] == {9: [1, 2, 3], 99: [1, 2, 3]}
    assert rows["test"] == {10: [1, 2], 99: [1, 2, 3, 4]}
    assert info["statistics"]["test_users_without_history"] == 1
    assert "left out: 1 users have a single interaction after the last cut and no history to predict it" in said
    in_rows = 8 * 4 + 3 + 2 + 4
    assert info["statistics"]["interactions_in_no_row"] == 45 - in_rows
    assert f"left out: {45 - in_rows} interactions are in no row of train, valid or test" in said


def test_a_temporal_split_without_rows_says_why_in_numbers(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "user,item,time\n" + "".join(f"{k},{item},{k}\n" for k in range(10) for item in (1, 2)) + "x,1,99\n"
    )
    options = DatasetOptions(source=str(path), min_interactions=1, split="temporal", temporal_shares=(0.9, 0.05, 0.05))
    with pytest.raises(
        UserError, match=r"'valid' has no row: the cuts are at 9 and 9; 9 users .*0 users .* between"
    ) as said:
        prepare(options, tmp_path / "out")
    assert "2 users have interactions after the second (1 of them a single one without history)" in str(said.value)


def test_only_rows_written_twice_are_exact_duplicates(tmp_path):
    path = tmp_path / "log.csv"
    rows = [
        "u,a,1,5",
        "u,a,1,5",
        "u,b,2,5",
        "u,a,3,5",
        "u,c,4,5",
        "u,c,4,1",
        "v,a,1,5",
        "v,a,1,5",
        "v,a,1,5",
        "v,b,2,5",
    ]
    path.write_text("\n".join(["user,item,time,rating", *rows]) + "\n")
    items: dict[str, list] = {}
    for rule in ("keep", "exact"):
        said: list[str] = []
        options = DatasetOptions(source=str(path), min_interactions=1, duplicates=rule)
        info = prepare(options, tmp_path / rule, said.append)
        raw = raw_ids(tmp_path / rule, "item")
        test = sorted(rows_of(tmp_path / rule, info, "test"), key=lambda row: row["row"])
        items[rule] = ["".join(raw[item] for item in row["items"]) for row in test]
        assert info["statistics"]["exact_duplicates"] == 3
        assert any("3 rows" in line and "exact" in line for line in said)
    assert items == {"keep": ["aabacc", "aaab"], "exact": ["abacc"]}


def test_prepare_says_what_it_read_and_keeps_it(tmp_path):
    path = tmp_path / "log.csv"
    lines = [f"u{u},i{(u + k) % 5},{1_400_000_000 + 3600 * k},1,2" for u in range(5) for k in range(5)]
    path.write_text(
        "\n".join(["User ID,item,event_time,date,user_session", *lines, "u1,,1400000000,,", "u1,i1,,,"]) + "\n"
    )
    said: list[str] = []
    info = prepare(DatasetOptions(source=str(path)), tmp_path / "out", said.append)
    assert said[:7] == [
        f"read {path} as delimited: user: User ID, item: item, rating: none, timestamp: event_time, true_item: none",
        "columns not used, although they have usual names: date, user_session",
        "timestamps: numbers, seconds since 1970 in UTC, from 2014-05-13 16:53:20 UTC to 2014-05-13 20:53:20 UTC",
        "read 25 interactions of 5 users and 5 items",
        "dropped 1 row without a user or an item",
        "dropped 1 row without a timestamp",
        "kept 25 interactions of 5 users and 5 items",
    ]
    columns = {"user": "User ID", "item": "item", "rating": None, "timestamp": "event_time", "true_item": None}
    assert info["reading"] == {
        "columns": columns,
        "columns_passed_over": ["date", "user_session"],
        "timestamps": "numbers, seconds since 1970 in UTC",
        "times_per_second": 1,
        "times_have_zone": None,
        "first_time": "2014-05-13 16:53:20 UTC",
        "last_time": "2014-05-13 20:53:20 UTC",
    }


def test_prepare_says_that_the_order_of_rows_is_taken(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("user,item\n" + "".join(f"u,{k}\n" for k in range(5)))
    said: list[str] = []
    info = prepare(
        DatasetOptions(source=str(path), columns=IN_ORDER, min_interactions=1), tmp_path / "out", said.append
    )
    assert "no timestamps: the order of the rows counts as the order in time" in said
    assert info["reading"]["first_time"] is None


def test_prepare_says_how_many_parts_a_log_has(tmp_path):
    (tmp_path / "log").mkdir()
    for name, users in (("a", range(3)), ("b", range(3, 6)), ("c", range(6, 9))):
        rows = [(user, item, item) for user in users for item in range(5)]
        frame = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
        frame.write_parquet(tmp_path / "log" / f"{name}.parquet")
    said: list[str] = []
    prepare(DatasetOptions(source=str(tmp_path / "log")), tmp_path / "out", said.append)
    assert said[0].startswith(f"read {tmp_path / 'log' / 'a.parquet'} and 2 more as parquet: ")


def test_prepare_says_what_is_left_out_and_what_is_replaced(tmp_path):
    """A user has two items only; all training items become noise; a user's only item lies between the cuts."""
    rows = [(user, item, 10 * user + item) for user in range(9) for item in range(4)] + [(9, 0, 90), (9, 1, 91)]
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\n" + "".join(f"{user},{item},{time}\n" for user, item, time in rows))
    said: list[str] = []
    options = DatasetOptions(source=str(path), min_interactions=1, noise={"rate": 1.0})
    prepare(options, tmp_path / "out", said.append)
    assert "left out: 1 windows with fewer than 3 items are not evaluated" in said
    assert "replaced 20 training interactions by uniform noise" in said
    assert said[-1] == f"wrote {tmp_path / 'out'}: 10 training examples in 10 shards, for at most so many ranks"
    said.clear()
    path.write_text(path.read_text() + "x,1,75\n")
    options = DatasetOptions(source=str(path), min_interactions=1, split="temporal", temporal_shares=(0.7, 0.15, 0.15))
    prepare(options, tmp_path / "temporal", said.append)
    assert "left out: 1 users have a single interaction between the cuts and no history to predict it" in said


def test_hugging_face_datasets_reads_the_files(tmp_path):
    prepare(DatasetOptions(source=str(small_log(tmp_path)), num_shards=3), tmp_path / "out")
    loaded = datasets.load_dataset("parquet", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 6, "validation": 6, "test": 6}
    assert loaded["test"].column_names == ["row", "user", "items", "example_offset", "rating", "leaked"]


def test_shards_never_outnumber_rows_and_row_groups_are_small(tmp_path):
    info = prepare(DatasetOptions(source=str(small_log(tmp_path)), num_shards=50), tmp_path / "few")
    assert info["num_shards"] == 6
    log = small_log(tmp_path, num_users=200, name="many.csv")
    info = prepare(DatasetOptions(source=str(log), num_shards=2), tmp_path / "many")
    metadata = pq.ParquetFile(tmp_path / "many" / "train-00001-of-00002.parquet").metadata
    assert [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)] == [64, 36]


def test_the_fingerprint_follows_content_and_options_not_names(tmp_path):
    log = small_log(tmp_path)
    moved = tmp_path / "elsewhere.csv"
    moved.write_bytes(log.read_bytes())
    prints = [
        prepare(DatasetOptions(source=str(source), window=window), tmp_path / f"out{number}")["fingerprint"]
        for number, (source, window) in enumerate([(log, 20), (moved, 20), (log, 5)])
    ]
    assert prints[0] == prints[1] != prints[2]
    info = json.loads((tmp_path / "out0" / "dataset.json").read_text())
    identity = identify(DatasetOptions(source=str(log)))
    assert identity == {**info["source"], "fingerprint": info["fingerprint"]}
    assert (identity["name"], identity["format"], identity["bytes"]) == ("log.csv", "delimited", log.stat().st_size)


def test_same_log_same_bytes(tmp_path):
    options = DatasetOptions(source=str(small_log(tmp_path)), num_shards=2)
    for name in ("one", "two"):
        prepare(options, tmp_path / name)
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert len(files) == 11
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


def test_a_prepared_dataset_is_not_overwritten(tmp_path):
    options = DatasetOptions(source=str(small_log(tmp_path)))
    prepare(options, tmp_path / "out")
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match="already contains a prepared dataset"):
        prepare(options, tmp_path / "out")
    with pytest.raises(UserError, match="not an empty folder"):
        prepare(options, tmp_path)
    assert before == {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*arguments, **named):
        raise OSError("no space left on device")

    log = small_log(tmp_path)
    monkeypatch.setattr("csrec_dist.data.prepare.write_record", full_disk)
    with pytest.raises(OSError, match="no space"):
        prepare(DatasetOptions(source=str(log)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [log]


def test_leftovers_of_dead_processes_are_removed_and_no_others(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    host, pids = writer_name().rpartition("-")[0], (process.pid, os.getppid())
    leftovers = [tmp_path / f".{name}.{host}-{pid}-{'0' * 16}.tmp" for name in ("out", "out2") for pid in pids]
    for folder in leftovers:
        folder.mkdir()
        (folder / "train.parquet").write_text("half")
    prepare(DatasetOptions(source=str(small_log(tmp_path))), tmp_path / "out")
    assert [folder.exists() for folder in leftovers] == [False, True, True, True]


def test_rows_without_ids_are_dropped_and_said(tmp_path):
    log = small_log(tmp_path)
    log.write_text(log.read_text() + ",3,1,5\n0,,1,5\n0,3,1,\n")
    said: list[str] = []
    info = prepare(DatasetOptions(source=str(log)), tmp_path / "out", said.append)
    assert (info["statistics"]["rows_without_id"], info["statistics"]["rows_without_time"]) == (2, 1)
    assert info["statistics"]["raw_interactions"] == 48
    assert {"dropped 2 rows without a user or an item", "dropped 1 row without a timestamp"} <= set(said)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "is empty"),
        ("user,item,time\n", {}, "has no interactions"),
        ("user,item,time\n1,2,3\n", {}, "none of the 1 interactions is left when each user and item needs 5"),
        ("user,item,time\n1,2,3\n", {"min_interactions": 1}, "no row: the longest of 1 windows has 1 items"),
        ("user,item,time\n" + "1,2,3\n" * 6, {"min_interactions": 1}, "interactions with one item alone"),
        ("user,item\n1,2\n", {"columns": {"user": "usr"}}, r"no column 'usr'.*did you mean 'user'.*user, item"),
        ("a,b\n1,x\n", {}, "no column that looks like the user; its columns are a, b"),
        ("user,item,time\n,,1\n,,2\n", {}, "none of its 2 rows has a user and an item"),
        ("user,item,time\n1,2,soon\n", {}, "timestamp 'soon' is neither a number nor a date of a known form"),
        ("user,item,time\n1,2,0\n1,3,1\n1,4,yesterday\n", {}, "timestamp 'yesterday' is neither"),
        ("user,item,time\n1,2,2020-01-01\n1,3,1.5\n1,4,soon\n", {}, "timestamp 'soon' is neither"),
        ("user,item,time\n1,2,7\n1,3,2020-01-01\n", {}, "mix forms, such as '7' and '2020-01-01'"),
        ("user,item,time\n1,2,2020-13-45\n", {}, "timestamp '2020-13-45' is neither"),
        ("user,item,rating,time\n1,2,good,1\n", {}, "rating 'good' is not a number"),
        ("user,item,time\n1,2,3,4\n", {}, "The reader 'delimited' could not read"),
        ("user,item\n1,1\n", {"columns": IN_ORDER, "min_interactions": 1, "split": "temporal"}, "has no timestamps"),
        ("user,item\n1,1\n", {"columns": IN_ORDER, "duplicates": "exact"}, "has no timestamps"),
        ("just words\n", {}, "no reader knows this file"),
    ],
)
def test_wrong_logs_are_one_sentence(tmp_path, text, options, message):
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        prepare(DatasetOptions(source=str(path), **options), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either source"),
        ({"source": "a", "path": "b"}, "either source"),
        ({"source": "a", "window": 2}, "greater than or equal to 3"),
        ({"source": "a", "format": "parket"}, "did you mean 'parquet'"),
        ({"source": "a", "temporal_shares": (0.5, 0.5, 0.5)}, "add up to 1"),
        ({"source": "a", "temporal_shares": (float("nan"),) * 3}, "finite number"),
        ({"source": "a", "window": 20.0}, "window"),
        ({"source": "a", "min_interactions": True}, "min_interactions"),
        ({"source": "a", "num_shards": 4.0}, "num_shards"),
        ({"source": "a", "seed": False}, "seed"),
        ({"source": "a", "windwo": 3}, "windwo"),
        ({"source": ""}, "is empty"),
        ({"path": " "}, "is empty"),
        ({"source": "a", "columns": {"user": "x", "item": "x"}}, "user and item are both 'x'"),
        ({"source": "a", "columns": {"item": "none"}}, "item cannot be none"),
        ({"source": "a", "columns": {"item": 0}}, "needs a column name, or a position from 1"),
        ({"source": "a", "columns": {"item": True}}, "needs a column name, or a position from 1"),
        ({"source": "a", "columns": {"item": ""}}, "needs a column name, or a position from 1"),
        ({"source": "a", "columns": {"user": 1}}, "set header: false"),
        ({"source": "a", "header": "no"}, "header"),
        ({"source": "a", "header": False}, "needs columns by position"),
        ({"source": "a", "header": False, "columns": {"user": 1, "item": 2}}, "timestamp: none"),
        (
            {"source": "a", "header": False, "columns": {"user": 1, "item": "x", "timestamp": 2}},
            "give positions instead",
        ),
        ({"source": "a", "encoding": "latin-11"}, "unknown text encoding 'latin-11'"),
        ({"source": "a", "encoding": "base64"}, "unknown text encoding 'base64'"),
        ({"source": "a", "encoding": "latin-1", "format": "parquet"}, "not to format parquet"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        DatasetOptions(**options)


def test_another_log_than_the_expected_one_is_refused_and_leaves_nothing(tmp_path):
    log, folder = small_log(tmp_path), tmp_path / "dataset"
    right = {"windows": 6, "items": prepare(DatasetOptions(source=str(log)), tmp_path / "plain")["statistics"]["items"]}
    options = {"source": str(log), "expected": right}
    with pytest.raises(UserError, match=r"not the log that dataset.expected describes: it has 6 windows instead of 7"):
        prepare(DatasetOptions(**{**options, "expected": {**right, "windows": 7}}), folder)
    with pytest.raises(UserError, match="no count people"):
        prepare(DatasetOptions(**{**options, "expected": {"people": 6}}), folder)
    assert not folder.exists()
    info = prepare(DatasetOptions(**options), folder)
    assert info["fingerprint"] == identify(DatasetOptions(source=str(log)))["fingerprint"]
