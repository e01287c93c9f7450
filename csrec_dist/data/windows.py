"""Cutting: sequences into windows, windows (or time) into training, validation and test rows.

Interactions lie in one flat order, by user and time. A row is a span of it, so nothing is copied here.
"""

from dataclasses import dataclass

import numpy as np

TRAIN_ROW = 2  # a training row needs a history and a target
EVALUATED_WINDOW = 3  # leave-one-out takes two items off


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
        """Items of each row, targets included."""
        return self.stops - self.starts

    def where(self, mask: np.ndarray) -> "Spans":
        """The rows at which the mask holds."""
        return Spans(self.users[mask], self.starts[mask], self.stops[mask])

    def shortened(self, num_items: np.ndarray | int) -> "Spans":
        """The rows without their last `num_items` items."""
        return Spans(self.users, self.starts, self.stops - num_items)


def cut_windows(offsets: np.ndarray, lengths: np.ndarray, window: int, rule: str, min_head: int) -> Spans:
    """Windows of at most `window` items of the sequences [offset, offset + length), user by user, oldest first.

    disjoint: cut from the end at stride `window`; what remains at the head is kept if it has `min_head` items.
    paper: cut from the end likewise; a remaining head gives the first `window` items, which overlap.
    last: the last `window` items only.
    A sequence no longer than the window stays whole under each rule; an empty one gives none.
    """
    full, rest = lengths // window, lengths % window
    if rule == "last":
        full, head = np.minimum(full, 1), (full == 0) & (rest > 0)
    else:
        head = (rest >= np.where(full == 0, 1, min_head)) if rule == "disjoint" else rest > 0
    counts = full + head
    users = np.repeat(np.arange(len(lengths)), counts)
    place_from_end = np.repeat(np.cumsum(counts), counts) - np.arange(len(users))
    stops = lengths[users] - (place_from_end - 1) * window
    starts = np.maximum(stops - window, 0)
    if rule == "paper":
        stops = np.minimum(starts + window, lengths[users])
    return Spans(users + 1, offsets[users] + starts, offsets[users] + stops)


def leave_one_out(windows: Spans) -> dict[str, Spans]:
    """Each window's last item is the test target, the one before it the validation target, the rest trains.

    A window of fewer than three items trains whole and is not evaluated. Training rows without an
    example (fewer than two items) are left out.
    """
    evaluated = windows.lengths >= EVALUATED_WINDOW
    train = windows.shortened(2 * evaluated)
    return {
        "train": train.where(train.lengths >= TRAIN_ROW),
        "valid": windows.where(evaluated).shortened(1),
        "test": windows.where(evaluated),
    }


def temporal_cuts(times: np.ndarray, shares: tuple[float, float, float]) -> tuple[float, float]:
    """The times of the two cuts; at most shares[0] (shares[0] + shares[1]) of the times lie before them."""
    ordered = np.sort(times)
    first, second = (min(int(share * len(times)), len(times) - 1) for share in (shares[0], shares[0] + shares[1]))
    return ordered[first], ordered[second]


@dataclass(frozen=True)
class Periods:
    """How many of each user's interactions lie before the first and before the second cut, and in all: [users] each."""

    before_first: np.ndarray
    before_second: np.ndarray
    lengths: np.ndarray

    def bounds(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Each user's interactions [begin, end) in the time of "train", "valid" or "test"."""
        edges = [np.zeros_like(self.lengths), self.before_first, self.before_second, self.lengths]
        number = ("train", "valid", "test").index(split)
        return edges[number], edges[number + 1]

    def num_users(self, split: str) -> int:
        """Users with an interaction in that time."""
        begins, ends = self.bounds(split)
        return int((begins < ends).sum())

    def num_without_history(self, split: str) -> int:
        """Users whose only interaction up to the end of that time lies in it: there is nothing to predict it from."""
        begins, ends = self.bounds(split)
        return int(((begins == 0) & (ends == 1)).sum())


def temporal(offsets: np.ndarray, periods: Periods, window: int, rule: str, min_head: int) -> dict[str, Spans]:
    """Split at two cuts in global time.

    Training windows are cut by the rule from what lies before the first cut. Validation has one row for each user with
    an interaction between the cuts, test for each with one after the second. Its target is the first of them, predicted
    from what lies before it; where nothing does, as with a session that begins after the cut, the target is the last
    of them and the history the session so far. A history has at most `window` - 1 items; users without one are not
    evaluated.
    """
    train = cut_windows(offsets, periods.before_first, window, rule, min_head)
    return {
        "train": train.where(train.lengths >= TRAIN_ROW),
        "valid": _targets(offsets, *periods.bounds("valid"), window),
        "test": _targets(offsets, *periods.bounds("test"), window),
    }


def _targets(offsets: np.ndarray, begins: np.ndarray, ends: np.ndarray, window: int) -> Spans:
    """One row for each user with an interaction in [begin, end) and one before it."""
    targets = np.where(begins > 0, begins, ends - 1)
    starts = np.maximum(targets + 1 - window, 0)
    rows = Spans(np.arange(1, len(offsets) + 1), offsets + starts, offsets + targets + 1)
    return rows.where((begins < ends) & (targets > 0))
