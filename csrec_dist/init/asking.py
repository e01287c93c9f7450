"""What a log leaves open: asked where somebody is at a terminal, else decided; both are told in a line."""

import sys
from collections.abc import Callable, Sequence

from csrec_dist.errors import did_you_mean, listed


class Decisions:
    """Answers to questions. `ask` gets them, shown a question; None: the defaults are taken, and said."""

    def __init__(self, say: Callable[[str], None], ask: Callable[[str], str] | None = None) -> None:
        self._say, self._ask = say, ask

    @classmethod
    def of_terminal(cls, say: Callable[[str], None], is_silent: bool) -> "Decisions":
        """Questions are asked if there is a terminal to read and to write on, unless `is_silent`."""
        is_there = sys.stdin.isatty() and sys.stdout.isatty()
        return cls(say, input if is_there and not is_silent else None)

    @property
    def is_asking(self) -> bool:
        """Whether somebody answers."""
        return self._ask is not None

    def choose(self, question: str, choices: Sequence[str], default: str, reason: str) -> str:
        """One of the choices; an empty answer is the default, unless that is empty itself, and so is a closed input.

        `reason` is said if nobody is asked: what is uncertain, and what the default makes of it.
        """
        if self._ask is None:
            self._say(f"decided: {reason}")
            return default
        while True:
            try:
                hint = f" [{default}]" if default else ""
                answer = self._ask(f"{question} ({listed(choices)}){hint} ").strip() or default
            except EOFError:
                return default
            if answer in choices:
                return answer
            self._say(f"{answer!r} is none of them{did_you_mean(answer, choices)}.")

    def choose_yes(self, question: str, default: bool, reason: str) -> bool:
        """Whether the answer is yes."""
        return self.choose(question, ("yes", "no"), "yes" if default else "no", reason) == "yes"
