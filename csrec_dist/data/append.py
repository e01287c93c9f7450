"""The log that a dataset keeps, and that log with new interactions: old users and items keep their numbers."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from csrec_dist.data.bad_rows import BadRows
from csrec_dist.data.columns import Columns
from csrec_dist.data.dataset import LOG, Ancestor, Dataset
from csrec_dist.data.ids import RawIds
from csrec_dist.data.log import Log, number, with_true_items
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.reading import NOT_IN_PARTS
from csrec_dist.data.shards import Flat
from csrec_dist.data.sources import FileSource, Source, source_of
from csrec_dist.data.times import Times
from csrec_dist.data.windows import Spans
from csrec_dist.errors import UserError, quoted

ROWS_A_GROUP = 1 << 20
ROLES = ("user", "item", "rating", "timestamp", "true_item", "weight")
OF_TEXT_FILES = ("format", "header", "encoding", "separator")
LARGEST_TIME = 2.0**63


def write_log(path: Path, log: Log) -> None:
    """Write all interactions as they were read, before any is left out: by user and time, with raw ids.

    `timestamp` has the numbers that the times were read as. It is missing where the log has none; so are `true_item`
    and `weight`.
    """
    writer = None
    roles = [role for role in ROLES if role in log.frame.columns and log.frame[role].dtype != pl.Null]
    ids = {"user": log.users, "item": log.items, "true_item": pl.concat([log.items, log.other_items])}
    for part in log.frame.select(roles).iter_slices(ROWS_A_GROUP):
        raw = part.with_columns(ids[role].gather(part[role]).alias(role) for role in roles if role in ids)
        table = raw.to_arrow(compat_level=pl.CompatLevel.oldest())
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None, "a log has at least one interaction"
    writer.close()


def read_log(dataset: Dataset) -> Log:
    """The log that a dataset keeps.

    Raises:
        UserError: the file was removed, or is not the one that was written.
    """
    path, statistics, reading = dataset.folder / LOG, dataset.statistics, dataset.info["reading"]
    if not path.is_file():
        raise UserError(
            f"{path} is missing: without the log that {dataset.folder} was made of, nothing can be appended to it. "
            "Prepare the whole log, old and new, as a new dataset."
        )
    frame = pl.read_parquet(dataset.file(LOG), glob=False)
    missing = [pl.lit(None).alias(role) for role in ROLES if role not in (*frame.columns, "weight")]
    frame = frame.with_columns(missing)
    users, user_numbers = number(frame["user"], path, typed=True)
    items, item_numbers = number(frame["item"], path, typed=True)
    frame, other_items = with_true_items(frame, item_numbers, items)
    return Log(
        frame.with_columns(user=user_numbers, item=item_numbers),
        users,
        items,
        other_items,
        num_without_id=statistics["rows_without_id"],
        num_without_time=statistics["rows_without_time"],
        taken=reading["columns"],
        passed_over=tuple(reading["columns_passed_over"]),
        times=Times(frame["timestamp"], reading["timestamps"], reading["times_per_second"], reading["times_have_zone"]),
        num_not_kept=statistics["rows_not_kept"],
        bad_rows=BadRows(reading.get("bad_rows", {})),
    )


def appended_options(dataset: Dataset, given: Mapping[str, Any], is_table: bool) -> dict[str, Any]:
    """The keys of `dataset` for a log that is appended: those of the old dataset, but for the `given` ones.

    The columns are the old log's, role by role, unless they are given. What describes text files is not taken over to
    a table. Raises UserError if one of the two has splits that are given, or keeps a share of the interactions.
    """
    old = dataset.info["options"]
    if given.get("split") == "given":
        raise UserError(
            f"dataset.split: given cannot be appended to {dataset.folder}, whose log has no files of validation and "
            "test; prepare training, validation and test files of all interactions as a new dataset."
        )
    if old.get("split") == "given":
        raise UserError(
            f"{dataset.folder} was made of given training, validation and test files, to which one log cannot be "
            "appended; prepare the three files with the new interactions as a new dataset."
        )
    if old.get("keep_share", 1) != 1 or given.get("keep_share", 1) != 1:
        raise UserError(
            f"dataset.keep_share cannot be appended to {dataset.folder}: which interactions are kept depends on how "
            "many there are; prepare the whole log, old and new, as a new dataset."
        )
    columns = Columns(**old["columns"])
    roles = columns.given.keys() - (columns.positions.keys() if is_table else ())
    left_out = {"source", "path", "columns", "expected", *(OF_TEXT_FILES if is_table else ())}
    old_options = {key: value for key, value in old.items() if key not in left_out}
    old_columns, columns_given = {role: columns.given[role] for role in roles}, given.get("columns", {})
    if isinstance(columns_given, Mapping):  # what else it may be is refused with all other mistakes
        columns_given = {**old_columns, **columns_given}
    return {**old_options, **given, "columns": columns_given}


class AppendedSource:
    """The log of a dataset, followed by a new one."""

    def __init__(self, dataset: Dataset, options: DatasetOptions, table: Any = None) -> None:
        """`options.source` names the new log, or it is a table.

        Raises UserError if there is none, or one whose format is not read in parts.
        """
        self._dataset, self._new, self._is_weighted = dataset, source_of(options, table), bool(options.weights)
        if isinstance(self._new, FileSource) and (why := NOT_IN_PARTS.get(self._new.format)):
            raise UserError(f"{self._new.place} cannot be appended: {why}, and prepare that.")

    def __str__(self) -> str:
        return f"{self._new}, appended to the log of {self._dataset.folder}"

    @property
    def place(self) -> Path:
        """That of the new log."""
        return self._new.place

    @property
    def identity(self) -> dict[str, Any]:
        """That of the new log."""
        return self._new.identity

    @cached_property
    def log(self) -> Log:
        """All interactions, the old dataset's users and items having the first numbers in their order there.

        Interactions of a user at the same time come in the order old, new.
        """
        return joined(self._dataset, read_log(self._dataset), self._new, self._is_weighted)


def joined(dataset: Dataset, old: Log, source: Source, is_weighted: bool) -> Log:
    """Two logs as one; see `AppendedSource.log`. UserError if their times cannot be compared.

    Where it `is_weighted`, interactions of an old log without weights weigh 1; otherwise none has a weight.
    """
    new = source.log
    users, _, *users_of = _joined_ids(dataset.file("users.parquet"), old.users, new.users)
    others = old.other_items, new.other_items
    items, other_items, *items_of = _joined_ids(dataset.file("items.parquet"), old.items, new.items, others)
    times, frames = _joined_times(old.times, new.times, source.place, dataset), []
    has_true_items = old.has_true_items or new.has_true_items
    for log, user_numbers, item_numbers in zip((old, new), users_of, items_of, strict=True):
        frame = _renumbered(log.frame, user_numbers, item_numbers, has_true_items)
        if is_weighted:
            weights = log.frame["weight"] if "weight" in log.frame.columns else pl.lit(1.0, pl.Float32)
            frame = frame.with_columns(weight=weights)
        frames.append(frame.with_columns(timestamp=_in_unit(frame["timestamp"], log.times, times)))
    frame = pl.concat(frames, how="vertical_relaxed")
    keys = ["user"] if frame["timestamp"].dtype == pl.Null else ["user", "timestamp"]
    return Log(
        frame.sort(keys, maintain_order=True),
        users,
        items,
        other_items,
        num_without_id=old.num_without_id + new.num_without_id,
        num_without_time=old.num_without_time + new.num_without_time,
        taken=new.taken,
        passed_over=new.passed_over,
        times=times,
        num_not_kept=old.num_not_kept + new.num_not_kept,
        bad_rows=BadRows.joined([old.bad_rows, new.bad_rows]),
    )


def _joined_ids(
    known: Path, old: pl.Series, new: pl.Series, others: tuple[pl.Series, ...] = ()
) -> tuple[pl.Series, pl.Series, np.ndarray, np.ndarray]:
    """Distinct raw ids, those of the file `known` first, and distinct ones that are only among the `others` of both.

    Then the numbers (from 0, those of the second series after the first) of the ids of `old` followed by its others,
    and of `new` followed by its own. Ids stay integers where all are integers, and become text where some are.
    """
    first = pl.Series("raw", RawIds(known).values)
    parts, are_integers = [first, old, new, *others], old.dtype.is_integer() and new.dtype.is_integer()
    if old.dtype != new.dtype:
        parts = [part.cast(pl.String) for part in parts]
    raw, numbers = number(pl.concat([part.alias("raw") for part in parts]), known, typed=not are_integers)
    all_numbers = numbers.to_numpy()
    _, of_old, of_new, *of_others = np.split(all_numbers, np.cumsum([len(part) for part in parts])[:-1])
    num_ids = int(all_numbers[: len(first) + len(old) + len(new)].max()) + 1
    if others:
        of_old, of_new = (np.concatenate(both) for both in zip((of_old, of_new), of_others, strict=True))
    return raw[:num_ids], raw[num_ids:], of_old, of_new


def _renumbered(frame: pl.DataFrame, users: np.ndarray, items: np.ndarray, has_true_items: bool) -> pl.DataFrame:
    """The interactions by other numbers of users and items."""
    columns = {"user": pl.Series(users)[frame["user"]], "item": pl.Series(items)[frame["item"]]}
    if has_true_items:
        true = frame["true_item"] if "true_item" in frame.columns else pl.Series([None] * len(frame), dtype=pl.Int32)
        columns["true_item"] = pl.Series(items).gather(true)
    return frame.select(rating=pl.col("rating").cast(pl.Float32), timestamp="timestamp").with_columns(**columns)


def _joined_times(old: Times, new: Times, place: Path, dataset: Dataset) -> Times:
    """How the times of both logs are counted: in the finer of their units."""
    one, other = (times.values.dtype == pl.Null for times in (old, new))
    are_zoned = {old.has_zone, new.has_zone} == {True, False}
    if one != other or (old.unit is None) != (new.unit is None) or are_zoned:
        raise UserError(
            f"{place}: its timestamps ({new.how}) cannot be compared with those of {dataset.folder} ({old.how}); give "
            "the new log times of the same kind."
        )
    return old if old.unit is None or new.unit is None or old.unit >= new.unit else new


def _in_unit(values: pl.Series, times: Times, unit_of: Times) -> pl.Series:
    """Times in the unit of others."""
    if times.unit is None or unit_of.unit is None or times.unit == unit_of.unit:
        return values
    factor = round(unit_of.unit / times.unit)
    largest = float(values.abs().max() or 0) * factor  # type: ignore[arg-type]
    return values * factor if largest < LARGEST_TIME else values.cast(pl.Float64) * factor


def require_kept(dataset: Dataset, users: pl.Series, items: pl.Series, place: Path) -> None:
    """UserError unless the first of these raw ids are the users and items of the dataset, in its order.

    With the options of the dataset none of them is lost: more interactions drop no user and no item.
    """
    for name, raw in (("user", users), ("item", items)):
        old, now = pl.Series(RawIds(dataset.file(f"{name}s.parquet")).values).cast(pl.String), raw.cast(pl.String)
        lost = old.filter(~old.is_in(now.implode()))
        if len(lost):
            raise UserError(
                f"{place}: with these options {len(lost):,} {name}s of {dataset.folder} would be left out, such as "
                f"{quoted(lost[0])}, and the others change their numbers. Append with the options of that dataset, or "
                "prepare a new one."
            )
        assert (now[: len(old)] == old).all(), f"the old {name}s have other numbers"


def lineage(dataset: Dataset) -> list[Ancestor]:
    """What dataset.json says of the datasets that an appended one extends: this one, and those that it extends."""
    parent = Ancestor(
        fingerprint=dataset.fingerprint,
        id_map_fingerprint=dataset.id_map_fingerprint,
        num_items=dataset.num_items,
        num_users=dataset.num_users,
    )
    return [parent, *dataset.extends]


def trained_before(dataset: Dataset, flat: Flat, splits: dict[str, Spans]) -> dict[str, int]:
    """How many valid and test rows have a target that the same user has among the old dataset's training targets.

    A model that was trained on the old dataset may know these.
    """
    files = [dataset.file(dataset.shard_file("train", shard).name) for shard in range(dataset.num_shards)]
    trained = pl.scan_parquet(files, glob=False).select("user", target=pl.col("items").list.slice(1)).explode("target")
    counts = {}
    for name in ("valid", "test"):
        last = splits[name].stops - 1
        rows = pl.LazyFrame({"user": flat.users[last], "target": flat.items[last]})
        matches = rows.join(trained, on=["user", "target"], how="semi").select(pl.len()).collect(engine="streaming")
        counts[f"{name}_targets_trained_before"] = int(matches.item())
    return counts
