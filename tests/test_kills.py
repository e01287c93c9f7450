"""Runs that are killed, or whose disk fails, anywhere: the same command ends with the same bytes and nothing left."""

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers import kills

NUM_RUNS = int(os.environ.get("CSREC_SOAK_RUNS", "1"))
SEED = int(os.environ.get("CSREC_SOAK_SEED", "0"))
RESTARTED = ("prepare", "teach", "label", "distill", "baseline", "evaluate")


@pytest.mark.long
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_runs_that_are_cut_off_anywhere_end_as_unbroken_ones(tmp_path: Path, num_ranks: int) -> None:
    """`make soak` does more of them (CSREC_SOAK_RUNS). Each is done, and then a stage of it again."""
    draw, counts, problems = random.Random(SEED), Counter[str](), []
    unbroken = tmp_path / "runs/unbroken"
    assert kills.run_once(["--config", kills.write_config(tmp_path, "unbroken")], unbroken, num_ranks) == (0, "")
    for number in range(NUM_RUNS):
        run, given = tmp_path / f"runs/cut-{number}", ["--config", kills.write_config(tmp_path, f"cut-{number}")]
        for arguments in (given, [*given, "--restart", draw.choice(RESTARTED)]):
            counts_now, problems_now = kills.cut_until_done(arguments, run, draw, num_ranks)
            counts += counts_now
            kills.age_leftovers(run)
            assert kills.run_once(given, run, num_ranks) == (0, "")
            problems += [
                f"run {number}, {arguments}: {each}" for each in [*problems_now, *kills.differences(run, unbroken)]
            ]
        kills.clear(run)
        print(f"{number + 1} runs on {num_ranks} ranks: {counts.total()} cuts, {dict(counts)}; {problems}", flush=True)
    assert counts.total() >= NUM_RUNS
    assert not problems, dict(counts)
