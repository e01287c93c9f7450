"""Imports at the first use, which an interrupt does not break off."""

import signal
import sys
import threading
from pathlib import Path

import pytest

from csrec_dist.lazy import load

SLOW = """
import signal
signal.raise_signal(signal.SIGINT)
whole = True
"""


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in whose import Ctrl-C comes."""
    name = "slow_to_import"
    (tmp_path / f"{name}.py").write_text(SLOW)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_an_interrupt_waits_for_the_end_of_an_import(slow: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        load(slow)
    assert sys.modules[slow].whole
    assert load(slow) is sys.modules[slow]
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_and_ignored_signals_are_left_alone(slow: str) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert load(slow).whole
    finally:
        signal.signal(signal.SIGINT, before)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(load("csrec_dist.lazy")))
    thread.start()
    thread.join()
    assert found == [sys.modules["csrec_dist.lazy"]]
