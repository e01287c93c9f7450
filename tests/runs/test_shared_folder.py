"""A run's folder that not all ranks share is refused before any work; a late disk is waited for."""

import os
import socket
import threading
from pathlib import Path

import pytest

from csrec_dist import writers
from csrec_dist.config import load_config
from csrec_dist.distributed import Runtime
from csrec_dist.errors import SharedUserError
from csrec_dist.runs.pipeline import execute
from csrec_dist.runs.shared_folder import require_shared
from tests.helpers.ranks import run_ranks

CONFIG = """
name: r
output: runs
method: base
dataset: {{source: {log}, window: 8, min_interactions: 3, num_shards: 4}}
model: {{name: gru4rec, width: 8, hidden: 8}}
training: {{batch_size: 16, max_epochs: 1, learning_rate: 0.01}}
"""


def run_apart(rank: int, world_size: int, folder: str, log: str) -> tuple[str, list[str]]:
    """Begin a run whose output is relative, each rank in a working directory of its own: the refusal, what is left."""
    writers.VISIBLE_SECONDS = 0.5
    place = Path(folder) / f"machine-{min(rank, 1)}"
    place.mkdir(exist_ok=True)
    os.chdir(place)
    Path(f"config-{rank}.yaml").write_text(CONFIG.format(log=log))
    with pytest.raises(SharedUserError) as refused, Runtime.start() as runtime:
        execute(load_config(f"config-{rank}.yaml", []), runtime)
    return str(refused.value), sorted(path.name for path in place.iterdir() if path.suffix != ".yaml")


def test_ranks_that_do_not_see_the_folder_are_named_on_all_ranks_and_nothing_is_left(
    tmp_path: Path, small_log: Path
) -> None:
    results = run_ranks(run_apart, 3, str(tmp_path), str(small_log))
    host = socket.gethostname()
    (said,) = {text for text, _ in results}
    assert (
        f"{tmp_path}/machine-0/runs/r, as rank 0 on {host} has it, is not seen by rank 1 on {host}, rank 2 on" in said
    )
    assert "Set output to a folder on a disk that all machines share" in said
    assert all(left == [] for _, left in results)


def wait_for_rank_0(rank: int, world_size: int, folder: str) -> bool:
    """Rank 0's lock appears on this rank's disk, which is another, after a moment."""
    place = Path(folder) / f"machine-{rank}" / "r"
    runtime = Runtime.start()
    place.mkdir(parents=True)
    if rank == 0:
        (place / ".lock").write_text("rank 0, now")
    else:
        (place / ".lock").write_text("of an earlier start")
        threading.Timer(0.5, lambda: (place / ".lock").write_text("rank 0, now")).start()
    require_shared(place, runtime)
    runtime.close()
    return (place / ".lock").read_text() == "rank 0, now"


def test_a_disk_that_shows_late_what_another_machine_wrote_is_waited_for(tmp_path: Path) -> None:
    assert run_ranks(wait_for_rank_0, 2, str(tmp_path)) == [True, True]
