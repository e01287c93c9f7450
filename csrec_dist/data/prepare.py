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
from csrec_dist.data.dataset import FORMAT_VERSION, LOG, SEQUENCES, Dataset
from csrec_dist.data.log import Log
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.selection import cut_splits, keep_frequent, sampled, with_noise, without_duplicates
from csrec_dist.data.shards import Flat, SplitRows, automatic_shards, write_sequences, write_split
from csrec_dist.data.sources import FileSource, Source, source_of
from csrec_dist.data.statistics import describe, leaked_rows, target_counts, training_counts
from csrec_dist.data.weights import scaled
from csrec_dist.data.windows import Spans
from csrec_dist.errors import UserError, listed
from csrec_dist.files import (
    differences,
    fingerprint,
    flatten,
    new_folder,
    parquet_checksums,
    read_json,
    write_record,
)
from csrec_dist.lock import locked
from csrec_dist.options import undeciding
from csrec_dist.storage import require_room
from csrec_dist.writers import remove_leftovers


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
    distinct, duplicates = without_duplicates(log, options.duplicates, source.place)
    say_duplicates(duplicates, options.duplicates, say)
    sample = sampled(distinct, options)
    if options.keep_share < 1:
        say(f"left out {len(distinct.frame) - len(sample.frame):,} interactions by dataset.keep_share")
    flat, users, items = keep_frequent(sample, options, source.place)
    say(f"kept {len(flat.items):,} interactions of {len(users):,} users and {len(items):,} items")
    if extends:
        require_kept(extends, users, items, source.place)
        say(f"new users: {len(users) - extends.num_users:,}, new items: {len(items) - extends.num_items:,}")
    windows, splits, periods = cut_splits(flat, log.times, options, source.place)
    counts = left_out(flat, splits, windows, periods)
    say_left_out(counts, say)
    if extends:
        counts |= (known := trained_before(extends, flat, splits))
        say_trained_before(known, say)
    if not options.noise.is_none:
        flat = with_noise(flat, splits["train"], options.noise, len(items), source.place)
        say(f"replaced {flat.num_replaced:,} training interactions by {options.noise.kind} noise")
    if len(items) < 2:
        raise UserError(f"{source.place} has interactions with one item alone: there is nothing to choose between.")
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
        info["files"] = parquet_checksums(new)
        identity = source.identity
        parent = extends.fingerprint if extends else None
        info |= {"options": options.model_dump(mode="json"), "fingerprint": fingerprint_of(options, identity, parent)}
        info |= {"extends": [each.model_dump() for each in lineage(extends)]} if extends else {}
        write_record(new / "dataset.json", info | {"source": identity})
    num_examples, num_shards = info["splits"]["train"]["num_examples"], info["num_shards"]
    say(f"wrote {folder}: {num_examples:,} training examples in {num_shards} shards, for at most so many ranks")
    return info


def require_same(folder: Path, options: DatasetOptions, table: Any = None, extends: Dataset | None = None) -> None:
    """UserError, which names what differs, unless `folder` was prepared from this log with these options.

    A table is read for that, files are only summed up. `extends` is the dataset that the log is appended to.
    """
    info, identity = read_json(folder / "dataset.json"), source_of(options, table).identity
    extended = extends.fingerprint if extends else None
    if info["fingerprint"] == fingerprint_of(options, identity, extended):
        return
    now = flatten(_deciding(options) | {"extended dataset": extended})
    parent = info["extends"][0]["fingerprint"] if "extends" in info else None
    before = _deciding(DatasetOptions.model_validate(info["options"]))
    changes = differences(flatten(before | {"extended dataset": parent}), now)
    if info["source"]["sha256"] != identity["sha256"]:
        changes.append(
            f"the log has other rows than that of {info['num_users']:,} users and {info['num_items']:,} items, "
            "or the same in another order"
        )
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
