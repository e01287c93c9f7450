"""Reads the timestamps of a log as numbers that sort, and says how they were read."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import polars as pl

from csrec_dist.data.columns import ColumnError
from csrec_dist.errors import UserError, quoted

UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
FIRST, LAST = 1e8, 1e11
"""A number in this range is read as seconds since 1970 (1973 to 5138), in a thousandfold range as milliseconds, …

The ranges of the units do not overlap, so the size of a number tells its unit.
"""
OLDEST = -2.3e9  # seconds: 1897; an earlier time marks a missing value rather than a moment
ISO_DATE = r"^\d{4}[-/]\d{2}[-/]\d{2}"
ZONE_NAMES = r" ?(UTC|GMT)$"
DATE_FORMATS = (
    "%a %b %d %H:%M:%S %z %Y",  # Twitter, Foursquare, Goodreads
    "%a %b %d %H:%M:%S UTC %Y",
    "%a %b %d %H:%M:%S %Y",  # ctime
    "%a %b %d %Y",
    "%a, %d %b %Y %H:%M:%S %z",  # mail
    "%a, %d %b %Y %H:%M:%S GMT",  # web servers
    "%d/%b/%Y:%H:%M:%S %z",  # their logs
    "%b %d, %Y",
    "%d %b %Y",
    "%m %d, %Y",  # Amazon's reviewTime
    "%m/%d/%Y %I:%M:%S %p",
)
HAS_ZONE = re.compile(r"%z|UTC|GMT|Z$|\d[+-]\d{2}:?\d{2}$|:\d{2}(\.\d+)?[+-]\d{2}$")
SECONDS_OF_A_DAY = 86_400

Parser = Callable[[pl.Series], pl.Series]


@dataclass(frozen=True)
class Times:
    """The times of a log: int64, float64, or of type Null if it has none.

    `how` describes how they were read. `unit` is their number per second, counted since 1970, or None if only their
    order is known. `has_zone` says whether dates came with a zone, and is None for what are no dates.
    """

    values: pl.Series
    how: str
    unit: float | None = None
    has_zone: bool | None = None

    def shown(self, value: float) -> str:
        """A value as people read it: a date and time in UTC if the unit is known."""
        if self.unit is None:
            return f"{value:,}"
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=value / self.unit)
        return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def settle_times(times: pl.Series, path: Path) -> Times:
    """Convert times to numbers: numbers stay as they are, dates become microseconds since 1970.

    NaN and empty text are missing times. Raises UserError, with an example, for text that is neither a number nor a
    date of a known format, for mixed formats or units, and for numbers that cannot be times.
    """
    times = _present(times)
    if times.null_count() == len(times):
        return Times(pl.Series(times.name, [None] * len(times), dtype=pl.Null), "none")
    if times.dtype.is_temporal():
        return _of_temporal_type(times, path)
    if times.dtype.is_integer():
        return _of_numbers(_whole_times(times, path), times, path)
    if times.dtype.is_float() or times.dtype.is_decimal():
        return _of_numbers(times.cast(pl.Float64), times, path)
    return _of_text(as_text(times, path), path)


def unreadable_times(times: pl.Series) -> pl.Series:
    """Where [n] a time has another form or unit than most of the log's times, or is none at all; missing ones are not.

    Without these rows `settle_times` reads the others, unless what is usual changes as they go: then ask again.
    """
    times = _present(times)
    unit: float | None = None
    if times.dtype == pl.String:
        numbers, unit = _as_most_are(times)
    elif times.dtype.is_numeric():
        numbers = times.cast(pl.Int64 if times.dtype.is_integer() else pl.Float64, strict=False)
    elif times.dtype.is_temporal() and (unit := _unit_of_type(times)):
        numbers = times.to_physical().cast(pl.Int64)
    else:
        return pl.repeat(False, len(times), eager=True)
    wrong = numbers.is_null()
    if unit is None:
        # Seconds, milliseconds, … of plausible dates lie in disjoint ranges, so a number tells its unit.
        in_range = _in_ranges(numbers)
        usual = max(in_range, key=lambda name: in_range[name].sum() or 0)
        for name, mask in in_range.items():
            wrong |= mask.fill_null(False) & (name != usual)
        unit = _known_unit(usual, in_range[usual].filter(~wrong))
        wrong |= _beyond(numbers, OLDEST * (unit or 1), LAST * (unit or UNITS["nanoseconds"]))
    else:
        wrong |= _beyond(numbers, OLDEST * unit, LAST * unit)
    return wrong & times.is_not_null()


def as_text(values: pl.Series, path: Path) -> pl.Series:
    """The values as text. Raises UserError, which names their column, if they cannot be text."""
    try:
        return values.cast(pl.String)
    except pl.exceptions.PolarsError:
        raise UserError(
            f"{path}: the column of the {values.name} is {values.dtype}, not numbers or text; set "
            f"dataset.columns.{values.name} to another one."
        ) from None


def _present(times: pl.Series) -> pl.Series:
    """The times, null where a number is NaN or a text is blank."""
    if times.dtype.is_float():
        return times.fill_nan(None)
    return times.set(times.str.strip_chars() == "", None) if times.dtype == pl.String else times


def _as_most_are(texts: pl.Series) -> tuple[pl.Series, float | None]:
    """The numbers that the parser reads which reads most of the texts, null elsewhere; their unit if it is known."""
    shapes = texts.drop_nulls().str.replace_all(r"\d", "0")
    if shapes.is_empty():
        return texts.cast(pl.Int64), None
    # Polars infers the form of ISO dates from the first one, so that a usual one is put before the others.
    usual = texts.drop_nulls().filter(shapes == shapes.mode().sort()[0])[:1]
    first_and_all, best = pl.concat([usual, texts]), None
    for name, parse in _parsers():
        numbers = parse(first_and_all)[1:]
        if best is None or numbers.count() > best[0].count():
            best = numbers, None if name == "number" else UNITS["microseconds"]
        if best[0].null_count() == texts.null_count():
            break
    assert best is not None
    return best


def _unit_of_type(times: pl.Series) -> float | None:
    """Times per second of a temporal type; None for durations and times of the day."""
    if isinstance(times.dtype, pl.Duration | pl.Time):
        return None
    if times.dtype == pl.Date:
        return 1 / SECONDS_OF_A_DAY
    return {"ms": 1e3, "us": 1e6, "ns": 1e9}.get(getattr(times.dtype, "time_unit", ""))


def _of_temporal_type(times: pl.Series, path: Path) -> Times:
    zone = getattr(times.dtype, "time_zone", None)
    values, unit = times.to_physical().cast(pl.Int64), _unit_of_type(times)
    if unit is None:
        return Times(values, f"{times.dtype} of the file, used for its order")
    _refuse_beyond(values, OLDEST * unit, LAST * unit, times, path)
    how = f"{times.dtype} of the file, {f'zone {zone}' if zone else 'no zone, read as UTC'}"
    return Times(values, how, unit, has_zone=zone is not None)


def _of_numbers(times: pl.Series, written: pl.Series, path: Path) -> Times:
    """Keep numbers as they are; their unit is that in whose range most of them are. `written` is what the log has."""
    in_range = _in_ranges(times)
    examples = {name: written.filter(mask)[0] for name, mask in in_range.items() if mask.any()}
    if len(examples) > 1:
        (one, first), (other, second), *_ = examples.items()
        what = f"the timestamps mix {one} and {other}, such as {first} and {second}; make them one or the other."
        raise ColumnError(path, what, "timestamp", second)
    unit = next((unit for name in examples if (unit := _known_unit(name, in_range[name]))), None)
    _refuse_beyond(times, OLDEST * (unit or 1), LAST * (unit or UNITS["nanoseconds"]), written, path)
    if unit is None:
        return Times(times, "numbers of no known unit, used for their order")
    return Times(times, f"numbers, {next(iter(examples))} since 1970 in UTC", unit)


def _in_ranges(numbers: pl.Series) -> dict[str, pl.Series]:
    """Where [n] numbers are in the range of each unit."""
    sizes = numbers.cast(pl.Float64).abs()
    return {name: (sizes >= FIRST * unit) & (sizes < LAST * unit) for name, unit in UNITS.items()}


def _known_unit(name: str, mask: pl.Series) -> float | None:
    """The unit, if more than half of the numbers are in its range."""
    return UNITS[name] if (mask.mean() or 0) > 0.5 else None  # type: ignore[operator]


def _beyond(numbers: pl.Series, first: float, last: float) -> pl.Series:
    """Where [n] numbers are before the first or not before the last."""
    sizes = numbers.cast(pl.Float64)
    return ((sizes < first) | (sizes >= last)).fill_null(False)


def _refuse_beyond(times: pl.Series, first: float, last: float, written: pl.Series, path: Path) -> None:
    """Raise UserError, with the time as the log has it, if a time is before the first or not before the last."""
    beyond = _beyond(times, first, last)
    if beyond.any():
        value = written.filter(beyond)[0]
        what = (
            f"the timestamp {quoted(value)} is no time between 1897 and 5138; mend the log (a row with an empty "
            "timestamp is dropped), or set dataset.columns.timestamp to another column."
        )
        raise ColumnError(path, what, "timestamp", value)


def _of_text(texts: pl.Series, path: Path) -> Times:
    """Parse the texts with the first parser that understands all of them."""
    sample = texts.drop_nulls().head(1)
    for name, parse in _parsers():
        if parse(sample).null_count():  # one text is enough to rule most parsers out
            continue
        parsed = parse(texts)
        if parsed.null_count() == texts.null_count():
            return _of_numbers(parsed, texts, path) if name == "number" else _of_dates(parsed, name, texts, path)
    what, value = _why_none_fits(texts)
    raise ColumnError(path, what, "timestamp", value)


def _of_dates(times: pl.Series, form: str, texts: pl.Series, path: Path) -> Times:
    unit = UNITS["microseconds"]
    _refuse_beyond(times, OLDEST * unit, LAST * unit, texts, path)
    example = texts.drop_nulls()[0]
    has_zone = HAS_ZONE.search(example if form == "ISO" else form) is not None
    how = f"dates such as {quoted(example)}, {'zone as written' if has_zone else 'no zone, read as UTC'}"
    return Times(times, how, unit, has_zone)


def _parsers() -> Iterator[tuple[str, Parser]]:
    """Each parser with its name, the strictest first; a parser gives null for a text that it does not understand."""
    yield "number", partial(pl.Series.cast, dtype=pl.Int64, strict=False)
    yield "number", _to_number
    yield "ISO", _to_iso_date
    for form in DATE_FORMATS:
        yield form, partial(_to_date, form=form)


def _why_none_fits(texts: pl.Series) -> tuple[str, str]:
    """What a text that no parser understands is, or else two that no single parser understands; and that text."""
    present = texts.is_not_null()
    first = present.arg_max() or 0
    unknown_to_all = present
    mixed: list[str] = []
    for _, parse in _parsers():
        unknown = parse(texts).is_null() & present
        unknown_to_all &= unknown
        if not mixed and not unknown[first]:
            mixed = [texts[first], texts.filter(unknown)[0]]
    if unknown_to_all.any():
        text = texts.filter(unknown_to_all)[0]
        what = f"the timestamp {quoted(text)} is neither a number nor a date of a known form, such as 2024-03-10 or"
        return f"{what} 2024-03-10 18:30:00; convert them, or set dataset.columns.timestamp to another column.", text
    one, other = mixed
    return f"the timestamps mix forms, such as {quoted(one)} and {quoted(other)}; make them one or the other.", other


def _whole_times(times: pl.Series, path: Path) -> pl.Series:
    whole = times.cast(pl.Int64, strict=False)
    too_large = times.filter(whole.is_null() & times.is_not_null())
    if len(too_large):
        what = f"the timestamp {too_large[0]} is outside the 64-bit integers; set dataset.columns.timestamp to another"
        raise ColumnError(path, f"{what} column.", "timestamp", too_large[0])
    return whole


def _to_number(texts: pl.Series) -> pl.Series:
    numbers = texts.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite(), None)


def _to_iso_date(texts: pl.Series) -> pl.Series:
    dates = texts.set(~texts.str.contains(ISO_DATE), None).str.replace(ZONE_NAMES, "")
    if dates.null_count() == len(dates):
        return dates
    try:
        return dates.str.to_datetime(strict=False, time_unit="us").dt.epoch("us")
    except pl.exceptions.ComputeError:  # Polars cannot infer a format from them
        return dates.clear(len(dates))


def _to_date(texts: pl.Series, form: str) -> pl.Series:
    return texts.str.strip_chars().str.to_datetime(form, strict=False, time_unit="us").dt.epoch("us")
