"""A raw log as interactions with numbers for users and items; its duplicates, and the k-core of users and items."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from csrec_dist.data.bad_rows import BadRows, Find
from csrec_dist.data.columns import ORDER_IS_MEANT, ColumnError, Scan
from csrec_dist.data.times import Times, as_text, settle_times, unreadable_times
from csrec_dist.errors import UserError, quoted

WRITTEN_NANS = ("nan", "NaN", "NAN")
WHOLE_NUMBER = r"^-?\d+(\.0)?$"
EXACT = ("user", "item", "timestamp", "rating", "weight", "true_item")


def drop_duplicates(interactions: pl.DataFrame, keep: str) -> pl.DataFrame:
    """Of the interactions of a user with one item, all ("keep"), or the "first" or "last" in row order.

    "exact" drops a row only if another one has the same user, item, timestamp, rating, and weight and true item if the
    log has them: it drops a row written twice but not an item taken twice, or looked at and then bought.
    """
    if keep == "keep":
        return interactions
    if keep == "exact":
        return interactions.unique(exact_columns(interactions), keep="first", maintain_order=True)
    return interactions.unique(["user", "item"], keep=keep, maintain_order=True)  # type: ignore[arg-type]


def exact_columns(interactions: pl.DataFrame) -> list[str]:
    """The columns in which a row that was written twice is equal."""
    return [name for name in EXACT if name in interactions.columns]


def k_core(users: np.ndarray, items: np.ndarray, minimum: int, iterated: bool) -> np.ndarray:
    """Indices of the interactions [n] whose user and item have at least `minimum` interactions, ascending.

    Iterated, the rule holds for the result; otherwise users and items are judged once, by their counts in the
    whole log.
    """
    indices = np.arange(len(users))
    while True:
        mask = _frequent(users[indices], minimum) & _frequent(items[indices], minimum)
        if mask.all():
            return indices
        indices = indices[mask]
        if not iterated:
            return indices


def renumber(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers without gaps, 1, 2, … in the old order, and the old number of each new one (index 0 is 1's)."""
    present = np.bincount(numbers) > 0
    return np.cumsum(present)[numbers].astype(np.int32), np.flatnonzero(present)


def _frequent(numbers: np.ndarray, minimum: int) -> np.ndarray:
    return np.bincount(numbers)[numbers] >= minimum


WHOLE = (pl.Int64, pl.UInt64)


@dataclass(frozen=True)
class Log:
    """Interactions sorted by user and time, ties in file order.

    `frame` has user and item (int32, numbers from 0 in order of first appearance in the file), rating
    (float32 or null) and timestamp (int64, float64, or of type Null if the log has none). If the log names the items
    that users preferred before any noise, it also has true_item: the number (int32), null if it is missing. If its
    split is given, it has period (int8: 0 training, 1 validation, 2 test), by which it is sorted before the time.
    `users` and `items` are the raw ids by number: int64, uint64 or text. `other_items` are the raw ids of true items
    that nobody interacted with, whose numbers follow those of `items`: they may be items of a log that is appended.
    `taken` has the file's column of each role, `passed_over` other columns whose names match a role, `times` how the
    timestamps were read, `num_not_kept` the rows that `dataset.keep` left out, `bad_rows` those that
    `dataset.on_bad_rows: skip` did.
    """

    frame: pl.DataFrame
    users: pl.Series
    items: pl.Series
    other_items: pl.Series
    num_without_id: int
    num_without_time: int
    taken: dict[str, str | None]
    passed_over: tuple[str, ...]
    times: Times
    num_not_kept: int = 0
    bad_rows: BadRows = field(default_factory=BadRows)

    @property
    def has_times(self) -> bool:
        """Whether the log has timestamps."""
        return self.frame["timestamp"].dtype != pl.Null

    @property
    def has_true_items(self) -> bool:
        """Whether the log names the items that users truly preferred."""
        return "true_item" in self.frame.columns


