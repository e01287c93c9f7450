"""Errors that the user can mend, and the pieces of their messages."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice


class UserError(Exception):
    """The user's input or configuration is wrong.

    Its message says what was received, what is allowed and what to do. The command line prints it
    without a traceback and ends with exit status 2.
    """


class SharedUserError(UserError):
    """A UserError that several ranks raise with the same words, so that one of them says it.

    With `is_of_all` these are all ranks of the run, otherwise those of a group, beside which others may work on. Where
    it `is_assumed`, the ranks have not told each other: one of them may have met it alone, on its own machine.
    """

    def __init__(self, message: str, *, is_of_all: bool = True, is_assumed: bool = False) -> None:
        super().__init__(message)
        self.is_of_all, self.is_assumed = is_of_all, is_assumed


class StorageError(Exception):
    """A disk is full, failing or read-only; what was begun goes on when that is mended. Exit status 1.

    With `is_shared` several ranks raise it with the same words, with `is_of_all` every rank of the run.
    """

    def __init__(self, message: str, *, is_shared: bool = False, is_of_all: bool = False) -> None:
        super().__init__(message)
        self.is_shared, self.is_of_all = is_shared, is_of_all


def is_shared(error: BaseException) -> bool:
    """Whether several ranks raise the error, of which one says it."""
    return isinstance(error, SharedUserError) or (isinstance(error, StorageError) and error.is_shared)


def is_assumed(error: BaseException) -> bool:
    """Whether the other ranks are only thought to raise the error too."""
    return isinstance(error, SharedUserError) and error.is_assumed


def is_of_all(error: BaseException) -> bool:
    """Whether every rank of the run raises the error, by its attribute `is_of_all`: then none of them works on."""
    return bool(getattr(error, "is_of_all", False))


@contextmanager
def shared_errors() -> Iterator[None]:
    """Mark UserErrors of the block as those that every rank meets, as far as this one can know."""
    try:
        yield
    except UserError as error:
        raise SharedUserError(str(error), is_assumed=not is_shared(error) or is_assumed(error)) from None


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
