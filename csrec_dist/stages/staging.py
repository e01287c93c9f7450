"""Labels on the nodes' own disks: one rank of each node copies what all of its ranks read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from csrec_dist.data.lanes import owned_lanes
from csrec_dist.errors import SharedUserError, UserError
from csrec_dist.labels.staging import remove_staged, stage_labels, staged_folder
from csrec_dist.stages.run import Run


@contextmanager
def staged_labels(run: Run, folder: Path, disk: str) -> Iterator[Path]:
    """The folder on this node's disk that has the labels of `folder`; removed at the end, but kept after an error.

    Raises:
        UserError: labels are damaged, or a node's disk does not take them; on every rank.
    """
    runtime = run.runtime
    nodes = runtime.world.gather_objects(runtime.node)
    ranks = [rank for rank, node in enumerate(nodes) if node == runtime.node]
    staged, is_first = staged_folder(folder, disk, run.config.name), runtime.rank == ranks[0]
    found = runtime.world.gather_objects(_stage(run, folder, staged, ranks) if is_first else {})
    for part in found:
        if problem := part.get("error"):
            raise SharedUserError(problem)
    if problems := sorted({problem for part in found for problem in part.get("problems", [])}):
        raise SharedUserError(f"The soft labels are damaged: {'; '.join(problems)}. Label again with --restart label.")
    yield staged
    if is_first:
        remove_staged(staged)


def _stage(run: Run, folder: Path, staged: Path, ranks: list[int]) -> dict[str, Any]:
    """Copy what the ranks of this node read: what is wrong with the labels, or the user's mistake."""
    runtime, num_lanes = run.runtime, run.dataset.num_lanes
    lanes = [lane for rank in ranks for lane in owned_lanes(num_lanes, rank, runtime.world_size)]
    with run.log("distill") as log:

        def tell(copied: int, total: int) -> None:
            runtime.watch.at("distill")
            log.progress(copied, total)

        try:
            with runtime.watch.doing("copying labels to the node's disk"):
                return {"problems": stage_labels(folder, staged, lanes, tell)}
        except UserError as error:
            return {"error": f"{error} (node of rank {runtime.rank})"}
