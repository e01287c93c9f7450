"""What `prepare` reports about a log: how it was read, and which rows it leaves out and why."""

from collections.abc import Callable
from typing import Any

import numpy as np

from csrec_dist.data.log import Log
from csrec_dist.data.shards import Flat, covered
from csrec_dist.data.windows import EVALUATED_WINDOW, Periods, Spans
from csrec_dist.errors import listed

Say = Callable[[str], None]


def account_of_reading(log: Log) -> dict[str, Any]:
    """For dataset.json: the column of each role, how timestamps were read, bad rows."""
    first, last = _time_span(log) or (None, None)
    columns = {"columns": log.taken, "columns_passed_over": list(log.passed_over)}
    times = {
        "timestamps": log.times.how,
        "times_per_second": log.times.unit,
        "times_have_zone": log.times.has_zone,
    }
    bad_rows = {"bad_rows": dict(log.bad_rows.counts)} if log.bad_rows else {}
    return {**columns, **times, "first_time": first, "last_time": last, **bad_rows}


def say_reading(log: Log, source: object, say: Say) -> None:
    """Report the log's source, its columns, times and counts, and dropped rows."""
    say(f"read {source}: " + listed(f"{role}: {name or 'none'}" for role, name in log.taken.items()))
    if log.passed_over:
        say(f"columns not used, although they have usual names: {listed(log.passed_over)}")
    span = _time_span(log)
    if span is None:
        say("no timestamps: the order of the rows counts as the order in time")
    else:
        say(f"timestamps: {log.times.how}, from {span[0]} to {span[1]}")
    say(f"read {len(log.frame):,} interactions of {len(log.users):,} users and {len(log.items):,} items")
    if log.num_not_kept:
        say(f"left out {log.num_not_kept:,} row{'s' * (log.num_not_kept > 1)} by dataset.keep")
    if "weight" in log.frame.columns:
        weights = log.frame["weight"].value_counts(sort=True).rows()
        say("weights of interactions: " + listed(f"{weight:g} ({num:,} rows)" for weight, num in weights))
    if log.bad_rows:
        num = len(log.bad_rows)
        say(f"skipped {num:,} row{'s' * (num > 1)} that cannot be read (on_bad_rows: skip): {log.bad_rows}")
    for num, lacking in ((log.num_without_id, "a user or an item"), (log.num_without_time, "a timestamp")):
        if num:
            say(f"dropped {num:,} row{'s' * (num > 1)} without {lacking}")


def say_duplicates(counts: dict[str, int], rule: str, say: Say) -> None:
    """Report rows that repeat another one, or that were dropped as duplicates."""
    if rule != "keep":
        say(f"dropped {counts['dropped_as_duplicates']:,} rows as duplicates (duplicates: {rule})")
    elif counts["exact_duplicates"]:
        say(
            f"{counts['exact_duplicates']:,} rows repeat the user, item, timestamp and rating of another row; "
            "set dataset.duplicates: exact to drop them"
        )


def left_out(flat: Flat, splits: dict[str, Spans], windows: Spans, periods: Periods | None) -> dict[str, int]:
    """Counts, for dataset.json, of kept interactions that are in no row, and of windows or users not evaluated."""
    in_rows = np.zeros(len(flat.items), bool)
    for spans in splits.values():
        in_rows |= covered(spans, len(flat.items))
    counts = {"interactions_in_no_row": int((~in_rows).sum())}
    if periods is None:
        return counts | {"windows_not_evaluated": int((windows.lengths < EVALUATED_WINDOW).sum())}
    if flat.periods is not None:
        return counts | {f"{name}_rows_without_history": periods.num_first(name) for name in ("valid", "test")}
    return counts | {f"{name}_users_without_history": periods.num_without_history(name) for name in ("valid", "test")}


def say_left_out(counts: dict[str, int], say: Say) -> None:
    """Report the counts of `left_out` that are not zero."""
    texts = {
        "interactions_in_no_row": "interactions are in no row of train, valid or test",
        "windows_not_evaluated": f"windows with fewer than {EVALUATED_WINDOW} items are not evaluated",
        "valid_users_without_history": "users have a single interaction between the cuts and no history to predict it",
        "test_users_without_history": "users have a single interaction after the last cut and no history to predict it",
        "valid_rows_without_history": "rows of valid_source are a user's first interaction, without a history",
        "test_rows_without_history": "rows of test_source are a user's first interaction, without a history",
    }
    for name, num in counts.items():
        if num:
            say(f"left out: {num:,} {texts[name]}")


def say_trained_before(counts: dict[str, int], say: Say) -> None:
    """Report the counts of `trained_before` if there are any."""
    if any(counts.values()):
        valid, test = counts.values()
        say(
            f"{valid:,} validation and {test:,} test targets were training targets of the dataset that is extended: "
            "models that were trained on it know them"
        )


def _time_span(log: Log) -> tuple[str, str] | None:
    if not log.has_times:
        return None
    times = log.frame["timestamp"]
    return log.times.shown(times.min()), log.times.shown(times.max())  # type: ignore[arg-type]
