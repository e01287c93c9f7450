"""Runs that are killed, or whose disk fails, anywhere: the same command ends with the same bytes and nothing left."""

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers import kills

NUM_RUNS = int(os.environ.get("CSREC_SOAK_RUNS", "1"))


@pytest.mark.long
def test_runs_that_are_cut_off_anywhere_end_as_unbroken_ones(tmp_path: Path) -> None:
    """`make soak` does more of them (CSREC_SOAK_RUNS)."""
    draw, counts = random.Random(0), Counter[str]()
    assert kills.run_once(kills.write_config(tmp_path, "unbroken"), tmp_path / "runs/unbroken") == 0
    for number in range(NUM_RUNS):
        counts += kills.cut_until_done(tmp_path, f"cut-{number}", draw)
        found = kills.differences(tmp_path / f"runs/cut-{number}", tmp_path / "runs/unbroken")
        assert found == [], f"run {number} after {dict(counts)}"
        kills.clear(tmp_path, f"cut-{number}")
    print(f"{NUM_RUNS} runs: {dict(counts)}")
    assert counts["kills"] > NUM_RUNS
    assert not counts["tracebacks"] + counts["never done"], dict(counts)