def log_of(frame: pl.DataFrame, scan: Scan, path: Path, find: Find | None = None) -> Log:
    """The log of all rows of a scan; `path` is what messages call it.

    Rows without a user or item, and rows without a time in a log that has times, are dropped and counted. So are rows
    whose time or rating cannot be read if `find` is given, which says where values are. Raises UserError if nothing is
    left, values cannot be read, or there are no times and the config does not say so.
    """
    if frame.is_empty():
        raise UserError(f"{path} has no interactions; a log needs at least one.")
    bad_rows = BadRows()
    if find is not None:
        frame = _without_unreadable(frame, bad_rows, path, find)
        if frame.is_empty():
            raise UserError(f"{path}: dataset.on_bad_rows: skip leaves nothing: no row can be read ({bad_rows}).")
    frame = _with_missing_ids(frame)
    if not scan.typed:
        frame = _without_points(_without_written_nans(frame))
    times = settle_times(frame["timestamp"], path)
    if times.values.dtype == pl.Null and scan.taken["timestamp"] is not None:
        raise UserError(f"{path}: the column {scan.taken['timestamp']} has no timestamps; {ORDER_IS_MEANT}.")
    named = frame.with_columns(timestamp=times.values).drop_nulls(["user", "item"])
    rows = named if times.values.dtype == pl.Null else named.drop_nulls("timestamp")
    if rows.is_empty():
        what = "a user and an item" if named.is_empty() else "a user, an item and a timestamp"
        raise UserError(f"{path}: none of its {len(frame)} rows has {what}.")
    users, user_numbers = number(rows["user"], path, scan.typed)
    items, item_numbers = number(rows["item"], path, scan.typed)
    rows, other_items = with_true_items(rows, item_numbers, items)
    numbered = rows.with_columns(user=user_numbers, item=item_numbers, rating=settle_ratings(rows["rating"], path))
    return Log(
        _sorted(numbered),
        users,
        items,
        other_items,
        num_without_id=len(frame) - len(named),
        num_without_time=len(named) - len(rows),
        taken=scan.taken,
        passed_over=scan.passed_over,
        times=times,
        bad_rows=bad_rows,
    )


