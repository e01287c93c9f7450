"""`python -m csrec_dist`: the same as the command `csrec-dist`."""

import sys

from csrec_dist.cli import main

if __name__ == "__main__":
    sys.exit(main())
