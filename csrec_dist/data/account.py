"""What `prepare` says of a log: how it was read, and what is left out of it and why."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from csrec_dist.data.log import Log
from csrec_dist.data.shards import Flat, covered
from csrec_dist.data.windows import EVALUATED_WINDOW, Periods, Spans
from csrec_dist.errors import listed

Say = Callable[[str], None]


def account_of_reading(log: Log) -> dict[str, Any]:
    """For dataset.json: the column of each role, how timestamps were read, and from when to when they go."""
    first, last = _time_span(log) or (None, None)
    columns = {"columns": log.taken, "columns_passed_over": list(log.passed_over)}
    return {**columns, "timestamps": log.times.how, "first_time": first, "last_time": last}


def say_reading(log: Log, files: list[Path], format: str, say: Say) -> None:
    """Files, reader, columns, times, numbers, and the rows that were dropped."""
    parts = f" and {len(files) - 1} more" if len(files) > 1 else ""
    say(
        f"read {files[0]}{parts} as {format}: "
        + listed(f"{role}: {name or 'none'}" for role, name in log.taken.items())
    )
    if log.passed_over:
        say(f"columns that were not taken, though their names are usual ones: {listed(log.passed_over)}")
    span = _time_span(log)
    if span is None:
        say("no timestamps: the order of the rows is taken for the order in time")
    else:
        say(f"timestamps: {log.times.how}, from {span[0]} to {span[1]}")
    say(f"read {len(log.frame):,} interactions of {len(log.users):,} users and {len(log.items):,} items")
    for num, lacking in ((log.num_without_id, "a user or an item"), (log.num_without_time, "a timestamp")):
        if num:
            say(f"dropped {num:,} row{'s' * (num > 1)} without {lacking}")


def say_duplicates(counts: dict[str, int], rule: str, say: Say) -> None:
    """Rows that repeat another one, or that were dropped as duplicates."""
    if rule != "keep":
        say(f"dropped {counts['dropped_as_duplicates']:,} rows as duplicates (duplicates: {rule})")
    elif counts["exact_duplicates"]:
        say(
            f"{counts['exact_duplicates']:,} rows repeat another one with the same user, item, timestamp and rating: "
            "dataset.duplicates: exact would drop them"
        )


def left_out(flat: Flat, splits: dict[str, Spans], windows: Spans, periods: Periods | None) -> dict[str, int]:
    """Counts, for dataset.json, of the kept interactions that are in no row, and of what is not evaluated."""
    in_rows = np.zeros(len(flat.items), bool)
    for spans in splits.values():
        in_rows |= covered(spans, len(flat.items))
    counts = {"interactions_in_no_row": int((~in_rows).sum())}
    if periods is None:
        return counts | {"windows_not_evaluated": int((windows.lengths < EVALUATED_WINDOW).sum())}
    return counts | {f"{name}_users_without_history": periods.num_without_history(name) for name in ("valid", "test")}


def say_left_out(counts: dict[str, int], say: Say) -> None:
    """What `left_out` counted, where it is not zero."""
    texts = {
        "interactions_in_no_row": "interactions are in no row of train, valid and test",
        "windows_not_evaluated": f"windows of fewer than {EVALUATED_WINDOW} items are not evaluated",
        "valid_users_without_history": "users have one interaction between the cuts and none before to validate with",
        "test_users_without_history": "users have one interaction after the second cut and none before to test with",
    }
    for name, num in counts.items():
        if num:
            say(f"left out: {num:,} {texts[name]}")


def _time_span(log: Log) -> tuple[str, str] | None:
    if not log.has_times:
        return None
    times = log.frame["timestamp"]
    return log.times.shown(times.min()), log.times.shown(times.max())  # type: ignore[arg-type]
