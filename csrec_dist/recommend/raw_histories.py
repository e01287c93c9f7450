"""How users and histories that are named by raw ids become numbers, and what is said of ids that are unknown."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from csrec_dist.data.ids import RawIds
from csrec_dist.errors import UserError, listed, quoted
from csrec_dist.recommend.ranked import History

SHOWN = 3
"""How many unknown items, and skipped histories, a message names."""


class KnownItems:
    """Reads histories of raw ids, and counts the items that the model does not know."""

    def __init__(self, items: RawIds, place: str) -> None:
        """`place` is what a message calls the histories."""
        self._items, self._place = items, place
        self.num_unknown = self.num_skipped = 0
        self._unknown: list[str] = []
        self._skipped: list[str] = []

    def of(self, history: Iterable[Any], user: Any = None) -> list[int]:
        """The numbers of the known items, in their order; a history without any, of `user`, is counted as skipped."""
        known = []
        for raw in history:
            number = self._items.number(raw)
            if number is not None:
                known.append(number)
                continue
            self.num_unknown += 1
            if len(self._unknown) < SHOWN and (name := quoted(raw)) not in self._unknown:
                self._unknown.append(name)
        if not known:
            self.num_skipped += 1
            self._skipped += [quoted(user)] if len(self._skipped) < SHOWN else []
        return known

    def __str__(self) -> str:
        """How many items are unknown, and how many histories have no known item; empty where there are none."""
        said = said_of_skips(self._place, self.num_unknown, self.num_skipped)
        if self._unknown:
            said += f"; unknown: {', '.join(self._unknown)}{', …' * (self.num_unknown > len(self._unknown))}"
            said += f", known such as {quoted(self._items.values[0].as_py())}"
        if self._skipped:
            said += f"; skipped: {', '.join(self._skipped)}{', …' * (self.num_skipped > len(self._skipped))}"
        return said


def said_of_skips(place: str, num_unknown: int, num_skipped: int) -> str:
    """The items of some histories that are unknown, and the histories that were skipped, in a sentence; or nothing."""
    unknown = f"{num_unknown:,} items of {place} are not in the dataset" if num_unknown else ""
    skipped = f"{num_skipped:,} histories without a known item were skipped" if num_skipped else ""
    return ", and ".join(filter(None, (unknown, skipped)))


def numbers_of_users(users: Iterable[Any], ids: RawIds, unknown_users: str = "error") -> list[int]:
    """The users' numbers; those who are unknown are skipped with a warning, or named in a UserError.

    Raises:
        UserError: a user is unknown and `unknown_users` is "error", or it is neither this nor "skip".
    """
    if unknown_users not in ("error", "skip"):
        raise UserError(f'unknown_users is "error" or "skip", not {quoted(unknown_users)}.')
    raw = list(checked(users, "users"))
    numbers = [ids.number(user) for user in raw]
    unknown = [user for user, number in zip(raw, numbers, strict=True) if number is None]
    if unknown and unknown_users == "error":
        raise UserError(
            f"The dataset has no user {listed(map(quoted, unknown))}; it has {len(ids):,} users, such as "
            f"{quoted(ids.values[0].as_py())}. Give new users by their histories."
        )
    if unknown:
        shown = ", ".join(map(quoted, unknown[:SHOWN])) + ", …" * (len(unknown) > SHOWN)
        warnings.warn(f"{len(unknown):,} users are not in the dataset and were skipped: {shown}.", stacklevel=4)
    return [number for number in numbers if number is not None]


def of_anybody(
    histories: Iterable[Iterable[Any]] | Mapping[Any, Iterable[Any]], known: KnownItems, skipping: bool = True
) -> Iterator[History]:
    """Histories by user, or by their places; without those that have no known item, if `skipping`.

    A pandas Series is by its index, as a dict is by its keys.
    """
    if hasattr(histories, "columns"):
        raise UserError(
            "Histories are a list, a dict or a Series with a list of items for each user, not a table; of a log make "
            'them with log.groupby("user")["item"].agg(list).'
        )
    by_user = getattr(histories, "items", None)
    named = by_user() if callable(by_user) else enumerate(checked(histories, "histories"))
    for user, items in named:
        numbers = known.of(checked(items, f"histories, at {quoted(user)},"), user)
        if numbers or not skipping:
            yield user, numbers


def checked(values: Any, what: str) -> Iterable[Any]:
    """The values; UserError for a single id, which would be read letter by letter."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise UserError(f"{what[0].upper() + what[1:]} must be a list of ids, not {quoted(values)}.")
    return values
