"""The table of logs in docs/formats.md: every row is written here, and read where the public log is."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from csrec_dist.data.ids import RawIds
from csrec_dist.data.log import Log, drop_duplicates
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.prepare import prepare
from csrec_dist.data.sources import FileSource
from csrec_dist.errors import UserError
from tests.conftest import DATA
from tests.helpers.log_forms import FORMS, SAMPLE, UNREADABLE, Form, Interaction, Row

PAGE = Path(__file__).resolve().parents[2] / "docs" / "formats.md"
LINE = re.compile(r"\| `(?P<source>[^`]+)` \| [^|]+ \| (`(?P<keys>\{[^`]+\})`)? ?\| (?P<read>[^|]*) ?\|")


class TableRow(NamedTuple):
    """A row of the table: the log, the keys of `dataset` beside `source`, and what was read of the public file."""

    source: str
    keys: dict[str, Any]
    read: str

    def options(self, folder: Path, **keys: Any) -> DatasetOptions:
        """The keys, with the files in a folder."""
        files = {name: str(folder / value) for name, value in self.keys.items() if name.endswith("_source")}
        return DatasetOptions(**{**self.keys, **files, "source": str(folder / self.source), **keys})


def table() -> list[TableRow]:
    """The rows, as the page has them."""
    text = PAGE.read_text(encoding="utf-8")
    lines = text[text.index("| source | form |") :].partition("\n\n")[0].splitlines()[2:]
    matches = [LINE.fullmatch(line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    return [
        TableRow(match["source"], yaml.safe_load(match["keys"] or "{}"), match["read"].strip())
        for match in matches
        if match
    ]


TABLE = table()
READABLE = [row for row in TABLE if row.source not in UNREADABLE]


def by_row(rows: Sequence[TableRow]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=[row.source for row in rows])


def rows_of(log: Log) -> dict[Any, list[Row]]:
    """What was read, by user and in its order."""
    users: dict[Any, list[Row]] = {}
    names = ["user", "item", "rating", "timestamp"]
    for user, item, rating, time in log.frame.select(names).rows():
        seconds = None if time is None else time / (log.times.unit or 1)
        row = Row(log.users[user], log.items[item], rating, seconds)
        users.setdefault(row.user, []).append(row)
    return users


def written(row: TableRow, form: Form, folder: Path, interactions: Sequence[Interaction]) -> dict[Any, list[Row]]:
    """The interactions in a form, read with the config of its row."""
    form.write(folder / row.source, interactions)
    return rows_of(FileSource(row.options(folder)).log)


def test_every_form_stands_in_the_table_once() -> None:
    sources = [row.source for row in TABLE]
    assert sorted(sources) == sorted([*FORMS, *UNREADABLE])


@by_row(READABLE)
def test_what_is_written_in_a_form_is_read(row: TableRow, tmp_path: Path) -> None:
    form = FORMS[row.source]
    expected = form.rows(SAMPLE)
    if row.source == "lastfm_hetrec/user_taggedartists.dat":  # of a user and an artist only the first tag counts
        expected = {user: _first_of_each_item(rows) for user, rows in expected.items()}
    assert any(expected.values())
    assert written(row, form, tmp_path, SAMPLE) == expected


@by_row([row for row in TABLE if row.source in UNREADABLE])
def test_a_form_that_is_not_read_is_refused_by_its_name(row: TableRow, tmp_path: Path) -> None:
    UNREADABLE[row.source](tmp_path / row.source, SAMPLE)
    with pytest.raises(UserError, match=row.read.removeprefix("refused: ")):
        FileSource(row.options(tmp_path))


@by_row([row for row in TABLE if row.read])
def test_the_public_log_is_read(row: TableRow, tmp_path: Path) -> None:
    place = next(
        (folder / row.source for folder in (DATA.parent / "cases", DATA) if (folder / row.source).exists()), None
    )
    if place is None:
        pytest.skip(f"{row.source} is neither in {DATA} nor in {DATA.parent / 'cases'} (set CSREC_TEST_DATA)")
    options = row.options(place.parent, source=str(place))
    if row.source in UNREADABLE:
        with pytest.raises(UserError, match=row.read.removeprefix("refused: ")):
            FileSource(options)
        return
    log = FileSource(options).log
    frame = drop_duplicates(log.frame, options.duplicates)
    assert row.read == f"{len(log.users):,} / {len(log.items):,} / {len(frame):,}"
    times = frame.filter(frame["user"] == frame["user"][0])["timestamp"]
    assert times.is_sorted()


def _first_of_each_item(rows: list[Row]) -> list[Row]:
    first: dict[Any, Row] = {}
    for row in rows:
        first.setdefault(row.item, row)
    return list(first.values())


INTERACTIONS = st.lists(
    st.builds(
        Interaction,
        user=st.integers(1, 9),
        item=st.integers(1, 99),
        time=st.integers(10_000, 20_000).map(lambda days: 86_400 * days // 7),
        rating=st.integers(1, 5),
        event=st.sampled_from(["view", "buy"]),
    ),
    min_size=12,
    max_size=40,
    unique_by=(lambda each: (each.user, each.item), lambda each: each.time),
)


@by_row([row for row in READABLE if row.source != "train.csv"])
@settings(max_examples=5, deadline=None)
@given(interactions=INTERACTIONS)
def test_any_interactions_come_back_in_every_form(
    row: TableRow, interactions: list[Interaction], tmp_path_factory: pytest.TempPathFactory
) -> None:
    form = FORMS[row.source]
    expected = form.rows(interactions)
    # Pairs and lines of one user are recognised by the first lines, which few users need not show.
    named = row._replace(keys={**row.keys, "format": form.reader}) if form.reader in ("sasrec", "s3rec") else row
    if not expected:  # all were left out
        with pytest.raises(UserError, match=r"keep|none of its"):
            written(named, form, tmp_path_factory.mktemp("log"), interactions)
        return
    assert written(named, form, tmp_path_factory.mktemp("log"), interactions) == expected


TEXT_IDS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)
NUMBERS = st.integers(-(2**63), 2**63 - 1)
WRITTEN = ("csv", "jsonl", "parquet")


@pytest.mark.parametrize("ending", WRITTEN)
@pytest.mark.parametrize("ids", [TEXT_IDS.map(lambda text: f"x{text}"), NUMBERS], ids=["text", "integers"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_ids_survive_reading_and_the_id_maps(
    data: st.DataObject, ids: st.SearchStrategy[Any], ending: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import polars as pl

    users = data.draw(st.lists(ids, min_size=2, max_size=5, unique=True), "users")
    items = data.draw(st.lists(ids, min_size=4, max_size=9, unique=True), "items")
    folder = tmp_path_factory.mktemp("log")
    frame = pl.DataFrame({"user": users}).join(pl.DataFrame({"item": items}), how="cross").with_row_index("timestamp")
    path = folder / f"log.{ending}"
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[ending](path)
    prepare(DatasetOptions(source=str(path), min_interactions=1), folder / "dataset")
    for name, raw in (("users", users), ("items", items)):
        stored = RawIds(folder / "dataset" / f"{name}.parquet")
        assert stored.of([stored.number(each) for each in raw]).to_pylist() == raw
        assert len(stored) == len(raw)
