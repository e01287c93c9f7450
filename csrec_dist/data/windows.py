"""Cuts sequences into windows, and windows (or time) into training, validation and test rows.

Interactions are in one flat order, by user and time. A row is a span of that order, so nothing is copied here.
"""

from dataclasses import dataclass

import numpy as np

TRAIN_ROW = 2  # items: a training row needs a history and a target
EVALUATED_WINDOW = 3  # items: leave-one-out takes two of them as targets, and the history needs one


@dataclass(frozen=True)
class Spans:
    """Rows as half-open spans [start, stop) of the flat interactions; all arrays [rows]."""

    users: np.ndarray  # 1…num_users
    starts: np.ndarray
    stops: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> np.ndarray:
        """The number of items in each row, including the target."""
        return self.stops - self.starts

    def where(self, mask: np.ndarray) -> "Spans":
        """The rows for which the mask is true."""
        return Spans(self.users[mask], self.starts[mask], self.stops[mask])

    def shortened(self, num_items: np.ndarray | int) -> "Spans":
        """The rows without their last `num_items` items."""
        return Spans(self.users, self.starts, self.stops - num_items)


def cut_windows(offsets: np.ndarray, lengths: np.ndarray, window: int, rule: str, min_head: int) -> Spans:
    """Cut the sequences [offset, offset + length) into windows of at most `window` items, by user, oldest first.

    disjoint: windows are cut from the end at stride `window`; the rest at the head is kept if it has `min_head` items.
    paper: windows are cut in the same way; a rest at the head becomes the first `window` items, which overlap.
    last: only the last `window` items are kept.
    A sequence that is no longer than the window stays whole under every rule; an empty one has no window.
    """
    num_full, rest = lengths // window, lengths % window
    if rule == "last":
        num_full, has_head = np.minimum(num_full, 1), (num_full == 0) & (rest > 0)
    else:
        has_head = (rest >= np.where(num_full == 0, 1, min_head)) if rule == "disjoint" else rest > 0
    counts = num_full + has_head
    users = np.repeat(np.arange(len(lengths)), counts)
    num_later = np.repeat(np.cumsum(counts), counts) - np.arange(len(users)) - 1  # windows of the user after this one
    stops = lengths[users] - num_later * window
    starts = np.maximum(stops - window, 0)
    if rule == "paper":
        stops = np.minimum(starts + window, lengths[users])
    return Spans(users + 1, offsets[users] + starts, offsets[users] + stops)


def leave_one_out(windows: Spans) -> dict[str, Spans]:
    """Test on each window's last item, validate on the one before it, and train on the rest.

    A window with fewer than three items is used whole for training and is not evaluated. Training rows without an
    example (fewer than two items) are dropped.
    """
    evaluated = windows.lengths >= EVALUATED_WINDOW
    train = windows.shortened(2 * evaluated)
    return {
        "train": train.where(train.lengths >= TRAIN_ROW),
        "valid": windows.where(evaluated).shortened(1),
        "test": windows.where(evaluated),
    }


def temporal_cuts(times: np.ndarray, shares: tuple[float, float, float]) -> tuple[float, float]:
    """The times of the two cuts: at most the first share of the times, and the first two, are before them."""
    ascending = np.sort(times)
    first, second = (min(int(share * len(times)), len(times) - 1) for share in (shares[0], shares[0] + shares[1]))
    return ascending[first], ascending[second]


@dataclass(frozen=True)
class Periods:
    """Each user's number of interactions before the first cut, before the second, and in total: all [users]."""

    before_first: np.ndarray
    before_second: np.ndarray
    lengths: np.ndarray

    def bounds(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Each user's interactions [begin, end) in the period of "train", "valid" or "test"."""
        edges = [np.zeros_like(self.lengths), self.before_first, self.before_second, self.lengths]
        period = ("train", "valid", "test").index(split)
        return edges[period], edges[period + 1]

    def num_users(self, split: str) -> int:
        """The number of users with an interaction in the split's period."""
        begins, ends = self.bounds(split)
        return int((begins < ends).sum())

    def num_without_history(self, split: str) -> int:
        """The number of users whose only interaction by the end of the period is in it, so that it has no history."""
        begins, ends = self.bounds(split)
        return int(((begins == 0) & (ends == 1)).sum())

    def num_first(self, split: str) -> int:
        """The number of users whose first interaction of all is in the split's period."""
        begins, ends = self.bounds(split)
        return int(((begins == 0) & (ends > 0)).sum())


def temporal(offsets: np.ndarray, periods: Periods, window: int, rule: str, min_head: int) -> dict[str, Spans]:
    """Split at two cuts in global time.

    Training windows are cut by the rule from the interactions before the first cut. Validation has one row for each
    user with an interaction between the cuts, test one for each user with an interaction after the second. The row's
    target is the user's first interaction in the period, and its history is all before. If there is none before, as for
    a session that begins after the cut, the target is the user's last interaction in the period and the history is the
    session so far. A history has at most `window` - 1 items; users without a history are not evaluated.
    """
    train = cut_windows(offsets, periods.before_first, window, rule, min_head)
    return {
        "train": train.where(train.lengths >= TRAIN_ROW),
        "valid": _targets(offsets, *periods.bounds("valid"), window),
        "test": _targets(offsets, *periods.bounds("test"), window),
    }


def every_row(offsets: np.ndarray, periods: Periods, window: int, rule: str, min_head: int) -> dict[str, Spans]:
    """The split that is given: training windows cut by the rule, and a row for each interaction of the other periods.

    The row's target is the interaction, and its history is all of the user's before it, those of earlier periods and
    of its own; it has at most `window` - 1 items. Interactions without a history are not evaluated.
    """
    train = cut_windows(offsets, periods.before_first, window, rule, min_head)
    return {
        "train": train.where(train.lengths >= TRAIN_ROW),
        "valid": _every_target(offsets, *periods.bounds("valid"), window),
        "test": _every_target(offsets, *periods.bounds("test"), window),
    }


def _every_target(offsets: np.ndarray, begins: np.ndarray, ends: np.ndarray, window: int) -> Spans:
    """One row for each interaction in [begin, end) that has a history."""
    lengths = ends - begins
    users = np.repeat(np.arange(len(offsets)), lengths)
    targets = np.arange(len(users)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + begins[users]
    starts = np.maximum(targets + 1 - window, 0)
    rows = Spans(users + 1, offsets[users] + starts, offsets[users] + targets + 1)
    return rows.where(targets > 0)


def _targets(offsets: np.ndarray, begins: np.ndarray, ends: np.ndarray, window: int) -> Spans:
    """One row for each user with an interaction in [begin, end) that has a history."""
    targets = np.where(begins > 0, begins, ends - 1)
    starts = np.maximum(targets + 1 - window, 0)
    rows = Spans(np.arange(1, len(offsets) + 1), offsets + starts, offsets + targets + 1)
    return rows.where((begins < ends) & (targets > 0))
