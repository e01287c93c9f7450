"""Ranks that freeze or hang, launchers that are told to stop or killed: every start ends, and says who was behind."""

import os
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers import kills

NUM_TRIALS = int(os.environ.get("CSREC_END_TRIALS", "5"))
SEED = int(os.environ.get("CSREC_SOAK_SEED", "0"))
FURTHEST = 120
"""Points of a start, as in `tests/helpers/kills.py`, among which one is drawn: they reach into all of its stages."""
TIMEOUT_SECONDS = 20.0
MARGIN_SECONDS = 60.0
"""Imports, the work before the fault, and the launcher's grace, on a machine that does other work."""
SENTENCE = re.compile(
    r"csrec-dist: rank \d: stage \S+, step \d+: waited \d+ s in .+ of ranks 0, 1 and gave up \(.*\)\. (?P<blame>.*)"
)
VICTIMS: tuple[kills.Victim, ...] = ("told", "launcher", "frozen", "hung", "rank")


@pytest.mark.long
def test_every_start_ends_and_names_rank_stage_step_and_collective(tmp_path: Path) -> None:
    """CSREC_END_TRIALS of them, on two ranks, at points drawn by chance."""
    draw, counts, slowest = random.Random(SEED), Counter[str](), 0.0
    for trial in range(NUM_TRIALS):
        victim = VICTIMS[trial % len(VICTIMS)]
        signum = draw.choice([signal.SIGTERM, signal.SIGINT])
        # What rank 0 does alone the others wait for without a limit, also where its disk never answers.
        rank = 1 if victim == "hung" else draw.randrange(2)
        cut = kills.Cut(victim, rank, draw.randint(8, FURTHEST), int(signum))
        run = tmp_path / "runs" / f"trial-{trial}"
        (tmp_path / "runs/cuts").unlink(missing_ok=True)
        config = kills.write_config(tmp_path, run.name, TIMEOUT_SECONDS / 60)
        begin = time.monotonic()
        status, problem = kills.run_once(["--config", config], run, 2, cut)
        slowest = max(slowest, time.monotonic() - begin)
        assert not problem, f"{cut}: {problem}"
        assert slowest < kills.ENDED_SECONDS + TIMEOUT_SECONDS + MARGIN_SECONDS, f"{cut} took {slowest:.0f} s"
        if not (tmp_path / "runs/cuts").exists():
            counts["not reached"] += 1
            continue
        where = (tmp_path / "runs/cuts").read_text().split()[1]
        counts[f"{victim} in {where}"] += 1
        assert status != 0, cut
        if victim in ("frozen", "hung"):  # after a rank's death the launcher may end the others before they say so
            said = (tmp_path / f"runs/{run.name}-said-{1 - cut.rank}").read_text()
            sentence = SENTENCE.search(said)
            assert sentence, f"{cut} in {where}: {said}"
            blamed = f"Rank {cut.rank} " in sentence["blame"] or "store" in sentence["blame"]
            assert blamed, f"{cut} in {where}: {said}"
    print(f"{NUM_TRIALS} trials, the slowest took {slowest:.0f} s: {dict(counts)}")
