"""The ranks' key-value store, with a deadline on every call; and the launcher's, which outlives their process group."""

import queue
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from csrec_dist.files import fingerprint

ANSWER_SECONDS = 5
Calls = queue.SimpleQueue[Callable[[], None] | None]


class StoreSilentError(dist.DistStoreError):
    """The process that serves the store has not answered within the deadline: it is frozen, or cut off."""


class DeadlineStore:
    """A torch store whose calls end within `seconds`, whatever has become of the process that serves it.

    torch's own timeout does not cover a server that is stopped (SIGSTOP) or swapped out: its client waits in the
    socket for ever, and holds a lock that stops every other thread at the same connection. So one daemon thread makes
    the calls, and the callers wait for it only until their deadline. With `seconds` None, for a store of this process,
    the callers make the calls themselves.
    """

    def __init__(self, store: Any, seconds: float | None, calls: Calls | None = None) -> None:
        self._store, self._seconds, self._calls = store, seconds, calls
        if seconds is not None and calls is None:
            self._calls = queue.SimpleQueue()
            threading.Thread(target=_make_calls, args=[self._calls], daemon=True).start()

    def prefixed(self, prefix: str) -> "DeadlineStore":
        """The same store, with keys of their own."""
        return DeadlineStore(dist.PrefixStore(prefix, self._store), self._seconds, self._calls)

    def within(self, seconds: float) -> "DeadlineStore":
        """The same store and keys, with another deadline."""
        return DeadlineStore(self._store, seconds, self._calls)

    def set(self, key: str, value: str) -> None:
        """Set a key."""
        self._call(self._store.set, key, value)

    def get(self, key: str) -> str:
        """The value of a key; an empty text where it has not been set."""
        return self._call(lambda: self._store.get(key).decode() if self._store.check([key]) else "")

    def add(self, key: str, amount: int) -> int:
        """Add to a counter that begins at 0, and return its new value."""
        return self._call(self._store.add, key, amount)

    def compare_set(self, key: str, expected: str, value: str) -> str:
        """Set a key whose value is `expected` (empty: one that has not been set); the value that it then has."""
        return self._call(self._store.compare_set, key, expected, value).decode()

    def delete_key(self, key: str) -> None:
        """Forget a key."""
        self._call(self._store.delete_key, key)

    def close(self) -> None:
        """Make no more calls."""
        if self._calls is not None:
            self._calls.put(None)

    def _call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """The method's result or error; StoreSilentError when there is none within the deadline."""
        if self._calls is None:
            return method(*arguments)
        answer: dict[str, Any] = {}
        ended = threading.Event()

        def call() -> None:
            try:
                answer["value"] = method(*arguments)
            except RuntimeError as error:
                answer["error"] = error
            ended.set()

        self._calls.put(call)
        if not ended.wait(self._seconds):
            raise StoreSilentError(
                f"the ranks' store, which rank 0 or its launcher serves, has not answered for {self._seconds:.0f} s"
            )
        if "error" in answer:
            raise answer["error"]
        return answer["value"]


def _make_calls(calls: Calls) -> None:
    while (call := calls.get()) is not None:
        call()


def is_first_to_say(text: str, environ: Mapping[str, str]) -> bool | None:
    """Whether no other rank of this start has asked to say the same text; None where that cannot be known.

    torch's launcher keeps a store while any of its ranks runs, which needs no meeting of the ranks and is there before
    and after one. A store that rank 0 keeps ends with it, and so does that of a launcher that was killed.
    """
    if environ.get("TORCHELASTIC_USE_AGENT_STORE", "").lower() != "true":
        return None
    start = [environ.get("TORCHELASTIC_RUN_ID"), environ.get("TORCHELASTIC_RESTART_COUNT")]
    address, port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=ANSWER_SECONDS))
        return store.add(f"csrec_dist-said-{fingerprint([*start, text])}", 1) == 1
    except RuntimeError:
        return None
