"""Times of every form, against Python's own reading of the same moment, and what is no time."""

import datetime
from datetime import UTC, timedelta, timezone
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csrec_dist.data.times import settle_times
from csrec_dist.errors import UserError

PATH = Path("log.csv")
MOMENT = datetime.datetime(2018, 3, 5, 10, 32, 12, tzinfo=UTC)
DAY = MOMENT.replace(hour=0, minute=0, second=0)
WEST = timezone(timedelta(hours=-8))
FORMS = {
    "Mon Mar 05 02:32:12 -0800 2018": (MOMENT, "zone as written"),  # Goodreads, Foursquare
    "Mon Mar 05 10:32:12 +0000 2018": (MOMENT, "zone as written"),
    "Mon Mar 05 10:32:12 2018": (MOMENT, "no zone, read as UTC"),
    "Mon Mar  5 10:32:12 UTC 2018": (MOMENT, "zone as written"),
    "Mon Mar 05 2018": (DAY, "no zone, read as UTC"),
    "Mon, 05 Mar 2018 10:32:12 GMT": (MOMENT, "zone as written"),
    "Mon, 05 Mar 2018 02:32:12 -0800": (MOMENT, "zone as written"),
    "Mar 5, 2018": (DAY, "no zone, read as UTC"),
    "5 Mar 2018": (DAY, "no zone, read as UTC"),
    "03 5, 2018": (DAY, "no zone, read as UTC"),
    "3/5/2018 10:32:12 AM": (MOMENT, "no zone, read as UTC"),
    "2018-03-05": (DAY, "no zone, read as UTC"),
    "2018/03/05": (DAY, "no zone, read as UTC"),
    "2018-03-05 10:32:12": (MOMENT, "no zone, read as UTC"),
    "2018-03-05 10:32:12 UTC": (MOMENT, "zone as written"),
    "2018-03-05T10:32:12Z": (MOMENT, "zone as written"),
    "2018-03-05T02:32:12-08:00": (MOMENT, "zone as written"),
}


def settled(*values, dtype=None):
    return settle_times(pl.Series("timestamp", values, dtype=dtype), PATH)


@pytest.mark.parametrize("text", FORMS)
def test_dates_are_moments(text):
    moment, zone = FORMS[text]
    times = settled(text, None, "")
    assert times.values.to_list() == [int(moment.timestamp()) * 10**6, None, None]
    assert times.shown(times.values[0]) == moment.strftime("%Y-%m-%d %H:%M:%S UTC")
    assert zone in times.how
    assert repr(text) in times.how


@pytest.mark.parametrize(
    ("factor", "unit"), [(1, "seconds"), (10**3, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds")]
)
@pytest.mark.parametrize("dtype", [pl.Int64, pl.Float64, pl.String])
def test_numbers_keep_their_value_and_say_their_unit(factor, unit, dtype):
    numbers = [int(MOMENT.timestamp()) * factor, None, int(DAY.timestamp()) * factor]
    times = settle_times(pl.Series("timestamp", numbers).cast(dtype), PATH)
    assert times.values.to_list() == numbers
    assert times.how == f"numbers, {unit} since 1970 in UTC"
    assert times.shown(times.values[0]) == "2018-03-05 10:32:12 UTC"


def test_small_numbers_are_an_order_and_no_dates():
    times = settled(3, 1, -2, 0)
    assert (times.values.to_list(), times.unit) == ([3, 1, -2, 0], None)
    assert "order" in times.how


@given(st.lists(st.integers(10**9, 2 * 10**9), min_size=1), st.sampled_from([10**3, 10**6, 10**9]), st.booleans())
def test_units_are_never_mixed(seconds, factor, as_text):
    values = [*seconds, seconds[0] * factor]
    with pytest.raises(UserError, match=r"mix seconds and (milli|micro|nano)seconds, such as \d+ and \d+; make them"):
        settled(*(map(str, values) if as_text else values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1e9, 1e300], "timestamp 1e\\+300 is no time"),
        (["5", "1e300"], "timestamp '1e300' is no time"),
        ([1.5, float("inf")], "timestamp inf is no time"),
        ([1.5, float("-inf")], "timestamp -inf is no time"),
        (["5", "inf"], "timestamp 'inf' is neither a number nor a date"),
        ([1, -(10**12)], "timestamp -1000000000000 is no time"),
        ([1_500_000_000, -62_135_596_800], "timestamp -62135596800 is no time"),
        (["2018-03-05", "0001-01-01"], "timestamp '0001-01-01' is no time"),
        (["2018-03-05", "9999-12-31"], "timestamp '9999-12-31' is no time"),
        ([MOMENT, datetime.datetime(1, 1, 1, tzinfo=UTC)], "is no time"),
        (["Mon Mar 05 2018", "Tuesday"], "timestamp 'Tuesday' is neither a number nor a date of a known form"),
        (["Mon Mar 05 2018", "2018-03-06"], "mix forms, such as 'Mon Mar 05 2018' and '2018-03-06'"),
        (["x" * 10_000], "timestamp 'xxx"),
    ],
)
def test_what_is_no_time_is_one_short_sentence(values, message):
    with pytest.raises(UserError, match=message) as refused:
        settled(*values)
    assert len(str(refused.value)) < 300


def test_nan_is_a_missing_time():
    assert settled(float("nan"), 2.0).values.to_list() == [None, 2.0]


def test_types_of_parquet_say_unit_and_zone():
    local = settled(MOMENT, dtype=pl.Datetime("ms", "America/Los_Angeles"))
    assert local.shown(local.values[0]) == "2018-03-05 10:32:12 UTC"
    assert "America/Los_Angeles" in local.how
    days = settled(MOMENT.date())
    assert days.shown(days.values[0]) == "2018-03-05 00:00:00 UTC"
