"""Which of several ranks that have the same to say says it."""

from collections.abc import Mapping
from datetime import timedelta

import torch.distributed as dist

from csrec_dist.files import fingerprint

ANSWER_SECONDS = 5


def is_first(text: str, environ: Mapping[str, str]) -> bool | None:
    """Whether no other rank of this start has asked for the same text; None where that cannot be known.

    torch's launcher keeps a store while any of its ranks runs, which needs no meeting of the ranks and is there before
    and after one. A store that rank 0 keeps ends with it, and so does that of a launcher that was killed.
    """
    if environ.get("TORCHELASTIC_USE_AGENT_STORE", "").lower() != "true":
        return None
    start = [environ.get("TORCHELASTIC_RUN_ID"), environ.get("TORCHELASTIC_RESTART_COUNT")]
    address, port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=ANSWER_SECONDS))
        return store.add(f"csrec_dist-said-{fingerprint([*start, text])}", 1) == 1
    except RuntimeError:
        return None
