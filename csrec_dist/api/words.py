"""Messages that speak of commands, in the words of Python."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from csrec_dist.errors import UserError
from csrec_dist.options import STAGES

WORDS = (
    (r"run `csrec-dist \w+` \(or `run`\) first", "call fit first"),
    (rf"--restart ({'|'.join(STAGES)})\b", r'fit(restart="\1")'),
    (r"--restart\b", "fit(restart=…)"),
)
"""What the command line says, as a pattern, and what a script or a notebook does instead."""


def in_python(text: str) -> str:
    """The text with calls in place of commands."""
    for pattern, words in WORDS:
        text = re.sub(pattern, words, text)
    return text


@contextmanager
def said_in_python() -> Iterator[None]:
    """UserErrors of the block name calls instead of commands."""
    try:
        yield
    except UserError as error:
        error.args = (in_python(str(error)), *error.args[1:])
        raise
