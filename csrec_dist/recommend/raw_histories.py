"""How users and histories that are named by raw ids become numbers, and what is said of ids that are unknown."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from csrec_dist.data.ids import RawIds
from csrec_dist.errors import UserError, listed, quoted
from csrec_dist.recommend.ranked import History


class KnownItems:
    """Reads histories of raw ids, and counts the items that the model does not know."""

    def __init__(self, items: RawIds, place: str) -> None:
        """`place` is what a message calls the histories."""
        self._items, self._place = items, place
        self.num_unknown = self.num_skipped = 0

    def of(self, history: Iterable[Any]) -> list[int]:
        """The numbers of the known items, in their order; a history without any is counted as skipped."""
        numbers = [self._items.number(raw) for raw in history]
        known = [number for number in numbers if number is not None]
        self.num_unknown += len(numbers) - len(known)
        self.num_skipped += not known
        return known

    def __str__(self) -> str:
        """How many items are unknown, and how many histories have no known item; empty where there are none."""
        return said_of_skips(self._place, self.num_unknown, self.num_skipped)


def said_of_skips(place: str, num_unknown: int, num_skipped: int) -> str:
    """The items of some histories that are unknown, and the histories that were skipped, in a sentence; or nothing."""
    if not num_unknown and not num_skipped:
        return ""
    return (
        f"{num_unknown:,} items of {place} are not in the dataset, and {num_skipped:,} histories without a known item "
        "were skipped"
    )


def numbers_of_users(users: Iterable[Any], ids: RawIds) -> list[int]:
    """The users' numbers; UserError that names those who are unknown."""
    raw = list(checked(users, "users"))
    numbers = [ids.number(user) for user in raw]
    unknown = [user for user, number in zip(raw, numbers, strict=True) if number is None]
    if unknown:
        raise UserError(
            f"The dataset has no user {listed(map(quoted, unknown))}; it has {len(ids):,} users, such as "
            f"{quoted(ids.values[0].as_py())}. Give new users by their histories."
        )
    return [number for number in numbers if number is not None]


def of_anybody(
    histories: Iterable[Iterable[Any]] | Mapping[Any, Iterable[Any]], known: KnownItems, skipping: bool = True
) -> Iterator[History]:
    """Histories by user, or by their places; without those that have no known item, if `skipping`."""
    named = histories.items() if isinstance(histories, Mapping) else enumerate(checked(histories, "histories"))
    for user, items in named:
        numbers = known.of(checked(items, f"histories, at {quoted(user)},"))
        if numbers or not skipping:
            yield user, numbers


def checked(values: Any, what: str) -> Iterable[Any]:
    """The values; UserError for a single id, which would be read letter by letter."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise UserError(f"{what[0].upper() + what[1:]} must be a list of ids, not {quoted(values)}.")
    return values
