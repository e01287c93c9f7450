"""Fixtures shared by all tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(os.environ.get("CSREC_TEST_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data")).resolve()


@pytest.fixture(scope="session")
def test_data() -> Callable[[str], Path]:
    """A function from a real log's name to its folder; the test is skipped where the log is missing."""

    def find(name: str) -> Path:
        folder = DATA / name
        if not folder.is_dir():
            pytest.skip(f"the real log {name} is not in {DATA} (set CSREC_TEST_DATA)")
        return folder

    return find
