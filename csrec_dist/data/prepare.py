"""From a raw log to a prepared dataset folder, step by step."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from csrec_dist.data.account import (
    account_of_reading,
    left_out,
    say_duplicates,
    say_left_out,
    say_reading,
    say_trained_before,
)
from csrec_dist.data.append import AppendedSource, lineage, require_kept, trained_before, write_log
from csrec_dist.data.dataset import FORMAT_VERSION, LOG, SEQUENCES, Dataset, Split
from csrec_dist.data.log import Log, drop_duplicates, k_core, renumber
from csrec_dist.data.noise import NoiseSource, noise_law
from csrec_dist.data.options import DatasetOptions, NoiseOptions
from csrec_dist.data.shards import (
    Flat,
    SplitRows,
    automatic_shards,
    checksums,
    covered,
    write_sequences,
    write_split,
)
from csrec_dist.data.sources import FileSource, Source, source_of
from csrec_dist.data.statistics import describe, leaked_rows, target_counts, training_counts
from csrec_dist.data.times import Times
from csrec_dist.data.weights import scaled
from csrec_dist.data.windows import Periods, Spans, cut_windows, every_row, leave_one_out, temporal, temporal_cuts
from csrec_dist.errors import UserError, listed
from csrec_dist.files import (
    differences,
    fingerprint,
    flatten,
    new_folder,
    read_json,
    write_record,
)
from csrec_dist.lock import locked
from csrec_dist.options import undeciding
from csrec_dist.storage import require_room
from csrec_dist.writers import remove_leftovers

NOISE_STREAM = 0x6E6F6973  # separates the noise from the assignment of rows to shards, which may have the same seed
SHARE_STREAM = 0x73686172  # and this, the choice of the interactions that are kept


def prepare(
    options: DatasetOptions, folder: Path, progress: Callable[[str], None] | None = None, table: Any = None
) -> dict[str, Any]:
    """Prepare the log `options.source`, or a `table` in memory, into `folder`; return the content of its dataset.json.

    The folder appears whole or not at all; leftovers of interrupted preparations are removed. Raises
    UserError if the folder already exists, if the log is missing, unreadable or empty, and if nothing
    is left to train on or to evaluate.
    """
    refuse_to_overwrite(folder)
    with locked(folder, "The dataset's folder", beside=True):
        return _prepare(source_of(options, table), options, folder, progress or (lambda line: None))


def append(
    dataset: Dataset,
    options: DatasetOptions,
    folder: Path,
    progress: Callable[[str], None] | None = None,
    table: Any = None,
) -> dict[str, Any]:
    """Prepare the log of a dataset followed by the new log `options.source`, or a `table`, into a new `folder`.

    The old dataset is only read. Its items and users keep their numbers, and those that are new to it, or that had too
    few interactions then, follow; but for these numbers the result is that of preparing the whole log at once. What it
    extends is in dataset.json. Raises UserError as `prepare` does, and if an option would drop an old item or user.
    """
    refuse_to_overwrite(folder)
    source = AppendedSource(dataset, options, table)
    with locked(folder, "The dataset's folder", beside=True):
        return _prepare(source, options, folder, progress or (lambda line: None), extends=dataset)


def prepare_once(
    options: DatasetOptions,
    folder: Path,
    say: Callable[[str], None],
    table: Any = None,
    extends: Dataset | None = None,
) -> None:
    """Prepare a log, or append it to the dataset that the new one `extends`, unless the folder was made of just that.

    Raises UserError as `prepare`, `append` and `require_same` do.
    """
    if (folder / "dataset.json").exists():
        require_same(folder, options, table, extends)
        say(f"{folder} is prepared already")
    elif extends:
        append(extends, options, folder, say, table)
    else:
        prepare(options, folder, say, table)


def _prepare(
    source: Source,
    options: DatasetOptions,
    folder: Path,
    say: Callable[[str], None],
    extends: Dataset | None = None,
) -> dict[str, Any]:
    """Prepare a log into a folder that is not there yet; the caller holds its lock."""
    refuse_to_overwrite(folder)  # again: another process may just have prepared it
    remove_leftovers(folder)
    log = source.log
    say_reading(log, source, say)
    distinct, duplicates = _without_duplicates(log, options.duplicates, source.place)
    say_duplicates(duplicates, options.duplicates, say)
    thinned = _thinned(distinct, options)
    if options.keep_share < 1:
        say(f"left out {len(distinct.frame) - len(thinned.frame):,} interactions by dataset.keep_share")
    flat, users, items = _keep(thinned, options, source.place)
    say(f"kept {len(flat.items):,} interactions of {len(users):,} users and {len(items):,} items")
    if extends:
        require_kept(extends, users, items, source.place)
        say(f"new users: {len(users) - extends.num_users:,}, new items: {len(items) - extends.num_items:,}")
    windows, splits, periods = _cut(flat, log.times, options, source.place)
    counts = left_out(flat, splits, windows, periods)
    say_left_out(counts, say)
    if extends:
        counts |= (known := trained_before(extends, flat, splits))
        say_trained_before(known, say)
    if not options.noise.is_none:
        flat = _with_noise(flat, splits["train"], options.noise, len(items), source.place)
        say(f"replaced {flat.num_replaced:,} training interactions by {options.noise.kind} noise")
    if flat.weights is not None:
        flat = replace(flat, weights=scaled(flat.weights, splits["train"], source.place))
    # A byte for each item stored, of which the compressed files take one or two: what has no room for these has none.
    num_items = len(flat.items) + sum(int(spans.lengths.sum()) for spans in splits.values())
    require_room(folder.parent, num_items, "The dataset's files, at the least,")
    with new_folder(folder) as new:
        leaked = {name: leaked_rows(flat, splits["train"], splits[name], len(items)) for name in ("valid", "test")}
        leaked["train"] = np.zeros(len(splits["train"]), bool)
        info = _write(new, flat, splits, leaked, options)
        _write_ids(new, splits["train"], flat, users, items)
        write_sequences(new / SEQUENCES, flat)
        write_log(new / LOG, log)
        log.bad_rows.write(new)
        described = describe(flat, splits, windows, leaked["test"], len(items))
        statistics = {**_describe_raw(log), **duplicates, **described, **counts}
        _require_expected(options.expected, statistics, source.place)
        info |= {"statistics": statistics, "num_items": len(items), "num_users": len(users)}
        info |= {"reading": account_of_reading(log)}
        info["files"] = checksums(new)
        identity = source.identity
        parent = extends.fingerprint if extends else None
        info |= {"options": options.model_dump(mode="json"), "fingerprint": fingerprint_of(options, identity, parent)}
        info |= {"extends": [each.model_dump() for each in lineage(extends)]} if extends else {}
        write_record(new / "dataset.json", info | {"source": identity})
    num_examples, num_shards = info["splits"]["train"]["num_examples"], info["num_shards"]
    say(f"wrote {folder}: {num_examples:,} training examples in {num_shards} shards, for at most so many ranks")
    return info


def kept(log: Log, options: DatasetOptions, place: Path) -> Flat:
    """The interactions that `prepare` keeps of a log, without preparing it; raises as it does."""
    distinct, _ = _without_duplicates(log, options.duplicates, place)
    return _keep(_thinned(distinct, options), options, place)[0]


def training_split(flat: Flat, times: Times, options: DatasetOptions, place: Path) -> Split:
    """The size of the training split that `prepare` makes of kept interactions, as one shard; raises as it does."""
    train = _cut(flat, times, options, place)[1]["train"]
    return Split("train", (len(train),), (int((train.lengths - 1).sum()),))


def require_same(folder: Path, options: DatasetOptions, table: Any = None, extends: Dataset | None = None) -> None:
    """UserError, which names what differs, unless `folder` was prepared from this log with these options.

    A table is read for that, files are only summed up. `extends` is the dataset that the log is appended to.
    """
    info, identity = read_json(folder / "dataset.json"), source_of(options, table).identity
    extended = extends.fingerprint if extends else None
    if info["fingerprint"] == fingerprint_of(options, identity, extended):
        return
    now = flatten(_deciding(options) | {"log": identity["sha256"], "extended dataset": extended})
    parent = info["extends"][0]["fingerprint"] if "extends" in info else None
    before = _deciding(DatasetOptions.model_validate(info["options"]))
    changes = differences(flatten(before | {"log": info["source"]["sha256"], "extended dataset": parent}), now)
    raise UserError(
        f"{folder} was prepared from another log, or with other options: {'; '.join(changes)}. Prepare into another "
        "folder, or remove this one first."
    )


def refuse_to_overwrite(folder: Path) -> None:
    """UserError if there is a dataset, or anything else, where one is to be written."""
    if (folder / "dataset.json").exists():
        raise UserError(f"{folder} already contains a prepared dataset; remove it, or prepare into another folder.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; prepare into a new one.")


def _without_duplicates(log: Log, rule: str, path: Path) -> tuple[Log, dict[str, int]]:
    """The log without the duplicates that the rule drops, and the counts of repeated and of dropped rows."""
    if rule == "exact" and not log.has_times:
        raise UserError(
            f"{path} has no timestamps, so a row written twice cannot be distinguished from an item taken twice; set "
            "dataset.duplicates to something other than exact."
        )
    frame = drop_duplicates(log.frame, rule)
    distinct = log.frame.select("user", "item", "timestamp", "rating").n_unique() if log.has_times else len(log.frame)
    counts = {"exact_duplicates": len(log.frame) - distinct, "dropped_as_duplicates": len(log.frame) - len(frame)}
    return replace(log, frame=frame), counts


def _thinned(log: Log, options: DatasetOptions) -> Log:
    """The share of the interactions that the options keep, in their order; with one seed, shares are nested."""
    if options.keep_share == 1:
        return log
    num = len(log.frame)
    order = np.random.RandomState([SHARE_STREAM, options.seed]).permutation(num)
    return replace(log, frame=log.frame[np.sort(order[: max(1, round(options.keep_share * num))])])


def _keep(log: Log, options: DatasetOptions, path: Path) -> tuple[Flat, pl.Series, pl.Series]:
    """The k-core: the interactions with final numbers, and the raw ids of 1, 2, …"""
    frame = log.frame
    users, items = frame["user"].to_numpy(), frame["item"].to_numpy()
    indices = k_core(users, items, options.min_interactions, options.k_core == "iterated")
    if len(indices) == 0:
        raise UserError(
            f"{path}: none of the {len(frame):,} interactions is left when each user and item needs "
            f"{options.min_interactions}; lower dataset.min_interactions."
        )
    frame = frame[indices]
    users, old_users = renumber(users[indices])
    items, old_items = renumber(items[indices])
    ratings = frame["rating"].to_arrow().cast("float32")
    times = frame["timestamp"].to_numpy() if log.has_times else None
    num_named = len(log.items) + len(log.other_items)
    true_items = _renumbered(frame["true_item"], old_items, num_named) if log.has_true_items else None
    periods = frame["period"].to_numpy() if "period" in frame.columns else None
    weights = frame["weight"].to_numpy() if "weight" in frame.columns else None
    flat = Flat(
        users,
        items,
        ratings,
        times,
        training_items=items,
        true_items=true_items,
        periods=periods,
        weights=weights,
    )
    return flat, log.users[old_users], log.items[old_items]


def _renumbered(numbers: pl.Series, old_items: np.ndarray, num_old: int) -> np.ndarray:
    """Items by their final numbers; 0 for nulls and for dropped items."""
    final = np.zeros(num_old + 1, np.int32)
    final[old_items] = np.arange(1, len(old_items) + 1)
    return final[numbers.fill_null(num_old).to_numpy()]


def _with_noise(flat: Flat, train: Spans, noise: NoiseOptions, num_items: int, path: Path) -> Flat:
    """The interactions, with a share of those in training rows replaced, each once for all rows that contain it."""
    indices = np.flatnonzero(covered(train, len(flat.items)))
    law = noise_law(noise.kind, training_counts(flat.items, train, num_items))
    try:
        source = NoiseSource(law)
    except ValueError:
        raise UserError(
            f"{path}: dataset.noise cannot replace any item, because all training interactions are with one item; "
            "remove dataset.noise."
        ) from None
    random = np.random.RandomState([NOISE_STREAM, noise.seed])
    training_items = flat.items.copy()
    training_items[indices], replaced = source.replace(flat.items[indices], noise.rate, random)
    return replace(flat, training_items=training_items, num_replaced=int(replaced.sum()))


def _cut(
    flat: Flat, times: Times, options: DatasetOptions, path: Path
) -> tuple[Spans, dict[str, Spans], Periods | None]:
    """The windows (for the temporal split those before the first cut), the rows of each split, and its periods."""
    lengths = np.bincount(flat.users)[1:]
    offsets = np.cumsum(lengths) - lengths
    rule = (options.window, options.windows, options.min_interactions)
    if options.split == "leave_one_out":
        windows = cut_windows(offsets, lengths, *rule)
        splits = leave_one_out(windows)
        _refuse_empty(splits, f"the longest of {len(windows):,} windows has {windows.lengths.max()} items", path)
        return windows, splits, None
    if flat.periods is not None:
        first, second = (np.bincount(flat.users[flat.periods < k], minlength=len(lengths) + 1)[1:] for k in (1, 2))
        periods = Periods(first, second, lengths)
        splits = every_row(offsets, periods, *rule)
        _refuse_empty(splits, "no row of its file has a history", path)
        return cut_windows(offsets, periods.before_first, *rule), splits, periods
    if flat.times is None:
        raise UserError(
            f"{path} has no timestamps, which dataset.split=temporal needs: name their column with "
            "dataset.columns.timestamp, or use leave_one_out."
        )
    cuts = temporal_cuts(flat.times, options.temporal_shares)
    befores = [flat.times < cut for cut in cuts]
    first, second = (np.bincount(flat.users[before], minlength=len(lengths) + 1)[1:] for before in befores)
    periods = Periods(first, second, lengths)
    splits = temporal(offsets, periods, *rule)
    _refuse_empty(splits, _why_empty(periods, times, cuts), path)
    return cut_windows(offsets, periods.before_first, *rule), splits, periods


def _refuse_empty(splits: dict[str, Spans], counts: str, path: Path) -> None:
    """UserError, with counts, if a split has no row."""
    empty = [name for name, spans in splits.items() if len(spans) == 0]
    if empty:
        raise UserError(
            f"{path}: the split '{empty[0]}' has no row: {counts}. Training needs two items of a sequence before the "
            "evaluated ones, and a target needs a history; change dataset.split, temporal_shares or min_interactions."
        )


def _why_empty(periods: Periods, times: Times, cuts: tuple[float, float]) -> str:
    users = [
        f"{periods.num_users(name):,} users have interactions {when} ({periods.num_without_history(name):,} of them a "
        "single one without history)"
        for name, when in (
            ("train", "before the first cut"),
            ("valid", "between the cuts"),
            ("test", "after the second"),
        )
    ]
    return f"the cuts are at {times.shown(cuts[0])} and {times.shown(cuts[1])}; {', '.join(users)}"


def _write(
    folder: Path, flat: Flat, splits: dict[str, Spans], leaked: dict[str, np.ndarray], options: DatasetOptions
) -> dict[str, Any]:
    num_rows = len(splits["train"])
    num_shards = min(automatic_shards(num_rows) if options.num_shards == "auto" else options.num_shards, num_rows)
    return {
        "format_version": FORMAT_VERSION,
        "window": options.window,
        "num_shards": num_shards,
        "splits": {
            name: write_split(folder, name, SplitRows.of(name, spans, flat, leaked[name]), num_shards, options.seed)
            for name, spans in splits.items()
        },
    }


def _write_ids(folder: Path, train: Spans, flat: Flat, users: pl.Series, items: pl.Series) -> None:
    """items.parquet and users.parquet: number, raw id, and training interactions (each counted once).

    Items have the number of training examples that they are the target of, too.
    """
    for name, raw, numbers in (("item", items, flat.training_items), ("user", users, flat.users)):
        columns = {
            name: pl.int_range(1, len(raw) + 1, dtype=pl.Int32, eager=True),
            "raw": raw,
            "count": training_counts(numbers, train, len(raw)),
        }
        if name == "item":
            columns["targets"] = target_counts(flat, train, len(raw))
        # Not by polars, whose errors do not say that a disk is full.
        pq.write_table(pl.DataFrame(columns).to_arrow(), folder / f"{name}s.parquet", write_page_checksum=True)


def _describe_raw(log: Log) -> dict[str, Any]:
    return {
        "raw_users": len(log.users),
        "raw_items": len(log.items),
        "raw_interactions": len(log.frame),
        "rows_without_id": log.num_without_id,
        "rows_without_time": log.num_without_time,
        "rows_not_kept": log.num_not_kept,
        "rows_unreadable": len(log.bad_rows),
    }


def _require_expected(expected: dict[str, int], statistics: dict[str, Any], path: Path) -> None:
    """UserError, which names every count that is not the expected one."""
    if unknown := sorted(expected.keys() - statistics.keys()):
        raise UserError(f"dataset.expected has no count {listed(unknown)}; there are {listed(sorted(statistics))}.")
    wrong = [
        f"{statistics[name]:,} {name} instead of {num:,}" for name, num in expected.items() if statistics[name] != num
    ]
    if wrong:
        raise UserError(
            f"{path} is not the log that dataset.expected describes: it has {listed(wrong)}. Use the edition that is "
            "meant, or remove dataset.expected."
        )


def identify(options: DatasetOptions) -> dict[str, Any]:
    """Name, reader, size and checksum of the log, and the fingerprint of the dataset that `prepare` makes of it.

    Raises:
        UserError: the log is missing.
    """
    identity = FileSource(options).identity
    return {**identity, "fingerprint": fingerprint_of(options, identity)}


def _deciding(options: DatasetOptions) -> dict[str, Any]:
    """The options that decide what is made of a log; the reader that was found stands in the place of `format`."""
    return options.model_dump(mode="json", exclude=undeciding(DatasetOptions) | {"format"})


def fingerprint_of(options: DatasetOptions, identity: dict[str, Any], extended: str | None = None) -> str:
    """Of the dataset that is made of a log with this reader and checksum, appended to one with that fingerprint."""
    origin = [identity["format"], identity["sha256"], *([extended] if extended else [])]
    return fingerprint([FORMAT_VERSION, _deciding(options), *origin])
