"""`python -m csrec_dist`, and the command `csrec-dist`."""

from typing import NoReturn

from csrec_dist.cli import main
from csrec_dist.processes import leave


def run() -> NoReturn:
    """Run one command, and end this process with its status."""
    leave(main())


if __name__ == "__main__":
    run()
