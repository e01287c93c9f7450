"""A raw log as `init` sees it: read as `prepare` reads it, with the options that fit it, and how they were found."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from csrec_dist.config import set_key
from csrec_dist.data.columns import NONE, REQUIRED, UnclearColumnError, UnclearHeaderError
from csrec_dist.data.dataset import Split
from csrec_dist.data.log import Log, drop_duplicates
from csrec_dist.data.options import DatasetOptions
from csrec_dist.data.selection import interactions_of, training_split
from csrec_dist.data.sources import FileSource
from csrec_dist.errors import UserError, listed, quoted
from csrec_dist.init.asking import Decisions

WINDOWS = (10, 20, 50, 100, 200)
SHARE_WHOLE = 0.75
"""The window holds the whole sequences of at least so many users, if one of WINDOWS does."""
MINIMA = (5, 3, 2, 1)
SHARE_KEPT = 0.5
"""The first of MINIMA that keeps at least so many interactions is taken."""
A_DAY = 86_400


@dataclass(frozen=True)
class Reading:
    """A log that is read, the options so far, and by their keys below `dataset` the reasons for those found here."""

    source: FileSource
    log: Log
    options: DatasetOptions
    reasons: dict[str, str]

    def having(self, key: str, value: Any, reason: str) -> "Reading":
        """The same with another option, and why."""
        options = with_options(self.options, {key: value})
        return replace(self, options=options, reasons={**self.reasons, key: reason})


@dataclass(frozen=True)
class Look(Reading):
    """A log with the options to prepare it, and what comes of them.

    `lengths` [users] are the interactions that are kept of each user, `train` is the size of the training split.
    """

    lengths: np.ndarray
    num_items: int
    train: Split


def look_at(options: DatasetOptions, given: Mapping[str, Any], decisions: Decisions) -> Look:
    """Read the log and find the options that are not `given`.

    Raises:
        UserError: the log cannot be read, or nothing is left of it; or its columns are unclear and nobody is asked.
    """
    reading = _read(options, decisions)
    log, place = reading.log, reading.source.place
    if "duplicates" not in given:
        reading = _with_duplicates(reading, decisions)
    if "min_interactions" not in given:
        reading = _with_minimum(reading)
    flat = interactions_of(log, reading.options, place)
    lengths = np.bincount(flat.users)[1:]
    if "window" not in given:
        reading = _with_window(reading, lengths)
    train = training_split(flat, log.times, reading.options, place)
    return Look(reading.source, log, reading.options, reading.reasons, lengths, int(flat.items.max()), train)


def with_options(options: DatasetOptions, changes: Mapping[str, Any]) -> DatasetOptions:
    """The options with other values; `columns.user` is a key, too."""
    values = options.model_dump(exclude_unset=True)
    for key, value in changes.items():
        set_key(values, key, value)
    return DatasetOptions.model_validate(values)


def _read(options: DatasetOptions, decisions: Decisions) -> Reading:
    """The log; what its first line does not tell is asked for."""
    reasons: dict[str, str] = {}
    while True:
        try:
            source = FileSource(options)
            return Reading(source, source.log, options, reasons)
        except UnclearColumnError as unclear:
            key = f"columns.{unclear.role}"
            column, reasons[key] = _column(unclear, decisions)
            options = with_options(options, {key: column})
        except UnclearHeaderError as unclear:
            changes = _header(unclear, decisions)
            reasons |= dict.fromkeys(changes, "chosen")
            options = with_options(options, changes)


def _header(unclear: UnclearHeaderError, decisions: Decisions) -> dict[str, Any]:
    """Whether the first line names the columns and, if not, their positions; the error itself where nobody can say."""
    if not decisions.is_asking:
        example = '--set dataset.header=false --set "dataset.columns={user: 1, item: 2, timestamp: 3}"'
        raise UserError(f"{unclear} Give init the same, such as {example}, or answer it at a terminal.")
    shown = listed(f"{position}: {quoted(value)}" for position, value in enumerate(unclear.values, 1))
    question = f"The first line is {shown}. Is it an interaction, and not the names of the columns?"
    if not decisions.choose_yes(question, True, ""):
        return {"header": True}
    changes: dict[str, Any] = {"header": False}
    free = [str(position) for position in range(1, len(unclear.values) + 1)]
    for role in (*REQUIRED, "timestamp", "rating"):
        optional = [] if role in REQUIRED else [NONE]
        chosen = decisions.choose(f"At which position is the {role}?", [*optional, *free], "".join(optional), "")
        if not chosen:
            raise unclear
        changes[f"columns.{role}"] = NONE if chosen == NONE else int(chosen)
        free = [position for position in free if position != chosen]
    return changes


def _column(unclear: UnclearColumnError, decisions: Decisions) -> tuple[str, str]:
    """The column of a role, and why; the error itself where nobody can say it."""
    role, names, likely = unclear.role, unclear.names, unclear.likely
    if likely:
        reason = f"a sequence has the items of a {likely[0]}; {likely[1]} is there, too"
        chosen = decisions.choose("Whose items make a sequence?", likely, likely[0], reason)
        return chosen, reason if chosen == likely[0] else f"chosen; {likely[0]} is there, too"
    if role == "timestamp":
        reason = (
            f"no column is named like a time, so the rows of each user count as in order of time (timestamp: {NONE})"
        )
        question = f"Which column is the time? {NONE}: each user's rows are in order already."
        chosen = decisions.choose(question, [NONE, *names], NONE, reason)
        return chosen, "each user's rows are in order of time" if chosen == NONE else "chosen"
    assert role in REQUIRED
    chosen = decisions.choose(f"Which column is the {role}?", names, "", "") if decisions.is_asking else ""
    if not chosen:
        raise UserError(f"{unclear} Give init --set dataset.columns.{role}=NAME, or answer it at a terminal.")
    return chosen, "chosen"


def _with_duplicates(reading: Reading, decisions: Decisions) -> Reading:
    """Rows that repeat another one in all that is read: often written twice, unless times are whole days."""
    num = num_exact(reading.log)
    if not num:
        return reading
    is_fine = not _has_days(reading.log)
    is_dropped = decisions.choose_yes(
        f"{num:,} rows repeat the user, item, time and rating of another one. Drop them?",
        is_fine,
        f"{num:,} rows repeat another one to the "
        + ("second, so they are dropped (duplicates: exact)" if is_fine else "day, and are kept (duplicates: keep)"),
    )
    what = "repeat another one, time and rating included"
    return reading.having("duplicates", "exact" if is_dropped else "keep", f"{num:,} rows {what}")


def _with_minimum(reading: Reading) -> Reading:
    """The largest usual minimum that leaves most of the log."""
    total = reading.log.frame.height
    for minimum in MINIMA:
        options = with_options(reading.options, {"min_interactions": minimum})
        try:
            left = len(interactions_of(reading.log, options, reading.source.place).items)
        except UserError:  # nothing is left, or there is another mistake, which no minimum mends
            if minimum == MINIMA[-1]:
                raise
            continue
        if left >= SHARE_KEPT * total or minimum == MINIMA[-1]:
            reason = f"users and items with fewer are left out; {left:,} of {total:,} interactions stay"
            return reading.having("min_interactions", minimum, reason)
    raise AssertionError("a minimum of one leaves everything")


def _with_window(reading: Reading, lengths: np.ndarray) -> Reading:
    """The smallest usual window that holds most sequences whole."""
    fits = [window for window in WINDOWS if np.mean(lengths <= window) >= SHARE_WHOLE]
    window = fits[0] if fits else WINDOWS[-1]
    longer = np.mean(lengths > window)
    reason = (
        f"{longer:.0%} of the sequences are longer, and cut into several" if longer else "holds each sequence whole"
    )
    return reading.having("window", window, reason)


def num_exact(log: Log) -> int:
    """Rows that repeat the user, item, time and rating of another one; 0 without times, which would tell them apart."""
    return len(log.frame) - len(drop_duplicates(log.frame, "exact")) if log.has_times else 0


def _has_days(log: Log) -> bool:
    """Whether all times are whole days."""
    unit = log.times.unit
    return unit is not None and bool((log.frame["timestamp"] % (A_DAY * unit) == 0).all())
