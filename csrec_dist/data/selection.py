"""What the options of a dataset make of a log in memory: which interactions stay, the rows of each split, the noise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from csrec_dist.data.dataset import Split
from csrec_dist.data.log import Log, drop_duplicates, exact_columns, k_core, renumber
from csrec_dist.data.noise import NoiseSource, noise_law
from csrec_dist.data.options import DatasetOptions, NoiseOptions
from csrec_dist.data.shards import Flat, covered
from csrec_dist.data.statistics import training_counts
from csrec_dist.data.times import Times
from csrec_dist.data.windows import Periods, Spans, cut_windows, every_row, leave_one_out, temporal, temporal_cuts
from csrec_dist.errors import UserError

NOISE_STREAM = 0x6E6F6973  # separates the noise from the assignment of rows to shards, which may have the same seed
SHARE_STREAM = 0x73686172  # and this, the choice of the interactions that stay


def interactions_of(log: Log, options: DatasetOptions, place: Path) -> Flat:
    """The interactions that `prepare` keeps of a log, without preparing it; raises as it does."""
    distinct, _ = without_duplicates(log, options.duplicates, place)
    return keep_frequent(sampled(distinct, options), options, place)[0]


def without_duplicates(log: Log, rule: str, path: Path) -> tuple[Log, dict[str, int]]:
    """The log without the duplicates that the rule drops, and the counts of repeated and of dropped rows."""
    if rule == "exact" and not log.has_times:
        raise UserError(
            f"{path} has no timestamps, so a row written twice cannot be distinguished from an item taken twice; set "
            "dataset.duplicates to something other than exact."
        )
    frame = drop_duplicates(log.frame, rule)
    distinct = log.frame.select(exact_columns(log.frame)).n_unique() if log.has_times else len(log.frame)
    counts = {"exact_duplicates": len(log.frame) - distinct, "dropped_as_duplicates": len(log.frame) - len(frame)}
    return replace(log, frame=frame), counts


def sampled(log: Log, options: DatasetOptions) -> Log:
    """The share of the interactions that the options keep, in their order; with one seed, shares are nested."""
    if options.keep_share == 1:
        return log
    num = len(log.frame)
    order = np.random.RandomState([SHARE_STREAM, options.seed]).permutation(num)
    return replace(log, frame=log.frame[np.sort(order[: max(1, round(options.keep_share * num))])])


def keep_frequent(log: Log, options: DatasetOptions, path: Path) -> tuple[Flat, pl.Series, pl.Series]:
    """The k-core: the interactions with final numbers, and the raw ids of 1, 2, …"""
    frame = log.frame
    users, items = frame["user"].to_numpy(), frame["item"].to_numpy()
    indices = k_core(users, items, options.min_interactions, options.k_core == "iterated")
    if len(indices) == 0:
        is_share = options.keep_share < 1
        raise UserError(
            f"{path}: none of the {len(frame):,} interactions{' of dataset.keep_share' * is_share} is left when each "
            f"user and item needs {options.min_interactions}; lower dataset.min_interactions"
            f"{', or raise dataset.keep_share' * is_share}."
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


def training_split(flat: Flat, times: Times, options: DatasetOptions, place: Path) -> Split:
    """The size of the training split that `prepare` makes of kept interactions, as one shard; raises as it does."""
    train = cut_splits(flat, times, options, place)[1]["train"]
    return Split("train", (len(train),), (int((train.lengths - 1).sum()),))


def cut_splits(
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
            "evaluated ones, and a target needs a history; change dataset.split, window (with leave_one_out at least "
            "4), temporal_shares or min_interactions."
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


def with_noise(flat: Flat, train: Spans, noise: NoiseOptions, num_items: int, path: Path) -> Flat:
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
