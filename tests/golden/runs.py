"""Do cases with the csrec_dist that is on the path, and write their summaries as JSON."""

import contextlib
import io
import json
import multiprocessing
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.golden.cases import Case, chosen, fitting_spelling, write_config, write_log
from tests.golden.summary import Summary, summarize
from tests.helpers.ranks import run_ranks

PRELOADED = ["torch._dynamo", "torch.utils.tensorboard", "datasets", "accelerate", "matplotlib.pyplot"]
TIMEOUT_S = 300.0


def command(rank: int, world_size: int, arguments: Sequence[str]) -> tuple[int, str]:
    """Exit status of a command of csrec-dist on this rank, and what it said."""
    from csrec_dist.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        return main(arguments), said.getvalue()


def run_case(case: Case, folder: Path, spelling: dict[str, str]) -> Summary:
    """Do a case in `folder`, which is removed again, on processes of its own; its summary."""
    do_case(case, folder, spelling)
    summary = summarize(folder / "run")
    shutil.rmtree(folder)
    return summary


def do_case(case: Case, folder: Path, spelling: dict[str, str]) -> str:
    """Do a case in a new `folder`, on processes of its own; what its ranks said."""
    folder.mkdir(parents=True)
    write_log(folder / "log.csv")
    write_config(folder / "config.yaml", case.config(folder / "log.csv", folder), spelling)
    arguments = ["run", "--config", str(folder / "config.yaml")]
    of_ranks = run_ranks(command, case.num_ranks, arguments, timeout=TIMEOUT_S)
    for status, said in of_ranks:
        assert status == 0, f"{case.name} ended with exit status {status}:\n{said}"
    return "\n".join(said for _, said in of_ranks)


def main(folder: Path, patterns: Sequence[str]) -> None:
    """Do the cases that match, and write folder/summary.json; every rank is forked from a server that has all imports.

    Imports take longer than any of these runs.
    """
    package = [f"csrec_dist.{name}" for name in ("cli", "pipeline", "report")]
    multiprocessing.set_forkserver_preload([*PRELOADED, *package])
    [spelling, origin] = run_ranks(ask, 1, str(folder / "plan"))[0]
    print(f"{folder.name}: {origin}, with {', '.join(spelling.values())}", flush=True)
    summaries = {}
    for case in chosen(patterns):
        summaries[case.name] = run_case(case, folder / "case", spelling)
        print(f"{folder.name}: {case.name}", flush=True)
    (folder / "summary.json").write_text(json.dumps(summaries, indent=1))


def ask(rank: int, world_size: int, folder: str) -> tuple[dict[str, str], str]:
    """The spelling of keys that fits the imported csrec_dist, and where that was imported from."""
    import csrec_dist

    return fitting_spelling(Path(folder)), str(Path(csrec_dist.__file__).parent)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
