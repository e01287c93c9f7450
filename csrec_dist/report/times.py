"""Where the seconds of each rank went, stage by stage: work, waiting for data, waiting for other ranks."""

from collections.abc import Mapping, Sequence

from csrec_dist.report.tables import NONE
from csrec_dist.runfolder import RunFolder
from csrec_dist.stagebook import StageBook

TIMES = {"waited for data": "data_wait_seconds", "waited for others": "collective_wait_seconds"}
HEADER = ("busy", *TIMES)
MOST_RANKS = 4


def time_shares(run: RunFolder, stage: str) -> list[str]:
    """A finished stage's cells under `HEADER`: shares of each rank's seconds, or their range where ranks are many.

    Waits in the gradients' all-reduce, which overlaps with the backward pass, count as busy, and so do rows that
    evaluation and labelling read.
    """
    record = StageBook(run.folder).record(stage)
    usages = record.usage if record else []
    if not usages or any(name not in usage for usage in usages for name in TIMES.values()):
        return [NONE] * len(HEADER)
    waited = [[_share(usage, usage[name]) for usage in usages] for name in TIMES.values()]
    busy = [1 - sum(shares) for shares in zip(*waited, strict=True)]
    return [_spread(shares) for shares in (busy, *waited)]


def _share(usage: Mapping[str, float], seconds: float) -> float:
    return seconds / usage["seconds"] if usage["seconds"] else 0.0


def _spread(shares: Sequence[float]) -> str:
    if len(shares) <= MOST_RANKS:
        return ", ".join(f"{share:.0%}" for share in shares)
    return f"{min(shares):.0%} to {max(shares):.0%}"
