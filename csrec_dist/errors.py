"""The exceptions that are the user's to mend."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """The user's input or configuration is wrong.

    Its message says what was received, what is allowed and what to do. The command line prints it
    without a traceback and ends with exit status 2.
    """


class SharedUserError(UserError):
    """A UserError that every rank raises with the same words, so that one of them says it."""


@contextmanager
def shared_errors() -> Iterator[None]:
    """Mark UserErrors of the block as those that every rank meets."""
    try:
        yield
    except UserError as error:
        raise SharedUserError(str(error)) from None
