"""The message when another rank died or stalled: one sentence that names the rank, stage, step and collective."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist

from csrec_dist.writers import is_running, machine, started

MOST_NAMED = 4

Note = dict[str, Any]
"""What a rank last published about itself (see `Watch`); empty for a rank that has published nothing."""


class RankFailure(SystemExit):
    """Another rank died or stalled: ends this process with status 1 and one sentence on stderr."""

    status = 1


def is_of_ranks(error: RuntimeError) -> bool:
    """Whether a collective failed because of the other ranks: gloo raises plain RuntimeErrors that name its files."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in text or "nccl" in text


def first_sentence(error: str) -> str:
    """The first sentence of an error, without the place in gloo's sources before it."""
    return error.splitlines()[0].rpartition("] ")[2].partition(". ")[0].rstrip(".")


def this_process() -> Note:
    """What names this process among all of the job: its machine (and pid namespace), pid, and when it started."""
    return {"machine": machine(), "pid": os.getpid(), "started": started(os.getpid())}


def has_died(process: Note) -> bool:
    """Whether a process of this machine has ended; False for one of another machine, which cannot be seen."""
    return process["machine"] == machine() and not is_running(process["pid"], process["started"])


_BLAMES: tuple[tuple[Callable[[Note, Note], bool], str], ...] = (
    (lambda before, after: not after, "rank {rank} has never been heard of"),
    (
        lambda before, after: after["state"] == "here" and before == after,
        "rank {rank} gives no sign of life; it was last seen in {place}, {doing}",
    ),
    (
        lambda before, after: after["state"] == "here" and not after["waits"],
        "rank {rank} is in {place}, {doing} for {seconds:.0f} s",
    ),
    (
        lambda before, after: after["state"] == "ended" and bool(after["reason"]),
        "rank {rank} has ended in {place}, because of this: {reason}",
    ),
    (lambda before, after: after["state"] == "ended", "rank {rank} has ended in {place}; see what it said"),
    (
        lambda before, after: after["state"] == "here",
        "rank {rank} waits too, in {place}, {doing} for {seconds:.0f} s",
    ),
)
"""Who is behind, the likeliest first, by two notes of a rank: a rank that never spoke, a silent one, one that computes.

A rank that waits too is blamed last: it is a victim, unless all are.
"""


def who_is_behind(before: Mapping[int, Note], after: Mapping[int, Note]) -> str:
    """A sentence about the likeliest culprits, from the other ranks' notes before and a few beats later."""
    for is_meant, words in _BLAMES:
        blamed = [
            words.format(rank=rank, **note).removesuffix(".")
            for rank, note in after.items()
            if is_meant(before[rank], note)
        ]
        if blamed:
            more = f"; and {len(blamed) - MOST_NAMED} more" if len(blamed) > MOST_NAMED else ""
            return f"R{'; '.join(blamed[:MOST_NAMED])[1:]}{more}."
    return "All other ranks gave up too; look at what they said."
