"""Any ids that a log may have come through reading, preparing and the id maps as they were."""

import csv
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csrec_dist.data.dataset import Dataset
from csrec_dist.data.ids import RawIds
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare
from csrec_dist.data.sources import source_of
from csrec_dist.errors import UserError

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=6).filter(str.strip)
"""With separators, quotes, line feeds and blanks, but not of blanks alone."""
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12)


def rows_of(log: object) -> list[tuple[str, str]]:
    """Raw users and items in the order of time."""
    frame = log.frame.sort("timestamp")  # type: ignore[attr-defined]
    users, items = (ids.cast(pl.String) for ids in (log.users, log.items))  # type: ignore[attr-defined]
    return list(zip(users.gather(frame["user"]), items.gather(frame["item"]), strict=True))


@settings(max_examples=30)
@given(pairs=PAIRS, separator=st.sampled_from([",", ";"]))
def test_quoted_text_of_any_kind_is_read_as_it_is(
    pairs: list[tuple[str, str]], separator: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("ids") / "log.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([("user", "item", "time"), *((*pair, time) for time, pair in enumerate(pairs))])
    log = source_of(DatasetOptions(source=str(path))).log
    assert rows_of(log) == pairs


@settings(max_examples=30)
@given(pairs=PAIRS, separator=st.sampled_from([",", ";"]), form=st.sampled_from(["error", "skip"]))
def test_quotes_amid_a_field_need_no_others(
    pairs: list[tuple[str, str]], separator: str, form: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As in 27" monitor, of which Polars' parser makes nothing."""
    pairs = [tuple(f"x{name}".replace(separator, "").replace("\n", "") + '"' for name in pair) for pair in pairs]
    path = tmp_path_factory.mktemp("ids") / "log.csv"
    lines = [("user", "item", "time"), ("", "", ""), *((*pair, str(time)) for time, pair in enumerate(pairs))]
    path.write_text("".join(f"{separator.join(line)}\n" for line in lines), encoding="utf-8", newline="")
    log = source_of(DatasetOptions(source=str(path), on_bad_rows=form)).log
    assert rows_of(log) == pairs


@pytest.mark.parametrize("blank", ["", " ", "\t"])
@pytest.mark.parametrize("form", ["quoted", "plain", "json", "table", "categories"])
def test_blank_text_is_no_id(tmp_path: Path, blank: str, form: str) -> None:
    rows = [("a", "i1", 1), (blank, "i1", 2), ("a", blank, 3), ("b", "i2", 4)]
    frame, path = pl.DataFrame(rows, ["user", "item", "time"], orient="row"), tmp_path / "log.csv"
    if form == "json":
        frame.write_ndjson(path := tmp_path / "log.jsonl")
    elif form in ("quoted", "plain"):
        frame.write_csv(path, quote_style="always" if form == "quoted" else "necessary")
    else:
        path = None
        frame = frame.with_columns(pl.col("user", "item").cast(pl.Categorical)) if form == "categories" else frame
    options = DatasetOptions(source=str(path or "a table"), columns={"timestamp": "time"})
    log = source_of(options, None if path else frame).log
    assert (rows_of(log), log.num_without_id) == ([("a", "i1"), ("b", "i2")], 2)


@settings(max_examples=30)
@given(pairs=PAIRS, skips=st.booleans())
def test_text_without_quotes_is_read_as_it_is_or_refused(
    pairs: list[tuple[str, str]], skips: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Ids with a tab or an end of a line make other rows: these may be read or refused, but with no other error."""
    path = tmp_path_factory.mktemp("ids") / "log.tsv"
    lines = ["user\titem\ttime", *(f"{user}\t{item}\t{time}" for time, (user, item) in enumerate(pairs))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    try:
        log = source_of(DatasetOptions(source=str(path), on_bad_rows="skip" if skips else "error")).log
    except UserError:
        return
    plain = [
        pair for pair in pairs if not any(set(name) & set("\t\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029") for name in pair)
    ]
    if len(plain) == len(pairs):
        assert rows_of(log) == pairs


@settings(max_examples=15)
@given(data=st.data())
def test_id_maps_give_each_raw_id_back(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    ids = st.lists(data.draw(st.sampled_from([TEXTS, NUMBERS])), min_size=2, max_size=8, unique=True)
    users, items = data.draw(ids), data.draw(ids)
    rows = [(user, items[k % len(items)], k) for user in users for k in range(4)]
    frame = pl.DataFrame(rows, ["user", "item", "time"], orient="row")
    folder = tmp_path_factory.mktemp("maps") / "dataset"
    prepare(DatasetOptions(source="a table", min_interactions=1, columns={"timestamp": "time"}), folder, table=frame)
    dataset = Dataset(folder)
    for name, raw in (("users", users), ("items", {row[1] for row in rows})):
        numbers = RawIds(dataset.file(f"{name}.parquet"))
        assert sorted(map(str, numbers.values.to_pylist())) == sorted(map(str, raw))
        for each in raw:
            number = numbers.number(each)
            assert number is not None
            assert numbers.of([number]).to_pylist() == [each]
            assert numbers.number(str(each)) == number
    told = {(user, item) for user, items_of in dataset.sequences() for item in items_of.tolist()}
    user_ids, item_ids = (RawIds(dataset.file(f"{name}.parquet")) for name in ("users", "items"))
    assert told == {(user_ids.number(user), item_ids.number(item)) for user, item, _ in rows}
