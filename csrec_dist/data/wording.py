"""Small pieces of error messages: quoted input, lists of names and the nearest one, all of bounded length."""

import difflib
from collections.abc import Iterable
from itertools import islice

LONGEST_QUOTE = 60
MOST_NAMES = 20


def quoted(value: object) -> str:
    """The value as Python writes it, cut where it is long: a message stays readable whatever a file holds."""
    return shortened(repr(value), LONGEST_QUOTE)


def shortened(text: str, longest: int) -> str:
    """The text, or its beginning and an ellipsis: at most `longest` characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def listed(names: Iterable[str]) -> str:
    """The names, comma-separated, long ones cut and only the first of many; "none" if there are none."""
    every = list(names)
    shown = [shortened(name, LONGEST_QUOTE) for name in islice(every, MOST_NAMES)]
    more = [f"and {len(every) - MOST_NAMES:,} more"] if len(every) > MOST_NAMES else []
    return ", ".join(shown + more) or "none"


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" with the name nearest to `word`, or "" when none is near."""
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f" (did you mean '{shortened(by_lower[near[0]], LONGEST_QUOTE)}'?)" if near else ""
