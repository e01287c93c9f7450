"""A raw log in memory: read by its reader, types settled, ids numbered, sorted by user and time."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from csrec_dist.data.columns import Columns
from csrec_dist.data.readers import READERS
from csrec_dist.data.wording import listed
from csrec_dist.errors import UserError

LOG_SUFFIXES = {".parquet", ".pq", ".csv", ".tsv", ".txt", ".dat", ".data", ".inter", ".json", ".jsonl", ".gz"}
ISO_DATE = r"^\d{4}-\d{2}-\d{2}"
WHOLE = (pl.Int64, pl.UInt64)


@dataclass(frozen=True)
class Log:
    """Interactions sorted by user and time, ties in file order.

    `frame` has user and item (int32, numbers from 0 in order of first appearance in the file), rating
    (float32 or null) and timestamp (int64, float64, or of type Null where the log has none). Where the log
    says what the user preferred before any noise, also true_item: its number (int32), null if it is none of `items`.
    `users` and `items` are the raw ids by number: int64, uint64 or text.
    """

    frame: pl.DataFrame
    users: pl.Series
    items: pl.Series
    num_without_id: int
    num_without_time: int

    @property
    def has_times(self) -> bool:
        """Whether the log has timestamps."""
        return self.frame["timestamp"].dtype != pl.Null

    @property
    def has_true_items(self) -> bool:
        """Whether the log says what the user truly preferred."""
        return "true_item" in self.frame.columns


def log_files(source: Path) -> list[Path]:
    """The file itself; of a folder, its one log file or its Parquet parts in the order of their names.

    Raises UserError when there is none or an empty one, or several of which it cannot be said which is meant.
    """
    files = [source] if source.is_file() else _files_in(source)
    empty = next((file for file in files if file.stat().st_size == 0), None)
    if empty:
        raise UserError(f"{empty} is empty: a log needs at least one interaction.")
    return files


def read_log(files: list[Path], format: str, columns: Columns) -> Log:
    """Read the files with the named reader, one after the other.

    Rows without a user or item, and rows without a time in a log that has times, are dropped and counted.
    Raises UserError when the files cannot be read so, hold nothing, or lack a named column.
    """
    frame = _collect(files, format, columns)
    if frame.is_empty():
        raise UserError(f"{files[0]} holds no interactions: a log needs at least one.")
    timed = frame.with_columns(timestamp=settle_times(frame["timestamp"], files[0]))
    named = timed.drop_nulls(["user", "item"])
    kept = named if named["timestamp"].dtype == pl.Null else named.drop_nulls("timestamp")
    if kept.is_empty():
        raise UserError(f"{files[0]}: none of its {len(frame)} rows has a user and an item.")
    users, user_numbers = number(kept["user"], files[0])
    items, item_numbers = number(kept["item"], files[0])
    kept = _with_true_items(kept, item_numbers)
    numbered = kept.with_columns(user=user_numbers, item=item_numbers, rating=settle_ratings(kept["rating"], files[0]))
    return Log(
        _sorted(numbered), users, items, num_without_id=len(frame) - len(named), num_without_time=len(named) - len(kept)
    )


def settle_times(times: pl.Series, path: Path) -> pl.Series:
    """Times as int64 or float64 (ISO dates: microseconds since 1970), Null type if there are none.

    Raises UserError, with a value, when text is neither a number nor an ISO date, when it mixes the two, and
    when integers are above 2⁶³ − 1.
    """
    if times.dtype.is_temporal():
        return times.to_physical().cast(pl.Int64)
    if times.dtype.is_float():
        times = times.set(~times.is_finite(), None)
    if times.null_count() == len(times):
        return pl.Series(times.name, [None] * len(times), dtype=pl.Null)
    if times.dtype.is_float() or times.dtype.is_decimal():
        return times.cast(pl.Float64)
    if times.dtype.is_integer():
        return _whole_times(times, path)
    return _first_that_fits(
        _texts(times, path),
        (_to_integer, _to_number, _to_microseconds),
        path,
        "the timestamp {!r} is neither a number nor an ISO date; set dataset.columns.timestamp to another column.",
        "the timestamps mix numbers and ISO dates, such as {!r} and {!r}; make them one or the other.",
    )


def settle_ratings(ratings: pl.Series, path: Path) -> pl.Series:
    """Ratings as float32, null where there is none. Raises UserError on what is no number."""
    if ratings.dtype.is_numeric() or ratings.dtype in (pl.Boolean, pl.Null):
        return ratings.cast(pl.Float32).fill_nan(None)
    message = "the rating {!r} is not a number; set dataset.columns.rating to another column."
    return _first_that_fits(_texts(ratings, path), (_to_number,), path, message).cast(pl.Float32)


def number(ids: pl.Series, path: Path) -> tuple[pl.Series, pl.Series]:
    """Distinct raw ids in order of first appearance, and each row's number (int32, from 0).

    Raw ids become int64 or uint64 if each of them is exactly such an integer ("007" is not), else text.
    Raises UserError for ids that are lists, records or bytes that are no text.
    """
    if ids.dtype.is_nested():
        raise UserError(f"{path}: the {ids.name} ids are {ids.dtype}, not integers or text.")
    if ids.dtype == pl.Binary:
        ids = _texts(ids, path)
    raw = ids.unique(maintain_order=True)
    numbers = pl.DataFrame({"raw": raw, "number": pl.int_range(len(raw), dtype=pl.Int32, eager=True)})
    joined = ids.to_frame("raw").join(numbers, on="raw", how="left", maintain_order="left")
    return _settle_ids(raw), joined["number"]


def _files_in(source: Path) -> list[Path]:
    files = sorted(file for file in source.iterdir() if file.suffix in LOG_SUFFIXES and not file.name.startswith("."))
    if not files:
        raise UserError(f"{source} holds no log (looked for files ending in {listed(sorted(LOG_SUFFIXES))}).")
    if len(files) > 1 and any(file.suffix != ".parquet" for file in files):
        raise UserError(f"{source} holds several files, {listed(f.name for f in files)}: name one of them.")
    return files


def _collect(files: list[Path], format: str, columns: Columns) -> pl.DataFrame:
    try:
        scans = [READERS[format].scan(file, columns) for file in files]
        frame = pl.concat(scans, how="vertical_relaxed").collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:  # OSError: of a damaged gzip file
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{files[0]} could not be read by the reader '{format}': {reason}") from None
    nans = [name for name in ("user", "item") if frame[name].dtype.is_float()]
    return frame.with_columns(pl.col(nans).fill_nan(None))


def _with_true_items(frame: pl.DataFrame, item_numbers: pl.Series) -> pl.DataFrame:
    """The true items by the numbers of the items, or no such column where the log names none."""
    if frame["true_item"].null_count() == len(frame):
        return frame.drop("true_item")
    table = pl.DataFrame({"raw": frame["item"], "number": item_numbers}).unique("raw")
    raw = frame["true_item"].cast(frame["item"].dtype, strict=False).to_frame("raw")
    return frame.with_columns(true_item=raw.join(table, on="raw", how="left", maintain_order="left")["number"])


def _sorted(frame: pl.DataFrame) -> pl.DataFrame:
    keys = ["user"] if frame["timestamp"].dtype == pl.Null else ["user", "timestamp"]
    return frame.sort(keys, maintain_order=True)


def _settle_ids(raw: pl.Series) -> pl.Series:
    if raw.dtype.is_integer() and raw.dtype not in (pl.Int128, pl.UInt128):
        return raw.cast(pl.UInt64 if raw.dtype == pl.UInt64 else pl.Int64)
    texts = raw.cast(pl.String)
    numbers = raw if raw.dtype.is_float() else texts
    for dtype in WHOLE:
        whole = numbers.cast(dtype, strict=False)
        if whole.null_count() == 0 and (whole.cast(numbers.dtype) == numbers).all():
            return whole
    return texts


def _texts(values: pl.Series, path: Path) -> pl.Series:
    try:
        return values.cast(pl.String)
    except pl.exceptions.PolarsError:
        raise UserError(
            f"{path}: the column of the {values.name} is {values.dtype}, not numbers or text; set "
            f"dataset.columns.{values.name} to another one."
        ) from None


def _whole_times(times: pl.Series, path: Path) -> pl.Series:
    whole = times.cast(pl.Int64, strict=False)
    beyond = times.filter(whole.is_null() & times.is_not_null())
    if len(beyond):
        raise UserError(
            f"{path}: the timestamp {beyond[0]} is outside the 64-bit integers; set dataset.columns.timestamp to "
            "another column."
        )
    return whole


def _first_that_fits(
    texts: pl.Series, parsers: tuple[Callable[[pl.Series], pl.Series], ...], path: Path, message: str, mixed: str = ""
) -> pl.Series:
    """The texts by the first parser that leaves none of them out.

    Raises UserError: `message` with a text that every parser leaves out, or where there is none, `mixed` with
    one that the last parser leaves out and one that the parser before it does.
    """
    left_by_all = texts.is_not_null()
    left: list[str] = []
    for parse in parsers:
        parsed = parse(texts)
        left_out = parsed.is_null() & texts.is_not_null()
        if not left_out.any():
            return parsed
        left_by_all &= left_out
        left.append(texts.filter(left_out)[0])
    if left_by_all.any():
        raise UserError(f"{path}: {message.format(texts.filter(left_by_all)[0])}")
    raise UserError(f"{path}: {mixed.format(left[-1], left[-2])}")


def _to_integer(texts: pl.Series) -> pl.Series:
    return texts.cast(pl.Int64, strict=False)


def _to_number(texts: pl.Series) -> pl.Series:
    numbers = texts.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite(), None)


def _to_microseconds(texts: pl.Series) -> pl.Series:
    dates = texts.set(~texts.str.contains(ISO_DATE), None)
    if dates.null_count() == len(dates):
        return dates
    try:
        return dates.str.to_datetime(strict=False, time_unit="us").dt.epoch("us")
    except pl.exceptions.ComputeError:  # of no form that is known
        return dates.clear(len(dates))
