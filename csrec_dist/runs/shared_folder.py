"""All ranks have one run folder: a rank that does not see rank 0's is named before any work, not after hours of it."""

import socket
from pathlib import Path

from csrec_dist.distributed import Processes
from csrec_dist.errors import SharedUserError, listed
from csrec_dist.lock import FILE as LOCK
from csrec_dist.writers import is_visible


def require_shared(folder: Path, processes: Processes) -> None:
    """Every rank calls this while rank 0 has the lock of the run's folder, whose file no other lock's file is like.

    Raises:
        SharedUserError: there are ranks that do not see that file; it names them, their machines and the folder.
    """
    if processes.world_size == 1:
        return
    of_main = processes.on_main(
        lambda: {"path": str(folder.absolute()), "lock": (folder / LOCK).read_text(encoding="utf-8")}
    )
    sees = is_visible(lambda: _text(folder / LOCK) == of_main["lock"], folder)
    machines, seen = zip(*processes.gather([socket.gethostname(), sees]), strict=True)
    if not all(seen):
        blind = [f"rank {rank} on {machines[rank]}" for rank, each in enumerate(seen) if not each]
        raise SharedUserError(
            f"The run's folder {of_main['path']}, as rank 0 on {machines[0]} has it, is not seen by {listed(blind)}. "
            "Set output to a folder on a disk that all machines share; a relative one begins at each rank's working "
            "directory. `doctor` under the same launcher checks it."
        )


def _text(path: Path) -> str | None:
    """What a file says; None where there is none that this rank may read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
