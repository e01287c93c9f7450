"""Small pieces of error messages: lists of names and the nearest one."""

import difflib
from collections.abc import Iterable


def listed(names: Iterable[str]) -> str:
    """The names, comma-separated; "none" if there are none."""
    return ", ".join(names) or "none"


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" with the name nearest to `word`, or "" when none is near."""
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f" (did you mean '{by_lower[near[0]]}'?)" if near else ""