def _with_missing_ids(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows with null for ids that are NaN, or text with nothing in it, as it stands for no id between quotes."""
    ids = [frame[name] for name in ("user", "item", "true_item")]
    texts = [each.name for each in ids if each.dtype in (pl.String, pl.Categorical, pl.Enum)]
    is_blank = pl.col(texts).cast(pl.String).str.strip_chars() == ""
    return frame.with_columns(
        pl.col([each.name for each in ids if each.dtype.is_float()]).fill_nan(None),
        pl.when(is_blank).then(None).otherwise(pl.col(texts)).name.keep(),
    )


def _without_written_nans(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows of a text file with null for ids that are written nan, where all other users, or items, are numbers."""
    for names in (("user",), ("item", "true_item")):
        texts = [name for name in names if frame[name].dtype == pl.String]
        are_nan = [frame[name].is_in(WRITTEN_NANS) for name in texts]
        if any(mask.any() for mask in are_nan):
            others = [frame[name].set(mask, None) for name, mask in zip(texts, are_nan, strict=True)]
            if all(each.drop_nulls().cast(pl.Float64, strict=False).null_count() == 0 for each in others):
                frame = frame.with_columns(others)
    return frame


def _without_points(frame: pl.DataFrame) -> pl.DataFrame:
    """Ids of a text file with "7.0" as "7", where all of its users, or items, are whole numbers.

    pandas writes integers so, where one of their column is missing.
    """
    for names in (("user",), ("item", "true_item")):
        texts = [name for name in names if frame[name].dtype == pl.String]
        are_whole = (frame[name].drop_nulls().str.contains(WHOLE_NUMBER).all() for name in texts)
        if texts and all(are_whole):
            frame = frame.with_columns(pl.col(texts).str.strip_suffix(".0"))
    return frame


def _without_unreadable(frame: pl.DataFrame, bad_rows: BadRows, path: Path, find: Find) -> pl.DataFrame:
    """The rows whose time and rating can be read; the others are counted."""
    # As rows go, another unit may become the usual one.
    while (mask := unreadable_times(frame["timestamp"])).any():
        what = "the time is none, or of another form or unit than most of the log's"
        bad_rows.add_values("timestamp", frame["timestamp"].filter(mask), what, path, find)
        frame = frame.filter(~mask)
    if frame["rating"].dtype == pl.String and (mask := _is_no_number(frame["rating"])).any():
        bad_rows.add_values("rating", frame["rating"].filter(mask), "the rating is no number", path, find)
        frame = frame.filter(~mask)
    return frame


def _is_no_number(texts: pl.Series) -> pl.Series:
    """Where [n] a text is not a number; missing ones are not."""
    return texts.cast(pl.Float32, strict=False).is_null() & texts.is_not_null()


def settle_ratings(ratings: pl.Series, path: Path) -> pl.Series:
    """Ratings as float32, null where one is missing. Raises UserError for text that is not a number."""
    if ratings.dtype.is_numeric() or ratings.dtype in (pl.Boolean, pl.Null):
        return ratings.cast(pl.Float32).fill_nan(None)
    texts = as_text(ratings, path)
    wrong = texts.filter(_is_no_number(texts))
    if len(wrong):
        what = f"the rating {quoted(wrong[0])} is not a number; set dataset.columns.rating to another column, or to"
        raise ColumnError(path, f"{what} none.", "rating", wrong[0])
    return texts.cast(pl.Float32).fill_nan(None)


def number(ids: pl.Series, path: Path, typed: bool = False) -> tuple[pl.Series, pl.Series]:
    """Distinct raw ids in order of first appearance, and each row's number (int32, from 0).

    Raw ids become int64 or uint64 if each of them is exactly such an integer ("007" is not), otherwise text. Where the
    log has types, text stays text: who gave the ids "7" and "8" finds them in recommendations as they were.
    Raises UserError for ids that are lists, records, or bytes other than text.
    """
    if ids.dtype.is_nested():
        raise UserError(f"{path}: the {ids.name} ids are {ids.dtype}, not integers or text.")
    if ids.dtype == pl.Binary:
        ids = as_text(ids, path)
    raw = ids.unique(maintain_order=True)
    numbers = pl.DataFrame({"raw": raw, "number": pl.int_range(len(raw), dtype=pl.Int32, eager=True)})
    joined = ids.to_frame("raw").join(numbers, on="raw", how="left", maintain_order="left")
    return _settle_ids(raw, typed), joined["number"]


def with_true_items(frame: pl.DataFrame, item_numbers: pl.Series, items: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
    """The rows with true items by their numbers, and the raw ids of those that are no items of the rows.

    The column goes if the log names no true item. One that is no id of the items' type stays unknown: null.
    """
    if frame["true_item"].null_count() == len(frame):
        return frame.drop("true_item"), items.clear()
    table = pl.DataFrame({"raw": frame["item"], "number": item_numbers}).unique("raw")
    raw = frame["true_item"].cast(frame["item"].dtype, strict=False).to_frame("raw")
    others = raw.drop_nulls().unique(maintain_order=True).join(table, on="raw", how="anti", maintain_order="left")
    others = others.with_columns(id=pl.col("raw").cast(items.dtype, strict=False))
    others = others.filter(pl.col("id").cast(pl.String) == pl.col("raw").cast(pl.String))
    numbers = pl.int_range(len(items), len(items) + len(others), dtype=pl.Int32, eager=True)
    table = pl.concat([table, others.select("raw", number=numbers)])
    true_items = raw.join(table, on="raw", how="left", maintain_order="left")["number"]
    return frame.with_columns(true_item=true_items), others["id"]


def _sorted(frame: pl.DataFrame) -> pl.DataFrame:
    keys = ["user", "period"] if "period" in frame.columns else ["user"]
    keys += [] if frame["timestamp"].dtype == pl.Null else ["timestamp"]
    return frame.sort(keys, maintain_order=True)


def _settle_ids(raw: pl.Series, typed: bool) -> pl.Series:
    if raw.dtype.is_integer() and raw.dtype not in (pl.Int128, pl.UInt128):
        return raw.cast(pl.UInt64 if raw.dtype == pl.UInt64 else pl.Int64)
    texts = raw.cast(pl.String)
    if typed and not raw.dtype.is_numeric():
        return texts
    numbers = raw if raw.dtype.is_float() else texts
    for dtype in WHOLE:
        whole = numbers.cast(dtype, strict=False)
        if whole.null_count() == 0 and (whole.cast(numbers.dtype) == numbers).all():
            return whole
    return texts
